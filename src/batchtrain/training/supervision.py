"""What a driver makes of what its ranks say: where each is, who is stuck, and who is to blame."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchtrain.errors import BatchtrainError, RankLostError, RankStuckError
from batchtrain.failures import Failure
from batchtrain.training.watch import HEARTBEAT_SECONDS, SlowWatch, Standing, find_stuck

__all__ = ["DEFAULT_LIMITS", "GroupLimits", "GroupWatch", "Verdict"]

PAUSE_SECONDS = 5.0
"""Where one look at the clock is so much later than the last, this process was stopped itself."""


@dataclass(frozen=True)
class GroupLimits:
    """How long what may take, in seconds.

    Attributes:
        stuck_seconds: No rank passes a point: the run is stuck.
        silent_seconds: A rank says nothing: its process or its node is gone or stopped.
        early_return_seconds: A rank has returned, and no other passes a point.
        stop_seconds: From a request to stop until the ranks are ended.
        rejoin_seconds: How long to wait for a node that was lost, where the rest has no room.
        slow_heartbeats: The heartbeats, two a second, over which a rank is found to be slow.
    """

    stuck_seconds: float = 300.0
    silent_seconds: float = 12.0
    early_return_seconds: float = 30.0
    stop_seconds: float = 60.0
    rejoin_seconds: float = 900.0
    slow_heartbeats: int = 60


DEFAULT_LIMITS = GroupLimits()


@dataclass(frozen=True)
class Verdict:
    """Why the ranks have to be ended.

    Attributes:
        rank: The one to blame.
        reason: A clause, such as `no rank passed a point for 300 s`.
        is_silent: Whether nothing is heard of it, so that it cannot write its stack.
    """

    rank: int
    reason: str
    is_silent: bool

    def to_error(self, size: int, logs: str) -> BatchtrainError:
        """The error for the caller; `logs` is where the ranks' logs and stacks are."""
        kind = RankLostError if self.is_silent else RankStuckError
        return kind(
            f"expected rank {self.rank} of {size} to go on, found it "
            f"{'lost' if self.is_silent else 'stuck'}: {self.reason}. All ranks were ended. Logs "
            f"and stacks: {logs}. Run the same command again to go on from the newest checkpoint"
        )


@dataclass
class _Member:
    """One rank, as the driver knows it."""

    rank: int
    heard: float
    passed: int = 0
    beside: int = 0
    last: str = ""
    where: str = ""
    has_returned: bool = False
    failure: Failure | None = None

    @property
    def is_open(self) -> bool:
        return not self.has_returned and self.failure is None


