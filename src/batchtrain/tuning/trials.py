"""What is known of each trial: a line of the table. All of it follows from spec and data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from batchtrain.spec.search import rank_key

__all__ = ["Goal", "TrialRecord", "TrialState", "best_trial", "pareto_front", "ranked"]

TrialState = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "skipped"]
"""Before it begins, in a unit that is at work, between two rungs, after its last epoch, ended at a
rung by the scheduler, ended by an error, never begun since the time was up."""


@dataclass(frozen=True)
class Goal:
    """One number that is to become as good as it can.

    Attributes:
        metric: Such as `valid_loss`.
        mode: Whether less or more is better.
    """

    metric: str
    mode: Literal["min", "max"]

    def cost(self, value: float | None) -> float:
        """A value as a number of which less is better; infinity for none and for NaN."""
        if value is None or math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value


@dataclass(frozen=True)
class TrialRecord:
    """One trial as far as it came.

    Attributes:
        number: Of the trial; the first is 0.
        state: See `TrialState`.
        values: By dotted key of the spec, those in force last; keys whose conditions do not hold
            are left out.
        epochs: Those that are over.
        best_epoch: The one whose weights are the model, as in any run; 0 before the first.
        scores: Each goal's metric after `best_epoch`; None where there is none.
        rungs: The scores after each rung that was reached, by its epochs.
        rows: Rows trained, over all epochs.
        ended_by: As `TrainState.ended_by`; `scheduler` where it was stopped at a rung.
        error: Why it failed, as a sentence.
        pack: The pack that it was trained in; empty where it was a run of its own.
        parent: The trial whose state it took over last, for population-based training.
    """

    number: int
    state: TrialState = "waiting"
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

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in {"finished", "stopped", "failed", "skipped"}

    def costs(self, goals: Sequence[Goal]) -> tuple[float, ...]:
        """Its scores, each as a number of which less is better; infinity where it failed."""
        if self.state in {"failed", "skipped"}:
            return (math.inf,) * len(goals)
        return tuple(goal.cost(self.scores.get(goal.metric)) for goal in goals)

    def to_json(self) -> dict[str, Any]:
        """The line of the table; numbers that are not finite are null."""
        document = asdict(self)
        document["scores"] = _finite(self.scores)
        document["rungs"] = {str(epochs): _finite(found) for epochs, found in self.rungs.items()}
        return document


def best_trial(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> TrialRecord | None:
    """The first of those that are `ranked`; None where none has a score."""
    return next(iter(ranked(records, goals)), None)


def ranked(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> list[TrialRecord]:
    """The trials that have a score, best first: see `rank_key`."""
    able = [each for each in records if each.costs(goals)[0] < math.inf]
    return sorted(able, key=lambda each: rank_key(each.number, each.state, each.costs(goals)))


def pareto_front(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> list[TrialRecord]:
    """The trials that no other is at least as good as in all goals and better in one, by number."""
    costs = {each.number: each.costs(goals) for each in records}
    able = [each for each in records if all(cost < math.inf for cost in costs[each.number])]
    front: list[TrialRecord] = []
    # Whoever dominates a trial comes before it, and is in the front or dominated by one that is.
    for each in sorted(able, key=lambda each: costs[each.number]):
        if not any(_dominates(costs[other.number], costs[each.number]) for other in front):
            front.append(each)
    return sorted(front, key=lambda each: each.number)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _finite(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in scores.items()
    }
