"""Which trials are the best of all, and which of several goals leave no better one."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from batchtrain.tuning.trials import Goal, TrialRecord, best_trial, pareto_front, ranked

GOALS = [Goal("valid_loss", "min"), Goal("valid_accuracy", "max"), Goal("parameters", "min")]
SCORES = st.one_of(st.none(), st.just(float("nan")), st.integers(0, 3).map(float))


def trials_of(scores: Sequence[Sequence[float | None]]) -> list[TrialRecord]:
    names = [goal.metric for goal in GOALS]
    return [
        TrialRecord(number, "finished", scores=dict(zip(names, each, strict=True)))
        for number, each in enumerate(scores)
    ]


@given(st.lists(st.tuples(SCORES, SCORES, SCORES), max_size=30))
def test_the_front_has_all_trials_that_no_other_beats(
    scores: list[tuple[float | None, float | None, float | None]],
) -> None:
    records = trials_of(scores)

    def is_beaten(one: TrialRecord) -> bool:
        mine = one.costs(GOALS)
        others = [each.costs(GOALS) for each in records]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in others
        )

    able = [each for each in records if max(each.costs(GOALS)) < float("inf")]
    assert pareto_front(records, GOALS) == [each for each in able if not is_beaten(each)]


def test_the_best_trained_to_its_end_and_ties_go_by_the_other_goals() -> None:
    finished = trials_of([(0.5, 0.8, 7.0), (0.3, 0.8, 7.0), (0.3, 0.9, 7.0), (None, 1.0, 1.0)])
    stopped = TrialRecord(4, "stopped", scores={"valid_loss": 0.1, "valid_accuracy": 1.0})
    best = best_trial([*finished, stopped], GOALS)
    assert best is not None
    assert best.number == 2
    # All of them are in the order that the best is the first of.
    assert [each.number for each in ranked([stopped, *finished], GOALS)] == [2, 1, 0, 4]
    assert best_trial([stopped], GOALS) is stopped
    assert best_trial([TrialRecord(0, "failed", scores={"valid_loss": 0.1})], GOALS) is None
