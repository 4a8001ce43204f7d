"""ASHA and PBT beside random search at the same budget: `python -m benchmarks.search_quality`.

What is tried, and what would count as shown, was written down and committed before the first run:
see search_quality.md, whose last part this command writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchtrain.spec.search import Asha, HyperBand, Pbt, SearchSpec
from batchtrain.tuning.cohorts import Cohorts
from batchtrain.tuning.population import drawn
from batchtrain.tuning.rungs import brackets
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.trials import Goal, TrialRecord, best_trial
from benchmarks.search_objectives import OBJECTIVES, PBT_TOY, Objective, Seen, State, shares

__all__ = ["Found", "Search", "holm", "main", "run_asha", "run_hyperband", "run_pbt", "run_random"]


MARK = "## What was found\n"
GOAL = Goal("valid_loss", "min")
ALPHA = 0.05
SEEDS = 20
RANDOM_TRIALS = 16
POPULATION = 10
ASHA = Asha(kind="asha", first_epochs=1, factor=4)
HYPERBAND = HyperBand(kind="hyperband", first_epochs=1, factor=4)
PBT = Pbt(kind="pbt", interval_epochs=5, quantile=0.25, resample=0.25)


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


@dataclass
class Search:
    """A search in one process that follows the rules of `batchtrain tune`.

    Of all that can be done, the trial of the smallest number is trained up to its next rung. No
    trial begins whose epochs could bring their sum above `max_epochs`.
    """

    objective: Objective
    cohorts: Cohorts
    seed: int
    trials: int
    max_epochs: int | None = None
    known: dict[int, TrialRecord] = field(default_factory=dict)
    epochs: int = 0
    _aims: dict[int, int] = field(default_factory=dict)
    _states: dict[tuple[int, int], State] = field(default_factory=dict)
    _regrets: dict[int, float] = field(default_factory=dict)

    def run(self) -> Found:
        """Search to the end."""
        while (number := self._next()) is not None:
            self._train(number)
        best = best_trial(list(self.known.values()), [GOAL])
        if best is None:
            raise AssertionError("no trial of these functions fails")
        return Found(self._regrets[best.number], self.epochs, len(self.known))

    def _next(self) -> int | None:
        """The trial to train now; None at the end."""
        for number, record in sorted(self.known.items()):
            if record.is_over:
                continue
            decision = self.cohorts.decide(number, record.epochs, self.known)
            if decision == "stop":
                self.known[number] = replace(record, state="stopped")
            elif decision == "go on":
                self._go_on(number, record)
                return number
        begun = len(self.known)
        if begun == self.trials or not self._may_begin():
            return None
        values = _values(self.objective, self.seed, begun)
        self.known[begun] = TrialRecord(begun, values=values)
        self._aims[begun] = self.cohorts.rungs_of(begun)[0]
        self._states[begun, 0] = self.objective.start
        return begun

    def _may_begin(self) -> bool:
        if self.max_epochs is None:
            return True
        waiting = [each for each in self.known.values() if not each.is_over]
        to_come = sum(self.objective.epochs - each.epochs for each in waiting)
        return self.epochs + to_come + self.objective.epochs <= self.max_epochs

    def _go_on(self, number: int, record: TrialRecord) -> None:
        rungs = self.cohorts.rungs_of(number)
        self._aims[number] = rungs[rungs.index(record.epochs) + 1]
        heir = self.cohorts.heir(number, record.epochs, self.known)
        if heir is not None and heir.parent != number:
            at = record.epochs
            self._states[number, at] = self._states[heir.parent, at]
        if heir is not None:
            self.known[number] = replace(record, values=dict(heir.values), parent=heir.parent)

    def _train(self, number: int) -> None:
        record, aim = self.known[number], self._aims[number]
        state = self._states[number, record.epochs]
        for epoch in range(record.epochs + 1, aim + 1):
            seen = self.objective.train(state, record.values, epoch, seed=self.seed, number=number)
            state = seen.state
            record = self._seen(record, epoch, seen)
        self._states[number, aim] = state
        rungs = {**record.rungs, aim: record.scores}
        is_last = aim == self.cohorts.rungs_of(number)[-1]
        self.known[number] = replace(record, rungs=rungs, state="finished" if is_last else "paused")

    def _seen(self, record: TrialRecord, epoch: int, seen: Seen) -> TrialRecord:
        self.epochs += 1
        before = record.scores.get(GOAL.metric)
        if before is not None and before <= seen.loss:
            return replace(record, epochs=epoch)
        self._regrets[record.number] = seen.regret
        scores = {GOAL.metric: seen.loss}
        return replace(record, epochs=epoch, best_epoch=epoch, scores=scores)


def run_random(objective: Objective, *, seed: int, trials: int) -> Found:
    """Random search: so many trials to their end."""
    return _search(objective, "none", seed=seed, trials=trials).run()


def run_asha(objective: Objective, *, seed: int, max_epochs: int, scheduler: Asha = ASHA) -> Found:
    """ASHA over the same trials in the same order, as many as the budget takes."""
    return _search(objective, scheduler, seed=seed, trials=max_epochs, max_epochs=max_epochs).run()


def run_hyperband(objective: Objective, *, seed: int, scheduler: HyperBand = HYPERBAND) -> Found:
    """HyperBand, each of its brackets once."""
    made = brackets(objective.epochs, scheduler.factor, scheduler.first_epochs)
    trials = sum(each.trials for each in made)
    return _search(objective, scheduler, seed=seed, trials=trials).run()


def run_pbt(objective: Objective, *, seed: int, members: int, scheduler: Pbt = PBT) -> Found:
    """PBT that begins with the trials of random search."""
    return _search(objective, scheduler, seed=seed, trials=members).run()


def _search(
    objective: Objective, scheduler: Any, *, seed: int, trials: int, max_epochs: int | None = None
) -> Search:
    spec = SearchSpec(space=dict(objective.space), scheduler=scheduler)
    cohorts = cohorts_of(spec, epochs=objective.epochs, trials=trials, goal=GOAL, seed=seed)
    return Search(objective, cohorts, seed, trials, max_epochs)


def _values(objective: Objective, seed: int, number: int) -> dict[str, Any]:
    at = shares(len(objective.space), seed, "values", number)
    pairs = zip(objective.space.items(), at, strict=True)
    return {name: drawn(distribution, share) for (name, distribution), share in pairs}


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
            records[number] = TrialRecord(number, values=_values(objective, seed, number))
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
