"""Whether a training that was cut goes on by itself: a decision, made from what cut it."""

from __future__ import annotations

from typing import Literal

from batchtrain.errors import (
    LauncherLostError,
    RankLostError,
    RankMemoryError,
    RankStuckError,
)
from batchtrain.spec.run import RetriesSpec

__all__ = ["Cause", "RetryBudget", "cause_of"]

Cause = Literal["lost_worker", "out_of_memory"]


def cause_of(error: BaseException) -> Cause | None:
    """What cut a training; None where the same would happen again, such as an error in a model."""
    if isinstance(error, RankMemoryError):
        return "out_of_memory"
    if isinstance(error, RankLostError | RankStuckError | LauncherLostError):
        return "lost_worker"
    return None


class RetryBudget:
    """How many more times a training may be cut by what.

    Example:
        >>> budget = RetryBudget(RetriesSpec(lost_worker=1))
        >>> budget.take(RankLostError("rank 1 is gone"))
        'lost_worker: 1 of 1'
        >>> budget.take(RankLostError("rank 1 is gone"))
    """

    def __init__(self, retries: RetriesSpec) -> None:
        self._allowed: dict[Cause, int] = {
            "lost_worker": retries.lost_worker,
            "out_of_memory": retries.out_of_memory,
        }
        self._used: dict[Cause, int] = dict.fromkeys(self._allowed, 0)

    def take(self, error: BaseException) -> str | None:
        """Use one retry up; a few words on how many that were, None if none is left for this."""
        cause = cause_of(error)
        if cause is None or self._used[cause] >= self._allowed[cause]:
            return None
        self._used[cause] += 1
        return f"{cause}: {self._used[cause]} of {self._allowed[cause]}"
