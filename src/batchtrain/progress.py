"""What a stage tells whoever watches it; the command line draws it, a library call is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Progress", "SearchStanding", "SeenTrial", "TrainingStanding"]


@dataclass(frozen=True)
class TrainingStanding:
    """How far a training is, within its epochs; plain numbers, so that it can be sent.

    Attributes:
        epoch: The one in progress; the first is 1.
        epochs: How many there are at most.
        step: The steps of this epoch that are done.
        steps: The steps of an epoch.
        rows: The rows of all steps so far.
        epoch_rows: The rows of an epoch.
        total_rows: The rows of all steps, where nothing ends the training before.
        loss: The mean over the latest steps that are known; None before the first.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    rows: int
    epoch_rows: int
    total_rows: int
    loss: float | None = None


@dataclass(frozen=True)
class SeenTrial:
    """A trial as far as it came; plain values, so that it can be sent.

    Attributes:
        number: Of the trial; the first is 0.
        state: `finished`, `stopped` by the scheduler, `paused` between two rungs, ...
        epochs: Those that are over.
        scores: Each goal's metric; None where there is none.
        values: By dotted key of the spec.
    """

    number: int
    state: str
    epochs: int
    scores: Mapping[str, float | None]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class SearchStanding:
    """How far a search is; plain values, so that it can be sent.

    Attributes:
        trials: How many there are at most; None where nobody knows.
        counts: The trials by their state; those that nothing is known of yet are left out.
        best: The best trial, and a few of those that come next.
        running: What is at work, such as `pack of 32 trials, epoch 40 of 100`.
        rows: The rows trained, over all trials.
        total_rows: The rows of all trials at most, where nothing more is stopped early.
        seconds: Since this call began to search.
        trials_per_minute: Those that this call saw end; None before the first.
        seconds_left: At most, at the pace of this call; None before anything can be told.
    """

    trials: int | None
    counts: Mapping[str, int]
    best: tuple[SeenTrial, ...] = ()
    running: tuple[str, ...] = ()
    rows: int = 0
    total_rows: int | None = None
    seconds: float = 0.0
    trials_per_minute: float | None = None
    seconds_left: float | None = None

    @property
    def over(self) -> int:
        """The trials that nothing more happens to."""
        return sum(self.counts.get(state, 0) for state in ("finished", "stopped", "failed"))


class Progress:
    """Hears of everything worth seeing; this one says nothing.

    An implementer must return at once and never raise. A stage calls these from its own threads.
    """

    def stage_started(self, name: str) -> None:
        """A stage begins."""

    def working(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` units of `what` (rows, epochs); `total` None where unknown."""

    def training(self, standing: TrainingStanding) -> None:
        """A training is so far: when it begins or goes on, and about once a second from then."""

    def searching(self, standing: SearchStanding) -> None:
        """A search is so far: when it begins or goes on, and whenever something is new."""

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """One epoch is over; `record` is its line of the history."""

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """A stage ended: built, reused or resumed."""

    def note(self, text: str) -> None:
        """Something that a person should know, once."""
