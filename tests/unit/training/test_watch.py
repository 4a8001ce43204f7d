"""Which rank is named: the one that stands still, or the one that is slow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchtrain.training.watch import SlowWatch, Standing, find_stuck

WINDOW = 10


def standing(rank: int, passed: int, silent: float = 0.1) -> Standing:
    return Standing(rank, passed, "step.forward", silent)


def test_r21_a_silent_rank_is_the_stuck_one_even_if_others_are_behind_it() -> None:
    ranks = [standing(0, 5), standing(1, 9, silent=40.0), standing(2, 5, silent=3.0)]
    found, why = find_stuck(ranks, silent_seconds=2.0)
    assert found.rank == 1
    assert why == "its heartbeats stopped 40 s ago"


def test_r21_else_it_is_the_one_that_is_behind() -> None:
    found, why = find_stuck([standing(0, 5), standing(1, 4), standing(2, 5)], silent_seconds=2.0)
    assert (found.rank, why) == (1, "it is behind all others")


def test_r21_a_tie_is_said() -> None:
    ranks = [standing(0, 5), standing(1, 4), standing(3, 4)]
    found, why = find_stuck(ranks, silent_seconds=2.0)
    assert found.rank == 1
    assert "rank 3" in why


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 9)), min_size=1, max_size=5),
)
def test_r21_whoever_is_named_is_silent_longest_or_has_passed_fewest(
    states: list[tuple[int, float]],
) -> None:
    ranks = [standing(rank, passed, silent) for rank, (passed, silent) in enumerate(states)]
    found, why = find_stuck(ranks, silent_seconds=2.0)
    assert why
    if max(silent for _, silent in states) >= 2.0:
        assert found.silent_seconds == max(silent for _, silent in states)
    else:
        assert found.passed == min(passed for passed, _ in states)


def feed(watch: SlowWatch, counts: list[list[int]]) -> list[str]:
    notes = [
        watch.add(rank, tick, passed)
        for tick, ranks in enumerate(counts)
        for rank, passed in enumerate(ranks)
    ]
    return [note for note in notes if note is not None]


def test_r21_a_rank_that_the_others_wait_for_is_named_once() -> None:
    watch = SlowWatch(3, WINDOW)
    notes = feed(watch, [[tick + 1, tick, tick + 1] for tick in range(3 * WINDOW)])
    assert len(notes) == 1
    assert notes[0].startswith("rank 1 is the slowest: the others waited for it in 10 of the last")


def test_r21_a_rank_that_is_behind_now_and_then_is_not_named() -> None:
    watch = SlowWatch(2, WINDOW)
    assert feed(watch, [[tick, tick - tick % 2] for tick in range(100)]) == []


@given(st.lists(st.integers(0, 3), max_size=40))
def test_r21_ranks_that_are_equally_far_are_never_named(steps: list[int]) -> None:
    assert feed(SlowWatch(4, WINDOW), [[step] * 4 for step in steps]) == []


def test_r21_heartbeats_of_other_moments_are_not_compared() -> None:
    watch = SlowWatch(2, WINDOW)
    assert [watch.add(tick % 2, tick, tick) for tick in range(200)] == [None] * 200


@given(st.integers(1, 6))
def test_r21_one_rank_alone_is_never_slow(ticks: int) -> None:
    assert feed(SlowWatch(1, 1), [[tick] for tick in range(ticks)]) == []
