from __future__ import annotations

import doctest
import math
import unicodedata

import pytest

from batchtrain.reporting import wording
from batchtrain.reporting.wording import duration, measure, number, shortened, tick, visible


def test_the_examples_hold() -> None:
    result = doctest.testmod(wording)

    assert result.attempted >= 7
    assert result.failed == 0


def test_x16_whatever_is_invisible_or_reorders_becomes_an_escape() -> None:
    planes = [*range(0x20000), *range(0xE0000, 0xE0200), 0x10FFFF]
    text = visible("".join(map(chr, planes)))

    hidden = {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert hidden == {"\u200c", "\u200d"}
    assert not {"\ufffe", "\uffff", "\ufdd0", "\U0010ffff"} & set(text)
    text.encode("utf-8")


def test_what_can_be_seen_stays() -> None:
    text = "Na_to_K \u00e9\u65e5\u05e9 <b> \U0001f600"

    assert visible(text) == text


@pytest.mark.parametrize("limit", [5, 18])
def test_a_shortened_text_keeps_its_ends_and_its_limit(limit: int) -> None:
    found = shortened("first-" + "x" * 100 + "-last", limit)

    assert len(found) == limit
    assert found.startswith("fi")
    assert found.endswith("st")
    assert shortened("x" * limit, limit) == "x" * limit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (9.99996, "10.00"),
        (99999.6, "100,000"),
        (-0.00012345, "-0.0001234"),
        (0.00001, "1.000e-05"),
        (1e20, "1.000e+20"),
        (math.nan, "NaN"),
        (-math.inf, "-infinity"),
    ],
)
def test_a_measure_has_four_significant_digits(value: float, text: str) -> None:
    assert measure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (100.0, "100"), (1000.0, "1,000"), (1e20, "1e+20"), (3, "3")]
)
def test_a_number_has_no_needless_zeros(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.0, "0"), (1e9, "1,000,000,000"), (2.5e12, "2.5e+12")]
)
def test_a_tick_is_exact(value: float, text: str) -> None:
    assert tick(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.00 s"), (59.96, "1 min 0 s"), (3599.9, "1 h 00 min")]
)
def test_a_duration_never_shows_sixty(seconds: float, text: str) -> None:
    assert duration(seconds) == text