@dataclass
class GroupWatch:
    """Takes what the ranks of one attempt say; decisions only, nothing here waits.

    Attributes:
        size: W.
        limits: How long what may take.
        clock: Seconds that never go back.
        failed: The ranks that failed, in the order in which they said so.
    """

    size: int
    limits: GroupLimits = DEFAULT_LIMITS
    clock: Callable[[], float] = time.monotonic
    failed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to count the seconds."""
        self._members: dict[int, _Member] = {}
        self._slow = SlowWatch(self.size, self.limits.slow_heartbeats)
        self._looked = self._moved = self.clock()

    @property
    def has_begun(self) -> bool:
        """Whether all ranks have been heard of."""
        return len(self._members) == self.size

    def hear(self, rank: int, message: Mapping[str, Any]) -> str | None:
        """Take a message of a rank; gives a sentence where it shows that a rank is slow."""
        now = self.clock()
        member = self._members.setdefault(rank, _Member(rank, now))
        member.heard = now
        kind, value = message["kind"], message["value"]
        counts = message["passed"], message["beside"]
        if kind != "heartbeat" or counts != (member.passed, member.beside):
            self._moved = now
        member.passed, member.beside = counts
        member.last = message["last"]
        if kind == "joined":
            member.where = f"process {value['pid']} on {value['host']}"
        elif kind == "returned":
            member.has_returned = True
        elif kind == "failed":
            member.failure = Failure.from_json(value)
            self.failed.append(rank)
        elif kind == "heartbeat" and all(each.is_open for each in self._members.values()):
            return self._slow.add(rank, value, member.passed)
        return None

    def verdict(self) -> Verdict | None:
        """Who has to be ended and why; None while all is well, or a rank has failed by itself."""
        now = self.clock()
        gap = now - self._looked
        self._looked = now
        if gap > PAUSE_SECONDS:
            # Ctrl-Z stops this process alone; what was said meanwhile is still to be taken.
            self._moved = now
            for member in self._members.values():
                member.heard = now
        open_ones = [member for member in self._members.values() if member.is_open]
        if not self._members or self.failed or not open_ones:
            return None
        if not self.has_begun:
            return self._absent(now)
        return self._silent(open_ones, now) or self._stuck(open_ones, now)

    @property
    def all_returned(self) -> bool:
        """Whether every rank has come to its end."""
        return self.has_begun and all(each.has_returned for each in self._members.values())

    @property
    def unheard(self) -> list[int]:
        """The ranks that neither returned nor said that they failed."""
        open_ones = [rank for rank, each in self._members.items() if each.is_open]
        return sorted({*open_ones, *(set(range(self.size)) - self._members.keys())})

    def words(self, rank: int) -> str:
        """What a rank that failed said."""
        return self._failure(rank).text

    def blamed(self) -> tuple[int, Failure] | None:
        """The first rank that failed by its own fault, and how; of equal ones the lowest.

        A rank that could not save is more to blame than one that only stopped as it was asked to.
        """
        own = [(rank, self._failure(rank)) for rank in self.failed]
        own = [(rank, failure) for rank, failure in own if not failure.is_collateral]
        if not own:
            return None
        first = min(own, key=lambda each: each[1].is_interruption)[1]
        same = [
            rank for rank, failure in own if (failure.own, failure.text) == (first.own, first.text)
        ]
        return min(same), first

    def standing(self, rank: int) -> str:
        """Where a rank was last seen, in words."""
        member = self._members.get(rank)
        if member is None:
            return "nothing was heard of it"
        return f"{member.where or 'not joined yet'}, {self._standing(member, self.clock()).doings}"

    def _failure(self, rank: int) -> Failure:
        failure = self._members[rank].failure
        assert failure is not None, "a rank that failed has a failure"  # noqa: S101
        return failure

    def _absent(self, now: float) -> Verdict | None:
        """A rank that did not join; where one has joined, all were told to."""
        still = now - self._moved
        if still <= self.limits.stuck_seconds:
            return None
        missing = next(rank for rank in range(self.size) if rank not in self._members)
        reason = f"it has not joined, and nobody went on for {still:.0f} s"
        return Verdict(missing, reason, is_silent=True)

    def _silent(self, open_ones: list[_Member], now: float) -> Verdict | None:
        quietest = min(open_ones, key=lambda member: member.heard)
        silent = now - quietest.heard
        if silent <= self.limits.silent_seconds:
            return None
        reason = f"nothing was heard of it for {silent:.0f} s ({self.standing(quietest.rank)})"
        return Verdict(quietest.rank, reason, is_silent=True)

    def _stuck(self, open_ones: list[_Member], now: float) -> Verdict | None:
        still = now - self._moved
        early = len(open_ones) < self.size and still > self.limits.early_return_seconds
        if not early and still <= self.limits.stuck_seconds:
            return None
        standing, why = find_stuck(
            [self._standing(member, now) for member in open_ones],
            silent_seconds=4 * HEARTBEAT_SECONDS,
        )
        reason = f"no rank passed a point for {still:.0f} s, and {why} ({standing.doings})"
        if early:
            reason += "; another rank has returned already, so that the ranks differ in their steps"
        return Verdict(standing.rank, reason, is_silent=False)

    @staticmethod
    def _standing(member: _Member, now: float) -> Standing:
        return Standing(member.rank, member.passed, member.last, now - member.heard)
