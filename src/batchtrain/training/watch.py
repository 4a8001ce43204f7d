"""Which rank stands still, and which is slow: decided from the points that they pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["HEARTBEAT_SECONDS", "PointCounter", "SlowWatch", "Standing", "find_stuck"]

HEARTBEAT_SECONDS = 0.5

KEPT_TICKS = 20
"""Heartbeats of one moment that are waited for before they are given up."""

SLOW_SHARE = 0.8
"""A rank that is behind in this share of the heartbeats is slow: chance gives about half of them
with two ranks, and a rank that takes five times as long as the others is behind in four of five."""


UNEVEN = frozenset({"measure.block"})
"""Points that one rank passes more often than another, so that they cannot tell who waits."""


class PointCounter:
    """Counts the points that this process passes; it costs about as much as a call.

    Attributes:
        passed: Those of the training's thread, which tell who waits for whom: all ranks pass the
            same.
        last: The name of the last of them.
        beside: Those of other threads, such as the one that writes checkpoints, and uneven ones.
    """

    def __init__(self, thread: threading.Thread | None = None) -> None:
        """Begin at 0; the training runs in `thread`, or in the main one."""
        self._thread = thread or threading.main_thread()
        self.passed = 0
        self.last = ""
        self.beside = 0

    def __call__(self, name: str) -> None:
        """A point is passed."""
        if threading.current_thread() is self._thread and name not in UNEVEN:
            self.passed += 1
            self.last = name
        else:
            self.beside += 1

    def standing(self) -> dict[str, int | str]:
        """The counts, as JSON."""
        return {"passed": self.passed, "last": self.last, "beside": self.beside}


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
