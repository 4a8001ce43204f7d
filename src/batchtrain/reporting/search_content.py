"""All that the page of a search shows, as plain frozen data, from the document of its table."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from batchtrain.reporting.wording import count, shortened
from batchtrain.spec.search import rank_key

__all__ = ["GoalRow", "PackedRow", "SearchContent", "TrialRow"]

MOST_ERROR = 300
MOST_NUMBERS = 12


@dataclass(frozen=True)
class GoalRow:
    """One number that is to become as good as it can; `mode` is `min` or `max`."""

    metric: str
    mode: str

    def cost(self, value: float | None) -> float:
        """A value as a number of which less is better; infinity for none and for NaN."""
        if value is None or math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value


@dataclass(frozen=True)
class TrialRow:
    """One trial, with the fields of a line of the table; `rungs` are by their epochs."""

    number: int
    state: str = "finished"
    values: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    best_epoch: int = 0
    scores: Mapping[str, float | None] = field(default_factory=dict)
    rungs: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    rows: int = 0
    ended_by: str = ""
    error: str = ""
    pack: str = ""
    parent: int | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TrialRow:
        """Read a line; what it has besides is left out."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        rungs = values.get("rungs") or {}
        values["rungs"] = {int(epochs): dict(rungs[epochs]) for epochs in sorted(rungs, key=int)}
        return cls(**values)


@dataclass(frozen=True)
class PackedRow:
    """How many trials were trained together, in how many packs, and why the others were not."""

    packs: int = 0
    trials: int = 0
    alone: int = 0
    why_not: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchContent:
    """Everything that the page shows; the same content always renders to the same bytes.

    Attributes:
        name: Of the spec.
        goals: What the search made as good as it could; the first decides on the best.
        paths: The dotted keys that were tried.
        distributions: Of each of them, as the spec has it.
        algorithm: `random`, `grid` or `tpe`.
        scheduler: In words; empty where no trial could be stopped early.
        trials: By number.
        best: The number of the best one; None where none has a score.
        front: The numbers of those that no other is better than in all goals.
        packed: What was trained together.
        rows: The rows trained, over all trials.
        links: What came of the best trial: a word, and where it lies.
        metrics: The metrics of the run of the best trial, by name.
    """

    name: str
    goals: Sequence[GoalRow]
    paths: Sequence[str]
    distributions: Mapping[str, Mapping[str, Any]]
    algorithm: str = ""
    scheduler: str = ""
    trials: Sequence[TrialRow] = ()
    best: int | None = None
    front: Sequence[int] = ()
    packed: PackedRow = PackedRow()
    rows: int = 0
    links: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SearchContent:
        """Read the document of a search.

        Args:
            document: `name`, `goals`, `paths`, `distributions`, `algorithm`, `scheduler`,
                `trials`, `best`, `front`, `packed`, `rows`, and `best_run`: None, or `links`
                (a word to a path from the page, or an address) and `metrics` (a name to a number).
        """
        run = document.get("best_run") or {}
        trials = [TrialRow.from_json(each) for each in document["trials"]]
        return cls(
            name=str(document["name"]),
            goals=[GoalRow(each["metric"], each["mode"]) for each in document["goals"]],
            paths=list(document["paths"]),
            distributions=dict(document.get("distributions") or {}),
            algorithm=str(document.get("algorithm") or ""),
            scheduler=_scheduler_words(document.get("scheduler")),
            trials=sorted(trials, key=lambda each: each.number),
            best=document.get("best"),
            front=list(document.get("front") or ()),
            packed=PackedRow(**(document.get("packed") or {})),
            rows=int(document.get("rows") or 0),
            links=dict(run.get("links") or {}),
            metrics=dict(run.get("metrics") or {}),
        )

    @property
    def counts(self) -> Counter[str]:
        """The trials by their state."""
        return Counter(each.state for each in self.trials)

    @property
    def best_trial(self) -> TrialRow | None:
        """The best one."""
        return next((each for each in self.trials if each.number == self.best), None)

    @property
    def has_changed_values(self) -> bool:
        """Whether trials went on with other values, so that those that are shown are the last."""
        return self.scheduler.startswith("pbt")

    def cost(self, trial: TrialRow, goal: int = 0) -> float:
        """A trial's score as a number of which less is better; infinity where it has none."""
        if trial.state == "failed":
            return math.inf
        wanted = self.goals[goal]
        return wanted.cost(trial.scores.get(wanted.metric))

    @property
    def scored(self) -> list[TrialRow]:
        """The trials with a finite score, by number."""
        return [each for each in self.trials if math.isfinite(self.cost(each))]

    @property
    def ranked(self) -> list[TrialRow]:
        """All trials, best first: see `rank_key`."""
        places = range(len(self.goals))

        def order(trial: TrialRow) -> tuple[Any, ...]:
            costs = [self.cost(trial, place) for place in places]
            return rank_key(trial.number, trial.state, costs)

        return sorted(self.trials, key=order)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Each error and the trials that it ended; those that happened most come first."""
        found: dict[str, list[int]] = {}
        for trial in self.trials:
            if trial.state == "failed":
                error = shortened(trial.error or "no reason is known", MOST_ERROR)
                found.setdefault(error, []).append(trial.number)
        most = sorted(found.items(), key=lambda each: (-len(each[1]), each[1]))
        return [(error, _listed(numbers)) for error, numbers in most]


def _listed(numbers: Sequence[int]) -> str:
    """Some numbers, and how many more there are."""
    some = ", ".join(str(each) for each in numbers[:MOST_NUMBERS])
    more = len(numbers) - MOST_NUMBERS
    return f"{some} and {count(more)} more" if more > 0 else some


def _scheduler_words(scheduler: Any) -> str:
    """A scheduler and its settings.

    Example:
        >>> _scheduler_words({"kind": "asha", "first_epochs": 1, "factor": 4})
        'asha (first_epochs 1, factor 4)'
    """
    if not scheduler or scheduler == "none":
        return ""
    if isinstance(scheduler, str):
        return scheduler
    settings = ", ".join(
        f"{name} {json.dumps(value)}" for name, value in scheduler.items() if name != "kind"
    )
    kind = str(scheduler.get("kind", ""))
    return f"{kind} ({settings})" if settings else kind
