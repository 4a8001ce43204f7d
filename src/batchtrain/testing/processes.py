"""Run one function in several processes, so that the failure of one ends all within seconds."""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from batchtrain.errors import InterruptedRunError, RankFailedError, RankStuckError
from batchtrain.failures import CollateralError, Failure, lost_error
from batchtrain.testing.child import (
    HEARTBEAT_SECONDS,
    Report,
    listen_too,
    stack_path,
)
from batchtrain.testing.starting import ServerGoneError, started
from batchtrain.training.watch import SlowWatch, Standing, find_stuck

__all__ = ["DEFAULT_LIMITS", "CollateralError", "Limits", "Report", "listen_too", "run_processes"]

POLL_SECONDS = 0.1
"""How often the clocks and `stop_requested` are looked at while nothing happens."""

SILENT_SECONDS = 4 * HEARTBEAT_SECONDS

PAUSE_SECONDS = 5.0
"""Where one look at the clock is so much later than the last, this process was stopped itself."""

UNKNOWN_EXIT_CODE = 255
"""What multiprocessing says where the server that forked a process is gone, as it is after a
SIGTERM to the whole process group."""

DUMP_SECONDS = 2.0
"""How long a rank may take to write the stacks of its threads."""


@dataclass(frozen=True)
class Limits:
    """How long what may take.

    Attributes:
        stuck_seconds: No rank passes a point: the run is stuck.
        early_return_seconds: A rank has returned, and no other passes a point.
        grace_seconds: From a failure until the other ranks are killed; they may report theirs.
        stop_seconds: From a request to stop until the ranks are killed.
        slow_heartbeats: The heartbeats, two a second, over which a rank is found to be slow.
    """

    stuck_seconds: float = 300.0
    early_return_seconds: float = 10.0
    grace_seconds: float = 1.0
    stop_seconds: float = 30.0
    slow_heartbeats: int = 60


DEFAULT_LIMITS = Limits()


