"""What a stage tells whoever watches it; the command line draws it, a library call is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Progress", "TrainingStanding"]


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

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """One epoch is over; `record` is its line of the history."""

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """A stage ended: built, reused or resumed."""

    def note(self, text: str) -> None:
        """Something that a person should know, once."""
