"""The best trial as a spec: what it says is how the trial was in fact trained."""

from __future__ import annotations

from typing import Any

from batchtrain.spec.search import Distribution, Pbt, SearchSpec
from batchtrain.tuning.best import best_values
from batchtrain.tuning.proposals import make_proposer
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.search import Search, SearchRules, Shape
from batchtrain.tuning.trials import Goal
from batchtrain.tuning.work import MemberOutcome, Outcome, Unit

LR, DROPOUT = "training.optimizer.lr", "model.dropout"
GOAL = Goal("valid_loss", "min")
EPOCHS, TRIALS = 10, 8
PBT = Pbt(kind="pbt", interval_epochs=2, resample=0.5)

Diary = tuple[tuple[float, float], ...]
"""The learning rate and the dropout of each epoch."""


def test_the_values_of_a_member_of_a_population_are_those_of_all_epochs_it_descends_from() -> None:
    diaries: dict[tuple[str, int], Diary] = {}

    def trained(unit: Unit) -> Outcome:
        outcomes = []
        for member in unit.members:
            diary = diaries[member.source, member.parent] if member.source else ()
            now = (member.values[LR], member.values[DROPOUT])
            diaries[unit.key, member.number] = diary = (
                *diary,
                *[now] * (unit.last_epoch - unit.first_epoch),
            )
            assert len(diary) == unit.last_epoch
            # Who is good changes, so that copies have copies.
            cost = sum(lr * dropout for lr, dropout in diary[-2:])
            state: Any = "finished" if unit.last_epoch == EPOCHS else "paused"
            scores = {"valid_loss": cost}
            outcomes.append(
                MemberOutcome(member.number, state, unit.last_epoch, unit.last_epoch, scores)
            )
        last.update(dict.fromkeys(unit.numbers, unit.key))
        return Outcome(tuple(outcomes))

    last: dict[int, str] = {}
    search = new_search(PBT, seed=3)
    while (unit := search.next_unit()) is not None:
        search.finished(unit, trained(unit))
    changes_of = {}
    for number, key in last.items():
        values = best_values(number, search)
        told: list[tuple[float, float]] = []
        changes = {each["epoch"]: each for each in values.get("training.changes", [])}
        lr, dropout = values[LR], values[DROPOUT]
        for epoch in range(EPOCHS):
            lr = changes.get(epoch, {}).get("lr", lr)
            dropout = changes.get(epoch, {}).get("dropout", dropout)
            told.append((lr, dropout))
        assert tuple(told) == diaries[key, number]
        changes_of[number] = changes
    assert max(map(len, changes_of.values())) >= 2
    descents = [each.parent for heirs in search.descent.values() for each in heirs]
    assert len(set(descents)) > 2


def test_a_trial_without_a_past_is_its_own_values() -> None:
    search = new_search("none", seed=3)
    unit = search.next_unit()
    assert unit is not None
    assert best_values(2, search) == search.records[2].values


def new_search(scheduler: Any, *, seed: int) -> Search:
    space = {LR: Distribution(log_uniform=(1e-4, 1.0)), DROPOUT: Distribution(uniform=(0.0, 0.5))}
    spec = SearchSpec(space=space, scheduler=scheduler, trials=TRIALS)
    cohorts = cohorts_of(spec, epochs=EPOCHS, trials=TRIALS, goal=GOAL, seed=seed)
    rules = SearchRules(
        [GOAL],
        make_proposer(spec, seed, [GOAL]),
        cohorts,
        shape=lambda _values: Shape("one", size=3, is_pack=True),
        rows=lambda _values: EPOCHS,
        trials=TRIALS,
    )
    return Search(rules)
