"""ASHA and PBT beside random search at the same budget: `python -m benchmarks.search_quality`.

What is tried, and what would count as shown, was written down and committed before the first run:
see search_quality.md, whose last tables this command writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchtrain.spec.search import Asha, HyperBand, Pbt, SearchSpec
from batchtrain.tuning.proposals import make_proposer
from batchtrain.tuning.rungs import brackets
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.search import Search, SearchRules, Shape
from batchtrain.tuning.space import draw
from batchtrain.tuning.trials import Goal, TrialRecord, best_trial
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit
from benchmarks.search_objectives import OBJECTIVES, PBT_TOY, Objective, Seen, State

__all__ = [
    "Found",
    "Trainings",
    "holm",
    "main",
    "run_asha",
    "run_hyperband",
    "run_pbt",
    "run_random",
    "searched",
]


MARK = "### What the second run found\n"
GOAL = Goal("valid_loss", "min")
ALPHA = 0.05
SEEDS = 20
RANDOM_TRIALS = 16
POPULATION = 10
ASHA = Asha(kind="asha", first_epochs=1, factor=4)
HYPERBAND = HyperBand(kind="hyperband", first_epochs=1, factor=4)
PBT = Pbt(kind="pbt", interval_epochs=5, quantile=0.25, resample=0.25)

ONE_TRIAL = Shape("a function", size=1, is_pack=True)
"""A unit is one trial, and its state is kept for whoever goes on from it."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        regret: Of the trial that it would choose: its model's, without noise.
        epochs: That were trained in all.
        trials: That began.
    """

    regret: float
    epochs: int
    trials: int


@dataclass(frozen=True)
class _Course:
    """What a trial is between two epochs, which another trial may go on from.

    Attributes:
        state: What training changes.
        best_epoch: The one with the smallest loss so far; 0 before the first.
        best: What was seen of it.
    """

    state: State
    best_epoch: int = 0
    best: Seen | None = None


class Trainings:
    """Carries out the units of a search: functions in the place of trainings.

    Attributes:
        epochs: That were trained so far.
        regrets: Of each trial, that of its best epoch so far.
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        self.epochs = 0
        self.regrets: dict[int, float] = {}
        self._objective = objective
        self._seed = seed
        self._courses: dict[tuple[str, int], _Course] = {}

    def __call__(self, unit: Unit) -> Outcome:
        """Train the trials of a unit, as `batchtrain tune` trains a pack."""
        return Outcome(tuple(self._train(member, unit) for member in unit.members))

    def _train(self, member: Member, unit: Unit) -> MemberOutcome:
        course = _Course(self._objective.start)
        if member.source:
            course = self._courses[member.source, member.parent]
        for epoch in range(unit.first_epoch + 1, unit.last_epoch + 1):
            seen = self._objective.train(
                course.state, member.values, epoch, seed=self._seed, number=member.number
            )
            course = replace(course, state=seen.state)
            if course.best is None or seen.loss < course.best.loss:
                course = replace(course, best=seen, best_epoch=epoch)
            self.epochs += 1
        if course.best is None:
            raise AssertionError("a unit has an epoch at least")
        self._courses[unit.key, member.number] = course
        self.regrets[member.number] = course.best.regret
        return MemberOutcome(
            member.number,
            "finished" if unit.last_epoch == unit.full_epochs else "paused",
            epochs=unit.last_epoch,
            best_epoch=course.best_epoch,
            scores={GOAL.metric: course.best.loss},
            rows=unit.last_epoch,
            latest={GOAL.metric: seen.loss},
        )


def run_random(objective: Objective, *, seed: int, trials: int) -> Found:
    """Random search: so many trials to their end."""
    return _found(objective, "none", seed=seed, trials=trials)


def run_asha(objective: Objective, *, seed: int, max_epochs: int, scheduler: Asha = ASHA) -> Found:
    """ASHA over the same trials in the same order, as many as the budget takes."""
    return _found(objective, scheduler, seed=seed, trials=max_epochs, max_epochs=max_epochs)


