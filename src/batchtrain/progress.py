"""What a stage tells whoever watches it; the command line draws it, a library call is silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Hears of everything worth seeing; this one says nothing.

    A stage calls these from its own thread; an implementer must return at once and never raise.
    """

    def stage_started(self, name: str) -> None:
        """A stage begins."""

    def working(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` units of `what` (rows, epochs); `total` None where unknown."""

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """One epoch is over; `record` is its line of the history."""

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """A stage ended: built, reused or resumed."""

    def note(self, text: str) -> None:
        """Something that a person should know, once."""
