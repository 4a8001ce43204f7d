"""The table of a search and its best trial as a spec, of searches in which nothing is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.spec.search import Distribution, Objective, Pbt, SearchSpec
from batchtrain.spec.training import EarlyStopping, TrainingSpec
from batchtrain.tuning.best import best_values
from batchtrain.tuning.goals import goals_of
from batchtrain.tuning.search import Search
from batchtrain.tuning.table import table_document
from batchtrain.tuning.trials import Goal
from batchtrain.tuning.work import MemberOutcome, Outcome, Unit
from tests.support.searches import EPOCH_ROWS, EPOCHS, LR, SPACE, Fate, rules_for, searched

# ---- the best of a population

fates = st.lists(
    st.builds(Fate, fails_in=st.sampled_from([None, None, *range(1, EPOCHS + 1)])),
    min_size=2,
    max_size=8,
)


def trained_with(number: int, units: list[Unit]) -> list[float]:
    """The learning rate of each epoch that is in a trial's weights, looked up from its end."""
    by_key = {unit.key: unit for unit in units}
    unit = max((each for each in units if number in each.numbers), key=lambda each: each.last_epoch)
    rates: list[float] = []
    while True:
        member = unit.members[unit.numbers.index(number)]
        rates = [member.values[LR]] * (unit.last_epoch - unit.first_epoch) + rates
        if not member.source:
            return rates
        unit, number = by_key[member.source], member.parent


@settings(max_examples=60)
@given(fates, st.integers(1, 4))
def test_the_spec_of_a_member_has_the_values_that_its_weights_were_trained_with(
    trials: list[Fate], interval: int
) -> None:
    rules = rules_for(trials, Pbt(kind="pbt", interval_epochs=interval, resample=0.5))
    found = searched(rules, trials)
    for record in found.search.trials():
        if record.state != "finished":
            continue
        values = best_values(record.number, found.search)
        changes = {each["epoch"]: each["lr"] for each in values.pop("training.changes", [])}
        rate, rates = values[LR], []
        for epoch in range(EPOCHS):
            rate = changes.get(epoch, rate)
            rates.append(rate)
        assert rates == trained_with(record.number, found.units)


def test_a_trial_that_nobody_took_over_is_its_values() -> None:
    trials = [Fate()] * 3
    found = searched(rules_for(trials, "asha"), trials)
    assert best_values(1, found.search) == found.search.records[1].values


# ---- the table


def scored(number: int, cost: float | None, size: float, **other: Any) -> MemberOutcome:
    scores = {"valid_loss": cost, "parameters": size}
    rows = EPOCHS * EPOCH_ROWS
    usual: dict[str, Any] = {"epochs": EPOCHS, "best_epoch": 3, "scores": scores, "rows": rows}
    return MemberOutcome(number, **{"state": "finished", **usual, **other})


def test_the_table_tells_of_all_trials_and_no_number_in_it_is_not_finite() -> None:
    trials = [Fate(), Fate(shape="alone"), Fate(), Fate(), Fate(), Fate(shape="alone")]
    rules = rules_for(trials)
    goals = (Goal("valid_loss", "min"), Goal("parameters", "min"))
    search = Search(rules)
    outcomes = {
        0: scored(0, 0.5, 30.0),
        1: scored(1, 0.2, 70.0),
        2: scored(2, math.nan, 10.0),
        3: MemberOutcome(3, "failed", error="it broke"),
        4: scored(4, 0.5, 20.0),
        5: scored(5, None, 5.0),
    }
    for unit in iter(search.next_unit, None):
        search.finished(unit, Outcome(tuple(outcomes[number] for number in unit.numbers)))
    document = table_document("made up", rules.spec, goals, search, {"links": {}})
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert (document["best"], document["front"]) == (1, [1, 4])
    assert document["rows"] == 5 * EPOCHS * EPOCH_ROWS
    assert document["packed"] == {
        "packs": 2,
        "trials": 4,
        "alone": 2,
        "why_not": {"it is what this trial wants": 2},
    }
    assert document["trials"][2]["scores"] == {"valid_loss": None, "parameters": 10.0}
    assert document["trials"][3]["error"] == "it broke"
    assert document["best_run"] == {"links": {}}
    assert document["paths"] == list(SPACE)


def test_of_one_goal_there_is_no_front_and_of_failures_no_best() -> None:
    trials = [Fate(fails_in=1)] * 2
    found = searched(rules_for(trials), trials)
    assert (found.document["best"], found.document["front"]) == (None, [])


def test_what_the_time_was_up_for_counts_as_neither_packed_nor_alone() -> None:
    trials = [Fate(shape="alone")] * 4 + [Fate(shape="large")] * 2
    found = searched(rules_for(trials), trials, skipped_from=1)
    assert [each["state"] for each in found.document["trials"]] == ["finished"] + ["skipped"] * 5
    assert found.document["packed"] == {
        "packs": 0,
        "trials": 0,
        "alone": 1,
        "why_not": {"it is what this trial wants": 1},
    }


# ---- what becomes best

STOPPED_BY = TrainingSpec(early_stopping=EarlyStopping(metric="valid_f1_macro"))
GOALS: list[tuple[Any, TrainingSpec, Mapping[str, str]]] = [
    (None, TrainingSpec(), {"valid_loss": "min"}),
    (None, STOPPED_BY, {"valid_f1_macro": "max"}),
    ("valid_r2", STOPPED_BY, {"valid_r2": "max"}),
    ("valid_rmse", TrainingSpec(), {"valid_rmse": "min"}),
    (
        (Objective(metric="valid_accuracy"), Objective(metric="parameters")),
        TrainingSpec(),
        {"valid_accuracy": "max", "parameters": "min"},
    ),
    ((Objective(metric="parameters", mode="max"),), TrainingSpec(), {"parameters": "max"}),
]


@pytest.mark.parametrize(("metric", "training", "expected"), GOALS)
def test_goals_have_the_direction_of_their_metric(
    metric: Any, training: TrainingSpec, expected: Mapping[str, str]
) -> None:
    space = {LR: Distribution(uniform=(0.0, 1.0))}
    goals = goals_of(SearchSpec(space=space, metric=metric), training)
    assert {goal.metric: goal.mode for goal in goals} == expected
