"""Carries out a search in this process, one unit after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchtrain.errors import InterruptedRunError
from batchtrain.tuning.loop import SearchLoop
from batchtrain.tuning.running import GO_ON, UnitRunner

__all__ = ["Here"]


@dataclass(frozen=True)
class Here:
    """An `Executor` without Ray: a pack keeps the core busy, and what it shares is in memory.

    Attributes:
        runner: Does the work.
    """

    runner: UnitRunner

    def __call__(self, loop: SearchLoop, stop_requested: Callable[[], bool]) -> None:
        """See `Executor`."""
        while (unit := loop.next()) is not None:
            if stop_requested():
                raise InterruptedRunError(f"stopped between two trials or packs. {GO_ON}")
            loop.done(unit, self.runner.run(unit, loop.tell, stop_requested))
        if stop_requested():
            raise InterruptedRunError(f"stopped at the end of the search. {GO_ON}")