def run_hyperband(objective: Objective, *, seed: int, scheduler: HyperBand = HYPERBAND) -> Found:
    """HyperBand, each of its brackets once."""
    made = brackets(objective.epochs, scheduler.factor, scheduler.first_epochs)
    trials = sum(each.trials for each in made)
    return _found(objective, scheduler, seed=seed, trials=trials)


def run_pbt(objective: Objective, *, seed: int, members: int, scheduler: Pbt = PBT) -> Found:
    """PBT that begins with the trials of random search."""
    return _found(objective, scheduler, seed=seed, trials=members)


def _found(objective: Objective, scheduler: Any, *, seed: int, **limits: int) -> Found:
    records, trainings = searched(objective, scheduler, seed=seed, **limits)
    best = best_trial(records, [GOAL])
    if best is None:
        raise AssertionError("no trial of these functions fails")
    return Found(trainings.regrets[best.number], trainings.epochs, len(records))


def searched(
    objective: Objective, scheduler: Any, *, seed: int, trials: int, max_epochs: int | None = None
) -> tuple[list[TrialRecord], Trainings]:
    """Search as `batchtrain tune` does; an epoch counts as a row, for `max_rows`."""
    spec = SearchSpec(
        space=dict(objective.space), scheduler=scheduler, trials=trials, max_rows=max_epochs
    )
    rules = SearchRules(
        [GOAL],
        make_proposer(spec, seed, [GOAL]),
        cohorts_of(spec, epochs=objective.epochs, trials=trials, goal=GOAL, seed=seed),
        shape=lambda _values: ONE_TRIAL,
        rows=lambda _values: objective.epochs,
        trials=trials,
        max_rows=spec.max_rows,
    )
    search, trainings = Search(rules), Trainings(objective, seed)
    while (unit := search.next_unit()) is not None:
        search.finished(unit, trainings(unit))
    if not search.is_over():
        raise AssertionError("expected a search with nothing to wait for to be over")
    return search.trials(), trainings


def rays_asha(objective: Objective, *, seed: int, max_epochs: int, workers: int = 8) -> Found:
    """Ray's ASHAScheduler on the same trials, asked in the order in which epochs would arrive.

    No cluster: the class alone, with so many trials that take turns, an epoch each.
    """
    from types import SimpleNamespace

    from ray.tune.schedulers import ASHAScheduler

    scheduler: Any = ASHAScheduler(
        metric="loss",
        mode="min",
        max_t=objective.epochs,
        grace_period=ASHA.first_epochs,
        reduction_factor=ASHA.factor,
    )
    running: list[tuple[int, Any]] = []
    records: dict[int, TrialRecord] = {}
    regrets: dict[int, float] = {}
    used = 0
    while True:
        to_come = sum(objective.epochs - records[number].epochs for number, _ in running)
        while len(running) < workers and used + to_come + objective.epochs <= max_epochs:
            number = len(records)
            trial = SimpleNamespace(trial_id=str(number))
            scheduler.on_trial_add(None, trial)
            records[number] = TrialRecord(number, values=draw(objective.space, seed, number))
            running.append((number, trial))
            to_come += objective.epochs
        if not running:
            break
        for number, trial in list(running):
            record, epoch = records[number], records[number].epochs + 1
            seen = objective.train((), record.values, epoch, seed=seed, number=number)
            used += 1
            best = record.scores.get(GOAL.metric)
            if best is None or seen.loss < best:
                best, regrets[number] = seen.loss, seen.regret
            records[number] = replace(record, epochs=epoch, scores={GOAL.metric: best})
            result = {"training_iteration": epoch, "loss": best}
            if scheduler.on_trial_result(None, trial, result) == "STOP":
                running.remove((number, trial))
    chosen = best_trial(list(records.values()), [GOAL])
    if chosen is None:
        raise AssertionError("no trial of these functions fails")
    return Found(regrets[chosen.number], used, len(records))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for their number (Holm, 1979).

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, value) in enumerate(sorted(p_values.items(), key=lambda each: each[1])):
        highest = max(highest, min(1.0, value * (len(p_values) - place)))
        adjusted[name] = highest
    return adjusted


