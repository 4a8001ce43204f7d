"""Which engine `auto` takes, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from batchtrain.engines.choice import SMALL_INPUT_BYTES, SMALL_SHARED_BYTES, choose_engine

SMALL: dict[str, Any] = {"input_bytes": 5_300, "workers": "auto"}


@pytest.mark.parametrize(
    ("changed", "name", "why"),
    [
        ({}, "embedded", "engine embedded, since the input has 5.3 kB (less than 256 MB)"),
        ({"workers": 1}, "embedded", "5.3 kB (less than 256 MB)"),
        ({"workers": 2}, "embedded", "5.3 kB (less than 64 MB with 2 workers)"),
        ({"workers": 2, "input_bytes": SMALL_SHARED_BYTES - 1}, "embedded", "63.9 MB"),
        (
            {"workers": 2, "input_bytes": SMALL_SHARED_BYTES},
            "ray",
            "(64 MB and more with 2 workers)",
        ),
        ({"workers": 1, "input_bytes": SMALL_SHARED_BYTES}, "embedded", "(less than 256 MB)"),
        ({"input_bytes": SMALL_INPUT_BYTES - 1}, "embedded", "255.9 MB (less than 256 MB)"),
        ({"input_bytes": SMALL_INPUT_BYTES}, "ray", "the input has 256 MB"),
        ({"input_bytes": 2 * 10**15, "workers": 1}, "ray", "2000 TB"),
        ({"input_bytes": 12}, "embedded", "12 bytes"),
    ],
)
def test_auto_takes_ray_for_large_work(changed: dict[str, Any], name: str, why: str) -> None:
    choice = choose_engine("auto", **{**SMALL, **changed})
    assert choice.name == name
    assert why in choice.why


@pytest.mark.parametrize("asked", ["embedded", "ray"])
@pytest.mark.parametrize("input_bytes", [0, 10**12])
def test_what_the_spec_says_stands(asked: Any, input_bytes: int) -> None:
    choice = choose_engine(asked, input_bytes=input_bytes, workers="auto")
    assert (choice.name, choice.why) == (asked, f"engine {asked}, as the spec says")
