"""The values of trials: within their bounds, spread as they should be, and pure functions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.spec.search import Distribution, same_value
from batchtrain.tuning.space import Space, draw, explore, grid, holds, perturb, points_of

SEEDS = st.integers(0, 2**63 - 1)
NUMBERS = st.integers(0, 10**6)
FLOATS = st.floats(-1e9, 1e9)
WHOLES = st.integers(-(2**63) + 1, 2**63 - 1)
POSITIVE = st.floats(1e-12, 1e12)


def pairs(values: Any) -> Any:
    return st.tuples(values, values).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)


DISTRIBUTIONS = st.one_of(
    pairs(FLOATS).map(lambda bounds: Distribution(uniform=bounds)),
    pairs(POSITIVE).map(lambda bounds: Distribution(log_uniform=bounds)),
    pairs(WHOLES).map(lambda bounds: Distribution(int=bounds)),
    pairs(st.integers(1, 10**15)).map(lambda bounds: Distribution(log_int=bounds)),
    st.lists(st.one_of(st.text(max_size=3), st.lists(st.integers(), max_size=2)), min_size=1)
    .map(lambda values: [each for n, each in enumerate(values) if each not in values[:n]])
    .map(lambda values: Distribution(choice=tuple(values))),
)

CONDITIONAL: Space = {
    "kind": Distribution(choice=("adam", "sgd", "none")),
    "lr": Distribution(log_uniform=(1e-5, 1.0), when={"kind": ["adam", "sgd"]}),
    "momentum": Distribution(uniform=(0.5, 0.99), when={"kind": "sgd"}),
    "width": Distribution(int=(1, 4)),
    "deep": Distribution(choice=(1, 2), when={"width": [3, 4], "kind": "sgd"}),
}


@given(distribution=DISTRIBUTIONS, seed=SEEDS, number=NUMBERS)
def test_a_drawn_value_is_one_that_the_key_takes(
    distribution: Distribution, seed: int, number: int
) -> None:
    value = draw({"key": distribution}, seed, number)["key"]

    assert distribution.takes(value)
    assert isinstance(value, int) == distribution.is_whole or distribution.kind == "choice"


@given(st.lists(DISTRIBUTIONS, min_size=1, max_size=4), DISTRIBUTIONS, SEEDS, NUMBERS)
def test_another_key_leaves_the_values_of_the_others(
    distributions: list[Distribution], added: Distribution, seed: int, number: int
) -> None:
    space = {f"key{place}": each for place, each in enumerate(distributions)}
    values = draw(space, seed, number)

    assert draw({"a": added, **space}, seed, number).items() >= values.items()
    assert draw(space, seed, number) == values


def test_the_values_of_a_seed_never_change() -> None:
    """If it fails, a search that was begun before would go on with other trials."""
    space = {
        "training.optimizer.lr": Distribution(log_uniform=(1e-4, 1e-1)),
        "model.dropout": Distribution(uniform=(0.0, 0.5)),
        "training.epochs": Distribution(int=(1, 1000)),
        "model.width": Distribution(log_int=(8, 512)),
        "model.hidden": Distribution(choice=([64], [128, 64], [256])),
    }
    assert [list(draw(space, 42, number).values()) for number in (0, 1, 1000)] == GOLDEN


GOLDEN: list[list[Any]] = [
    [0.0016101, 0.141936, 971, 31, [128, 64]],
    [0.00153055, 0.313538, 926, 258, [256]],
    [0.00175271, 0.0837839, 632, 22, [256]],
]


@pytest.mark.parametrize(
    ("distribution", "share_of"),
    [
        (Distribution(uniform=(-2.0, 3.0)), lambda value: (value + 2) / 5),
        (Distribution(log_uniform=(1e-6, 1.0)), lambda value: 1 + math.log10(value) / 6),
        (Distribution(int=(0, 999)), lambda value: (value + 0.5) / 1000),
        (
            Distribution(log_int=(10, 9999)),
            lambda value: math.log(value / 9.5) / math.log(9999.5 / 9.5),
        ),
    ],
)
def test_drawn_values_are_spread_evenly(distribution: Distribution, share_of: Any) -> None:
    """In the logarithm where it says so: the empirical distribution is the diagonal."""
    drawn = [draw({"key": distribution}, 7, number)["key"] for number in range(4000)]
    shares = np.sort([share_of(value) for value in drawn])

    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) in one sample of a thousand.
    assert np.abs(shares - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)


def test_whole_numbers_and_choices_have_no_bias() -> None:
    for distribution in (Distribution(int=(-1, 1)), Distribution(choice=("a", "b", "c"))):
        counts = Counter(draw({"key": distribution}, 3, number)["key"] for number in range(3000))
        assert len(counts) == 3
        assert all(abs(count - 1000) < 4 * math.sqrt(3000 * 2 / 9) for count in counts.values())


def test_a_range_that_no_word_divides_has_no_bias() -> None:
    """The remainder of a word by three quarters of all words would be in the lower third twice
    as often as in each of the others."""
    third = 2**62
    low = -(2**62)
    distribution = Distribution(int=(low, low + 3 * third - 1))
    drawn = [draw({"key": distribution}, 5, number)["key"] - low for number in range(3000)]
    counts = Counter(value // third for value in drawn)
    assert set(counts) == {0, 1, 2}
    assert all(abs(count - 1000) < 4 * math.sqrt(3000 * 2 / 9) for count in counts.values())


@given(low=POSITIVE, factor=st.floats(1.01, 1e9), is_log=st.booleans(), seed=SEEDS)
def test_a_number_that_is_drawn_can_be_read(
    low: float, factor: float, is_log: bool, seed: int
) -> None:
    high = low * factor
    kind = "log_uniform" if is_log else "uniform"

    drawn = draw({"key": Distribution.model_validate({kind: (low, high)})}, seed, 0)["key"]

    assert drawn in (low, high) or drawn == float(f"{drawn:.6g}")


def test_a_narrow_range_has_more_digits() -> None:
    space = {"key": Distribution(uniform=(1.0, 1.0 + 1e-9))}

    assert len({draw(space, 1, number)["key"] for number in range(100)}) > 50


@given(seed=SEEDS, number=NUMBERS)
def test_a_key_is_drawn_where_its_conditions_hold_and_only_there(seed: int, number: int) -> None:
    values = draw(CONDITIONAL, seed, number)

    is_sgd = values["kind"] == "sgd"
    assert ("lr" in values) == (values["kind"] != "none")
    assert ("momentum" in values) == is_sgd
    assert ("deep" in values) == (is_sgd and values["width"] >= 3)


def test_a_condition_on_a_key_that_is_not_set_does_not_hold() -> None:
    space = {
        "a": Distribution(choice=(1, 2)),
        "b": Distribution(choice=(1, 2), when={"a": 2}),
        "c": Distribution(choice=(1, 2), when={"b": [1, 2]}),
    }

    assert not holds(space["c"], {"a": 1}, space)
    assert holds(space["c"], {"a": 2, "b": 1}, space)


def test_a_grid_is_the_product_in_the_order_of_the_keys() -> None:
    space = {
        "a": Distribution(choice=("x", "y")),
        "b": Distribution(uniform=(0.0, 1.0)),
        "c": Distribution(int=(1, 2)),
    }

    points = [tuple(values.values()) for values in grid(space, 3)]

    assert points == list(itertools.product(("x", "y"), (0.0, 0.5, 1.0), (1, 2)))


def test_a_grid_has_no_point_twice_where_keys_depend_on_others() -> None:
    points = list(grid(CONDITIONAL, 3))

    # The widths are 1, 3 and 4, the last two of them with two values of `deep` for sgd.
    adam, sgd, none = 3 * 3, 3 * 3 * (1 + 2 + 2), 3
    assert len(points) == adam + sgd + none
    assert len({str(each) for each in points}) == len(points)
    assert all(
        set(each) == {key for key, one in CONDITIONAL.items() if holds(one, each, CONDITIONAL)}
        for each in points
    )


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (Distribution(uniform=(0.0, 0.3)), [0.0, 0.075, 0.15, 0.225, 0.3]),
        (Distribution(log_uniform=(1e-4, 1.0)), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (Distribution(int=(1, 3)), [1, 2, 3]),
        (Distribution(int=(0, 100)), [0, 25, 50, 75, 100]),
        (Distribution(log_int=(1, 4)), [1, 2, 3, 4]),
        (Distribution(log_int=(1, 10_000)), [1, 10, 100, 1000, 10_000]),
        (Distribution(choice=("a", "b")), ["a", "b"]),
    ],
)
def test_the_points_of_a_range(distribution: Distribution, expected: list[Any]) -> None:
    points = points_of(distribution, 5)

    assert points == expected
    assert all(distribution.takes(point) for point in points)


@given(distribution=DISTRIBUTIONS, seed=SEEDS, word=st.integers(0, 1))
def test_a_changed_value_is_one_that_the_key_takes(
    distribution: Distribution, seed: int, word: int
) -> None:
    value = draw({"key": distribution}, seed, 0)["key"]

    changed = perturb(value, distribution, word)

    assert distribution.takes(changed)
    if distribution.is_whole and value not in distribution.bounds:
        assert changed != value


def test_values_are_changed_as_in_the_paper() -> None:
    lr = Distribution(log_uniform=(1e-4, 1.0))
    assert (perturb(0.1, lr, 0), perturb(0.1, lr, 1)) == (0.08, 0.12)
    assert perturb(0.9, lr, 1) == 1.0
    width = Distribution(int=(1, 100))
    assert (perturb(50, width, 0), perturb(50, width, 1)) == (40, 60)
    assert (perturb(2, width, 0), perturb(2, width, 1), perturb(1, width, 0)) == (1, 3, 1)
    size = Distribution(choice=([16], [32], [64]))
    assert (perturb([32], size, 0), perturb([32], size, 1)) == ([16], [64])
    assert (perturb([16], size, 0), perturb([64], size, 1)) == ([16], [64])


def test_a_copy_is_changed_a_little_or_drawn_anew_as_often_as_asked() -> None:
    space = {"lr": Distribution(log_uniform=(1e-6, 1.0)), "width": Distribution(int=(1, 10**6))}
    values = {"lr": 0.01, "width": 1000}

    changed = [explore(space, values, 42, number, resample=0.25) for number in range(1000)]

    near = [each for each in changed if each["lr"] in (0.008, 0.012)]
    assert 700 < len(near) < 800
    assert {each["lr"] for each in near} == {0.008, 0.012}
    # Each key decides for itself.
    both = [each for each in near if each["width"] in (800, 1200)]
    assert 500 < len(both) < 625
    assert changed[7] == explore(space, values, 42, 7, resample=0.25)
    assert explore(space, values, 42, 7, resample=0.25, fixed=["lr", "width"]) == values


def test_a_zero_is_drawn_anew() -> None:
    space = {"dropout": Distribution(uniform=(0.0, 0.5))}

    assert explore(space, {"dropout": 0.0}, 1, resample=0.0)["dropout"] > 0


@given(seed=SEEDS, number=NUMBERS)
def test_a_copy_has_the_keys_whose_conditions_hold(seed: int, number: int) -> None:
    values = draw(CONDITIONAL, seed, number)

    changed = explore(CONDITIONAL, values, seed, number, resample=0.5)

    active = {key for key, one in CONDITIONAL.items() if holds(one, changed, CONDITIONAL)}
    assert set(changed) == active
    assert all(CONDITIONAL[key].takes(value) for key, value in changed.items())
    assert same_value(changed, explore(CONDITIONAL, values, seed, number, resample=0.5))