def measured(seeds: Sequence[int], *, with_ray: bool) -> dict[str, dict[str, list[Found]]]:
    """By function and way to search, one search for each seed."""
    found: dict[str, dict[str, list[Found]]] = {}
    for name, curve in OBJECTIVES.items():
        budget = RANDOM_TRIALS * curve.epochs
        found[name] = {
            "random": [run_random(curve, seed=seed, trials=RANDOM_TRIALS) for seed in seeds],
            "asha": [run_asha(curve, seed=seed, max_epochs=budget) for seed in seeds],
            "hyperband": [run_hyperband(curve, seed=seed) for seed in seeds],
        }
        if with_ray:
            found[name]["Ray's asha"] = [
                rays_asha(curve, seed=seed, max_epochs=budget) for seed in seeds
            ]
    found["toy"] = {
        "random": [run_random(PBT_TOY, seed=seed, trials=POPULATION) for seed in seeds],
        "pbt": [run_pbt(PBT_TOY, seed=seed, members=POPULATION) for seed in seeds],
    }
    return found


JUDGED = {"branin": "asha", "hartmann-6": "asha", "toy": "pbt"}


def summary(found: Mapping[str, Mapping[str, Sequence[Found]]]) -> str:
    """The tables of the page."""
    from scipy.stats import wilcoxon  # type: ignore[import-untyped]

    rows = ["| function | search | regret, median (smallest to largest) | trials | epochs |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for name, ways in found.items():
        for way, several in ways.items():
            regrets = [each.regret for each in several]
            spread = f"{statistics.median(regrets):.5f} ({min(regrets):.5f} to {max(regrets):.5f})"
            trials = statistics.fmean(each.trials for each in several)
            epochs = statistics.fmean(each.epochs for each in several)
            rows.append(f"| {name} | {way} | {spread} | {trials:.0f} | {epochs:.0f} |")
    p_values, better = {}, {}
    for name, way in JUDGED.items():
        pairs = list(zip(found[name][way], found[name]["random"], strict=True))
        differences = [one.regret - other.regret for one, other in pairs]
        better[name] = sum(each < 0 for each in differences)
        # Nothing but equals is no sign of anything.
        are_equal = not any(differences)
        p_values[name] = (
            1.0 if are_equal else float(wilcoxon(differences, alternative="less").pvalue)
        )
    adjusted = holm(p_values)
    rows += ["", "| function | search | better than random on | p | adjusted | shown |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for name, way in JUDGED.items():
        seeds = len(found[name][way])
        shown = "yes" if adjusted[name] < ALPHA else "no"
        rows.append(
            f"| {name} | {way} | {better[name]} of {seeds} seeds | {p_values[name]:.2g} | "
            f"{adjusted[name]:.2g} | {shown} |"
        )
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search all functions with all seeds; print what was found, and put it into the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_quality", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many; the first is 0")
    parser.add_argument("--with-ray", action="store_true", help="Ray's ASHAScheduler too")
    parser.add_argument("--json", type=Path, help="write every search to this file")
    parser.add_argument("--page", type=Path, help="put the tables at the end of this page")
    asked = parser.parse_args(arguments)
    found = measured(range(asked.seeds), with_ray=asked.with_ray)
    text = summary(found)
    print(text)
    if asked.json:
        document = {
            name: {way: [vars(each) for each in several] for way, several in ways.items()}
            for name, ways in found.items()
        }
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if asked.page:
        page = asked.page.read_text(encoding="utf-8")
        asked.page.write_text(f"{page.partition(MARK)[0]}{MARK}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