def run_processes(
    target: Callable[[int, Report], Any],
    size: int,
    *,
    on_message: Callable[[int, Any], None] = lambda _rank, _value: None,
    limits: Limits = DEFAULT_LIMITS,
    stacks: Path | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """Call `target(rank, report)` in `size` processes and return their JSON results, in order.

    Whatever happens, no process is left when this returns or raises; and when this process dies,
    they end themselves. Ctrl-C does not reach them: when `stop_requested` turns true, each gets
    SIGTERM once. A rank that has returned stays until all have.

    Args:
        target: A function of a module, or a partial of one; what it holds is pickled.
        size: The number of ranks.
        on_message: Called with the rank and each value that it reports; and with
            `{"note": sentence}` about a rank that is slow.
        limits: How long what may take.
        stacks: A folder for what the threads of a rank were doing when it was stuck or crashed;
            None for no record. Empty files are removed again.
        stop_requested: Whether somebody asked for a stop, such as a `StopRequest`.

    Raises:
        RankFailedError: If a rank raised, or returned and left the others waiting. An error of
            `batchtrain.errors` is raised as its own class, with the rank in its text.
        RankLostError: If the process of a rank ended without a word.
        RankStuckError: If no rank passes a point any more.
        InterruptedRunError: If the ranks were asked to stop and had to be killed.
    """
    try:
        with started(target, size, stacks) as pairs:
            members = [_Member(rank, *pair) for rank, pair in enumerate(pairs)]
            return _Supervisor(members, limits, on_message, stop_requested, stacks).run()
    except ServerGoneError as error:
        if not stop_requested():
            raise
        raise InterruptedRunError(
            "stopped while the ranks were started. "
            "Run the same command again to go on from the newest checkpoint"
        ) from error


@dataclass
class _Member:
    """One rank, as its parent sees it.

    `outcome` is the failure, or the exit code of a process that ended without a word.
    """

    rank: int
    process: BaseProcess
    connection: Connection
    heard: float = field(default_factory=time.monotonic)
    passed: int = 0
    beside: int = 0
    last: str = ""
    returned: list[Any] = field(default_factory=list)
    outcome: Failure | int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the rank has neither returned nor failed."""
        return not self.returned and self.outcome is None

    def standing(self) -> Standing:
        """Where it is."""
        return Standing(self.rank, self.passed, self.last, time.monotonic() - self.heard)


class _Supervisor:
    def __init__(
        self,
        members: Sequence[_Member],
        limits: Limits,
        on_message: Callable[[int, Any], None],
        stop_requested: Callable[[], bool],
        stacks: Path | None,
    ) -> None:
        self._members = members
        self._limits = limits
        self._on_message = on_message
        self._stop_requested = stop_requested
        self._stacks = stacks
        self._slow = SlowWatch(len(members), limits.slow_heartbeats)
        self._looked = self._moved = time.monotonic()
        self._asked: float | None = None  # when the ranks were asked to stop
        self._failed: list[_Member] = []  # in the order in which they were heard of
        self._failing_since = 0.0

    def run(self) -> list[Any]:
        """Wait for all ranks; raise for the one that is to blame if one fails."""
        while True:
            self._hear()
            self._look_at_clock()
            if all(member.returned for member in self._members):
                self._release()
                return [member.returned[0] for member in self._members]
            self._pass_stop_on()
            if self._failed:
                self._judge()
            elif self._asked is None:
                self._check_progress()

    def _hear(self) -> None:
        """Read what there is to read; wait a moment for it."""
        waiting: list[Any] = []
        for member in self._members:
            if not member.connection.closed:
                waiting.append(member.connection)
            elif member.is_open:
                waiting.append(member.process.sentinel)
        ready = multiprocessing.connection.wait(waiting, POLL_SECONDS)
        for member in self._members:
            if member.connection in ready:
                self._read(member)
            elif member.is_open and member.connection.closed:
                self._read_exit(member)

    def _read(self, member: _Member) -> None:
        try:
            # What can be read at once, so that a rank that says much does not starve the others.
            for _ in range(100):
                if not member.connection.poll():
                    return
                self._take(member, json.loads(member.connection.recv_bytes()))
        except (EOFError, OSError):
            member.connection.close()

    def _read_exit(self, member: _Member) -> None:
        if member.process.exitcode is not None:
            self._fail(member, member.process.exitcode)

    def _take(self, member: _Member, message: dict[str, Any]) -> None:
        kind = message["kind"]
        member.heard = time.monotonic()
        counts = message["passed"], message["beside"]
        if kind != "heartbeat" or counts != (member.passed, member.beside):
            self._moved = member.heard
        member.passed, member.beside = counts
        member.last = message["last"]
        if kind == "heartbeat":
            note = self._slow.add(member.rank, message["tick"], member.passed)
            if note is not None and all(each.is_open for each in self._members):
                self._on_message(member.rank, {"note": note})
        elif kind == "report":
            self._on_message(member.rank, message["value"])
        elif kind == "returned":
            member.returned.append(message["value"])
        else:
            self._fail(member, Failure.from_json(message["failure"]))

    def _fail(self, member: _Member, outcome: Failure | int) -> None:
        member.outcome = outcome
        if not self._failed:
            self._failing_since = time.monotonic()
        self._failed.append(member)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        gap = now - self._looked
        if gap > PAUSE_SECONDS:
            # Ctrl-Z stops the ranks too; what stood still meanwhile is not stuck.
            self._moved += gap
            self._failing_since += gap
            for member in self._members:
                member.heard += gap
        self._looked = now

    def _pass_stop_on(self) -> None:
        if self._asked is None:
            if self._stop_requested():
                self._asked = time.monotonic()
                for member in self._members:
                    _send_signal(member.process, signal.SIGTERM)
        elif time.monotonic() - self._asked > self._limits.stop_seconds:
            left = ", ".join(str(member.standing()) for member in self._open())
            raise InterruptedRunError(
                f"expected all ranks to stop within {self._limits.stop_seconds:g} s, found that "
                f"some did not and killed them ({left}). "
                "Run the same command again to go on from the newest checkpoint"
            )

    def _judge(self) -> None:
        """Raise for the rank that is to blame, once it can be known which one that is."""
        culprits = [member for member in self._failed if not _is_collateral(member)]
        patience = self._limits.grace_seconds
        if culprits and all(self._is_interruption(member) for member in culprits):
            # Another rank may be writing the checkpoint that the interruption speaks of.
            patience = self._limits.stop_seconds
        if self._open() and time.monotonic() - self._failing_since < patience:
            return
        if culprits:
            self._raise_for(culprits[0])
        if any(member.returned for member in self._members):
            self._raise_early_return()
        if self._open():
            # The others gave up waiting for it.
            self._raise_stuck("the others gave up waiting for it")
        self._raise_for(self._failed[0])

    def _raise_for(self, member: _Member) -> NoReturn:
        outcome, size = member.outcome, len(self._members)
        if isinstance(outcome, Failure):
            # Where all ranks say the same, name the lowest, whichever was the first to say it.
            same = [each for each in self._failed if _says_same(each, outcome)]
            raise outcome.to_error(min(each.rank for each in same), size)
        code = outcome if outcome is not None else 0
        if self._is_interruption(member):
            raise InterruptedRunError(
                f"stopped before rank {member.rank} could answer ({member.standing().doings}). "
                "Run the same command again to go on from the newest checkpoint"
            )
        trace = self._trace_of(member)
        doings = f"({member.standing().doings}{f'; its stack: {trace}' if trace else ''})"
        raise lost_error(member.rank, size, code, doings)

    def _check_progress(self) -> None:
        still = time.monotonic() - self._moved
        if still > self._limits.stuck_seconds:
            self._raise_stuck(f"no rank passed a point for {still:.0f} s")
        if still > self._limits.early_return_seconds and len(self._open()) < len(self._members):
            self._raise_early_return()

    def _raise_stuck(self, why: str) -> NoReturn:
        open_ones = self._open()
        standing, reason = find_stuck(
            [member.standing() for member in open_ones], silent_seconds=SILENT_SECONDS
        )
        stacks = self._dump_stacks(open_ones)
        raise RankStuckError(
            f"expected rank {standing.rank} of {len(self._members)} to go on, found it stuck: "
            f"{why}, and {reason} ({standing.doings}). {stacks}All ranks were killed. Run the "
            "same command again to go on from the newest checkpoint"
        )

    def _raise_early_return(self) -> NoReturn:
        first = next(member.rank for member in self._members if member.returned)
        left = [member for member in self._members if not member.returned]
        others = "; ".join(str(member.standing()) for member in left)
        stacks = self._dump_stacks(self._open())
        raise RankFailedError(
            f"expected all {len(self._members)} ranks to take the same steps, found that rank "
            f"{first} returned before the others ({others}). {stacks}Look for what ends rank "
            f"{first} early, such as a loop over another number of batches"
        )

    def _dump_stacks(self, members: Sequence[_Member]) -> str:
        """Have the ranks write what their threads are doing; returns where, as a sentence."""
        if self._stacks is None:
            return ""
        for member in members:
            # A stopped process takes the first signal when it gets the second.
            _send_signal(member.process, signal.SIGUSR1)
            _send_signal(member.process, signal.SIGCONT)
        deadline = time.monotonic() + DUMP_SECONDS
        sizes: list[int] = []
        while time.monotonic() < deadline:
            before = sizes
            sizes = [_size(stack_path(self._stacks, member.rank)) for member in members]
            if all(sizes) and sizes == before:
                break
            time.sleep(POLL_SECONDS)
        paths = [str(stack_path(self._stacks, member.rank)) for member in members]
        return f"Stacks: {', '.join(paths)}. " if paths else ""

    def _trace_of(self, member: _Member) -> Path | None:
        path = None if self._stacks is None else stack_path(self._stacks, member.rank)
        return path if path is not None and _size(path) else None

    def _is_interruption(self, member: _Member) -> bool:
        outcome = member.outcome
        if isinstance(outcome, Failure):
            return outcome.is_interruption
        return self._asked is not None and outcome in {-signal.SIGTERM, UNKNOWN_EXIT_CODE}

    def _open(self) -> list[_Member]:
        return [member for member in self._members if member.is_open]

    def _release(self) -> None:
        """Let the ranks leave; one that hangs on the way is killed with the rest."""
        for member in self._members:
            with suppress(OSError):
                member.connection.send_bytes(b"leave")
        deadline = time.monotonic() + self._limits.grace_seconds
        for member in self._members:
            member.process.join(max(0.0, deadline - time.monotonic()))


def _is_collateral(member: _Member) -> bool:
    return isinstance(member.outcome, Failure) and member.outcome.is_collateral


def _says_same(member: _Member, failure: Failure) -> bool:
    other = member.outcome
    return isinstance(other, Failure) and (other.own, other.text) == (failure.own, failure.text)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _send_signal(process: BaseProcess, number: int) -> None:
    if process.pid is not None and process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
