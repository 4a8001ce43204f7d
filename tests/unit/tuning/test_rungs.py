"""Which trials go on at a rung: tables worked out by hand, and the published algorithms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.spec.search import Asha, HyperBand, Pbt
from batchtrain.tuning.rungs import brackets, kept, rungs, survives

INF = math.inf


@pytest.mark.parametrize(
    ("scheduler", "epochs", "expected"),
    [
        (None, 7, (7,)),
        (Asha(kind="asha", first_epochs=1, factor=4), 100, (1, 4, 16, 64, 100)),
        (Asha(kind="asha", first_epochs=2, factor=3), 54, (2, 6, 18, 54)),
        (Asha(kind="asha", first_epochs=8), 8, (8,)),
        (Asha(kind="asha", first_epochs=9), 8, (8,)),
        (HyperBand(kind="hyperband"), 81, (1, 3, 9, 27, 81)),
        (HyperBand(kind="hyperband", first_epochs=3), 26, (8, 26)),
        (HyperBand(kind="hyperband", first_epochs=9), 8, (8,)),
        (Pbt(kind="pbt", interval_epochs=5), 17, (5, 10, 15, 17)),
        (Pbt(kind="pbt", interval_epochs=5), 15, (5, 10, 15)),
    ],
)
def test_rungs(scheduler: Asha | HyperBand | Pbt | None, epochs: int, expected: object) -> None:
    assert rungs(scheduler, epochs) == expected


@pytest.mark.parametrize(
    ("costs", "factor", "expected"),
    [
        # The best so far goes on, whatever the number; from 2 x factor on the second too.
        ([5.0], 4, True),
        ([INF], 4, False),
        ([INF, 5.0], 4, True),
        ([5.0, 4.0], 4, True),
        ([5.0, 6.0], 4, False),
        ([5.0, 5.0], 4, False),
        ([1, 9, 9, 9, 9, 9, 2.0], 4, False),
        ([1, 9, 9, 9, 9, 9, 9, 2.0], 4, True),
        ([1, 9, 9, 9, 9, 9, 2, 3.0], 4, False),
        ([INF] * 7 + [2.0], 4, True),
        ([INF] * 8, 4, False),
        ([3.0, 4.0, 2.0, 2.5], 2, True),
        ([-1.0, -0.9, -0.8], 2, False),
    ],
)
def test_asha_lets_the_best_share_go_on(costs: list[float], factor: int, expected: bool) -> None:
    assert survives(costs, factor) is expected


def test_hyperband_has_the_brackets_of_the_paper() -> None:
    """Li et al. (2018), table 1: R = 81 and eta = 3; n_i and r_i of each bracket."""
    of_paper = [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    found = [list(zip(each.counts, each.rungs, strict=True)) for each in brackets(81, 3)]
    assert found == of_paper


@given(st.integers(1, 2000), st.integers(2, 10), st.integers(1, 50), st.integers(1, 300))
def test_brackets_of_any_numbers_narrow_down_to_at_least_one(
    epochs: int, factor: int, first: int, size: int
) -> None:
    found = brackets(epochs, factor, first)
    assert [len(each.rungs) for each in found] == list(range(len(found), 0, -1))
    for bracket in found:
        assert bracket.rungs[-1] == epochs
        assert list(bracket.rungs) == sorted(set(bracket.rungs))
        assert len(bracket.rungs) == 1 or bracket.rungs[0] >= first
        for each in (bracket, bracket.of_size(size, factor)):
            assert each.counts[0] == each.trials
            assert list(each.counts) == sorted(each.counts, reverse=True)
            assert each.counts[-1] >= 1
    # One more halving would begin below the first rung.
    assert epochs // factor ** len(found) < first


def test_kept_takes_the_best_ties_by_number_and_no_failed_one() -> None:
    costs = {4: 1.0, 2: 0.5, 9: 0.5, 3: 0.5, 1: INF}
    assert kept(costs, 2) == {2, 3}
    assert kept(costs, 5) == {2, 3, 4, 9}
    assert kept({1: INF}, 1) == frozenset()
