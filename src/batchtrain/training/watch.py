"""Which rank stands still, and which is slow: decided from the points that they pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["SlowWatch", "Standing", "find_stuck"]

KEPT_TICKS = 20
"""Heartbeats of one moment that are waited for before they are given up."""

SLOW_SHARE = 0.8
"""A rank that is behind in this share of the heartbeats is slow: chance gives about half of them
with two ranks, and a rank that takes five times as long as the others is behind in four of five."""


@dataclass(frozen=True)
class Standing:
    """Where one rank is.

    Attributes:
        rank: Which one.
        passed: The number of points that it has passed.
        last: The name of the last one; empty before the first.
        silent_seconds: How long ago its last heartbeat was.
    """

    rank: int
    passed: int
    last: str
    silent_seconds: float

    def __str__(self) -> str:
        """Such as `rank 1: 17 points, the last 'step.forward'`."""
        return f"rank {self.rank}: {self.doings}"

    @property
    def doings(self) -> str:
        """The points, in words."""
        if not self.passed:
            return "no point passed yet"
        return f"{self.passed} point{'' if self.passed == 1 else 's'}, the last {self.last!r}"


def find_stuck(standings: Sequence[Standing], *, silent_seconds: float) -> tuple[Standing, str]:
    """Name the rank that all wait for, and say why it is this one.

    It is the one whose heartbeats stopped first, if any did: its process is stopped, or holds the
    interpreter. Else it is the one that has passed the fewest points; with equally few the first.

    Args:
        standings: The ranks that have neither returned nor failed; at least one.
        silent_seconds: A rank without a heartbeat for so long is silent.
    """
    quietest = max(standings, key=lambda standing: standing.silent_seconds)
    if quietest.silent_seconds >= silent_seconds:
        return quietest, f"its heartbeats stopped {quietest.silent_seconds:.0f} s ago"
    fewest = min(standing.passed for standing in standings)
    behind = [standing for standing in standings if standing.passed == fewest]
    if len(behind) == 1:
        why = "it is the only one left" if len(standings) == 1 else "it is behind all others"
        return behind[0], why
    others = ", ".join(str(standing.rank) for standing in behind[1:])
    return behind[0], f"no further than rank {others}: any of them may be the one"


class SlowWatch:
    """Finds the rank that the others wait for, from heartbeats of the same moments."""

    def __init__(self, size: int, heartbeats: int) -> None:
        """Watch `size` ranks over windows of so many consecutive heartbeats."""
        self._size = size
        self._ticks: dict[int, dict[int, int]] = {}
        self._behind: deque[int | None] = deque(maxlen=heartbeats)
        self._named: set[int] = set()

    def add(self, rank: int, tick: int, passed: int) -> str | None:
        """Take a heartbeat; returns a sentence, once for each rank that is found to be slow."""
        counts = self._ticks.setdefault(tick, {})
        counts[rank] = passed
        if len(counts) < self._size:
            if len(self._ticks) > KEPT_TICKS:
                del self._ticks[min(self._ticks)]
            return None
        del self._ticks[tick]
        self._behind.append(_one_behind(counts))
        return self._verdict(counts)

    def _verdict(self, counts: Mapping[int, int]) -> str | None:
        window = self._behind
        if len(window) < (window.maxlen or 0):
            return None
        for rank in counts:
            times = window.count(rank)
            if times >= SLOW_SHARE * len(window) and rank not in self._named:
                self._named.add(rank)
                return (
                    f"rank {rank} is the slowest: the others waited for it in {times} of the last "
                    f"{len(window)} heartbeats. The run goes on; look for what else uses its "
                    "processor or its disk"
                )
        return None


def _one_behind(counts: Mapping[int, int]) -> int | None:
    """The rank that is behind while all others are equally far, as those that wait are."""
    first, *rest = sorted(counts.items(), key=lambda item: item[1])
    others = {passed for _, passed in rest}
    return first[0] if len(others) == 1 and first[1] not in others else None
