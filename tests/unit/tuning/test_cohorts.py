"""No order in which results come changes a decision, and every search comes to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.spec.search import Asha, Distribution, HyperBand, Pbt, SearchSpec
from batchtrain.tuning.cohorts import Cohorts, Decision, cost_at
from batchtrain.tuning.rungs import brackets, kept, rungs, survives
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.trials import Goal, TrialRecord

GOAL = Goal("valid_loss", "min")
EPOCHS = 9
SPACE = {"training.optimizer.lr": Distribution(log_uniform=(1e-4, 1.0))}


@dataclass(frozen=True)
class Fate:
    """What a trial would give: its score after each epoch; it fails or ends by itself in one."""

    scores: tuple[float, ...]
    fails_in: int | None = None
    ends_in: int | None = None


fates = st.builds(
    Fate,
    # Few values, so that there are ties.
    scores=st.tuples(*[st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, math.nan])] * EPOCHS),
    fails_in=st.none() | st.integers(1, EPOCHS),
    ends_in=st.none() | st.integers(1, EPOCHS),
)
schedulers = st.one_of(
    st.builds(Asha, kind=st.just("asha"), first_epochs=st.integers(1, 4), factor=st.integers(2, 4)),
    st.builds(
        HyperBand,
        kind=st.just("hyperband"),
        first_epochs=st.integers(1, 4),
        factor=st.integers(2, 4),
    ),
    st.builds(Pbt, kind=st.just("pbt"), interval_epochs=st.integers(1, 5)),
    st.just("none"),
)


def cohorts_for(scheduler: Any, trials: int) -> Cohorts:
    search = SearchSpec(space=SPACE, scheduler=scheduler)
    return cohorts_of(search, epochs=EPOCHS, trials=trials, goal=GOAL, seed=3)


def after(record: TrialRecord, fate: Fate, epochs: int, last: int) -> TrialRecord:
    """The trial once it has trained to a rung, or as far as it came."""
    for each in range(record.epochs + 1, epochs + 1):
        score = {"valid_loss": fate.scores[each - 1]}
        record = replace(record, epochs=each, scores=score, state="running")
        if each == fate.fails_in:
            return replace(record, state="failed")
        if each == fate.ends_in:
            record = replace(record, state="finished")
            break
    if record.epochs == epochs:
        record = replace(record, rungs={**record.rungs, epochs: record.scores})
    if record.state == "finished" or record.epochs == last:
        return replace(record, state="finished")
    return replace(record, state="paused")


Decided = dict[tuple[int, int], tuple[Decision, Any]]


def searched(scheduler: Any, trials: list[Fate], picks: list[int]) -> tuple[Decided, Any]:
    """A search in which the next of the things that can be done is any; what was decided, at last.

    A trial is asked about at the rung that it came to, or missed, and goes on once that is decided.
    """
    cohorts = cohorts_for(scheduler, len(trials))
    known: dict[int, TrialRecord] = {}
    goal_of = {number: cohorts.rungs_of(number)[0] for number in range(len(trials))}
    idle, waiting = list(range(len(trials))), list[int]()
    decided: Decided = {}
    turns = iter(picks)
    while idle or waiting:
        # Nothing to train and nothing decided would be a deadlock.
        assert idle, f"all of {waiting} wait for one another"
        number = idle.pop(next(turns, 0) % len(idle))
        last = cohorts.rungs_of(number)[-1]
        before = known.get(number, TrialRecord(number, values={"training.optimizer.lr": 0.1}))
        known[number] = after(before, trials[number], goal_of[number], last)
        if known[number].state != "finished":
            waiting.append(number)
        for each in list(waiting):
            rung = goal_of[each]
            decision = cohorts.decide(each, rung, known)
            if decision is None:
                continue
            heir = cohorts.heir(each, rung, known)
            decided[each, rung] = (decision, heir)
            waiting.remove(each)
            if decision == "stop":
                state = "failed" if known[each].state == "failed" else "stopped"
                known[each] = replace(known[each], state=state)
                continue
            all_rungs = cohorts.rungs_of(each)
            goal_of[each] = all_rungs[all_rungs.index(rung) + 1]
            values: Mapping[str, Any] = known[each].values if heir is None else heir.values
            known[each] = replace(known[each], state="running", values=values, epochs=rung)
            idle.append(each)
    return decided, known


@settings(deadline=None, max_examples=150)
@given(schedulers, st.lists(fates, min_size=1, max_size=12), st.lists(st.integers(0, 50)))
def test_no_order_of_arrival_changes_a_decision(
    scheduler: Any, trials: list[Fate], picks: list[int]
) -> None:
    decided, known = searched(scheduler, trials, picks)
    assert (decided, known) == searched(scheduler, trials, [])
    assert all(record.is_over for record in known.values())
    if scheduler == "none":
        assert not any(record.state == "stopped" for record in known.values())


def survivors_of_asha(scheduler: Asha, known: Mapping[int, TrialRecord]) -> dict[int, list[int]]:
    """The rule as one would write it down: at each rung from the first, in order of the numbers."""
    left, found = sorted(known), {}
    for rung in rungs(scheduler, EPOCHS)[:-1]:
        costs: list[float] = []
        through = []
        for number in left:
            cost = cost_at(known[number], rung, GOAL)
            assert cost is not None
            costs.append(cost)
            if survives(costs, scheduler.factor):
                through.append(number)
        left = found[rung] = through
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.builds(Asha, kind=st.just("asha"), factor=st.integers(2, 4)),
    st.lists(fates, min_size=1, max_size=20),
    st.lists(st.integers(0, 50)),
)
def test_asha_is_its_rule_in_the_order_of_the_numbers(
    scheduler: Asha, trials: list[Fate], picks: list[int]
) -> None:
    decided, known = searched(scheduler, trials, picks)
    through = survivors_of_asha(scheduler, known)
    for (number, rung), (decision, heir) in decided.items():
        if rung != EPOCHS:
            assert (decision == "go on") is (number in through[rung])
        assert heir is None


def test_a_trial_that_failed_counts_at_the_first_rung_that_it_missed() -> None:
    """Rungs 1, 4, 9 with a factor of 2; trial 1 fails in its third epoch, trial 2 ends in it."""
    trials = [
        Fate((0.5,) * 9),
        Fate((0.4,) * 9, fails_in=3),
        Fate((0.3, 0.3, 0.2, *[0.0] * 6), ends_in=3),
        Fate((0.1,) * 3 + (0.3,) * 6),
        Fate((0.15,) * 3 + (0.1,) * 6),
    ]
    scheduler = Asha(kind="asha", factor=4)
    decided, known = searched(scheduler, trials, [])
    at_rung_4 = {number: decision for (number, rung), (decision, _) in decided.items() if rung == 4}
    # 0.2 is what trial 2 ended with, so that 0.3 is not the best; trial 4 was stopped at rung 1.
    assert at_rung_4 == {0: "go on", 1: "stop", 3: "stop"}
    assert decided[4, 1][0] == "stop"
    assert [known[number].state for number in range(5)] == [
        "finished",
        "failed",
        "finished",
        "stopped",
        "stopped",
    ]


def test_hyperband_keeps_the_best_of_each_bracket() -> None:
    """Nine epochs, factor 3: brackets of 9, 5 and 3 trials, then the first anew for the others."""
    scheduler = HyperBand(kind="hyperband")
    trials = [Fate((0.1 + number / 100,) * EPOCHS) for number in range(20)]
    _, known = searched(scheduler, trials, [3, 1, 4, 1, 5, 9, 2, 6])
    assert [each.trials for each in brackets(EPOCHS, 3)] == [9, 5, 3]
    reached = [known[number].epochs for number in range(20)]
    assert reached == [9, 3, 3, *[1] * 6, 9, *[3] * 4, 9, 9, 9, 9, 1, 1]
    # A bracket is decided by its own trials alone.
    assert kept({9: 0.2, 10: 0.3}, 1) == {9}


def test_a_decision_waits_for_what_it_depends_on_and_for_nothing_else() -> None:
    cohorts = cohorts_for(Asha(kind="asha"), 3)
    paused = {
        number: TrialRecord(number, state="paused", epochs=1, rungs={1: {"valid_loss": cost}})
        for number, cost in enumerate([0.3, 0.2, 0.1])
    }
    assert cohorts.decide(2, 1, {2: paused[2]}) is None
    assert cohorts.decide(2, 1, {2: paused[2], 0: paused[0]}) is None
    assert cohorts.decide(0, 1, {0: paused[0]}) == "go on"
    assert cohorts.decide(2, 1, paused) == "go on"
    assert cohorts_for(HyperBand(kind="hyperband"), 3).decide(0, 1, {0: paused[0]}) is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, None),
        (TrialRecord(0, state="running", epochs=3), None),
        (TrialRecord(0, state="failed", epochs=3, scores={"valid_loss": 0.1}), math.inf),
        (TrialRecord(0, state="failed", rungs={4: {"valid_loss": 0.1}}), 0.1),
        (TrialRecord(0, state="finished", epochs=3, scores={"valid_loss": 0.1}), 0.1),
        (TrialRecord(0, state="paused", rungs={4: {"valid_loss": None}}), math.inf),
    ],
)
def test_what_a_trial_counts_as_at_a_rung(record: TrialRecord | None, expected: Any) -> None:
    """A failure after a rung changes nothing there: whoever was compared with it did not wait."""
    assert cost_at(record, 4, GOAL) == expected
