"""Faults on purpose: at the n-th call of a storage, or at the n-th pass of a named point."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.storage import Storage
from batchtrain.storage.locking import OwnLock

__all__ = [
    "Action",
    "Call",
    "Fault",
    "FaultStorage",
    "PointAction",
    "PointFault",
    "PointFaults",
    "Verb",
]

Verb = Literal["read", "size", "write", "create", "list", "delete", "modified", "leftovers"]
Action = Literal[
    "fail",
    "unavailable",
    "full",
    "cut",
    "lost_reply",
    "delay",
    "kill_before",
    "kill_after",
    "cut_kill",
]
PointAction = Literal["kill", "raise", "stop", "delay"]

Result = TypeVar("Result")


def end_this_process() -> None:
    """Kill this process as `kill -9` does: nothing is cleaned up, flushed or said."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Call:
    """One call of a storage.

    Attributes:
        verb: Which method.
        key: Its key or prefix; empty for `leftovers`.
    """

    verb: Verb
    key: str


@dataclass(frozen=True)
class Fault:
    """What happens at one call of a storage.

    Attributes:
        call: Which call, from 1.
        action: `fail`, `unavailable` and `full` refuse it; `lost_reply` does it and then says
            that storage did not answer; `delay` waits and does it; `kill_before` and
            `kill_after` end this process. `cut` leaves the first half of the bytes under the
            key, as a storage would that is not atomic, and refuses the call; `cut_kill` does so
            and ends this process; a call that writes nothing is just refused, or the end.
        verb: Count only the calls of this verb; None counts all of them.
        lasting: Whether all later calls (of the verb) meet the same fault, as on a full disk.
        seconds: How long `delay` waits.
    """

    call: int
    action: Action
    verb: Verb | None = None
    lasting: bool = False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.call < 1 or self.action not in get_args(Action) or not 0 <= self.seconds < 3600:
            raise ValueError(f"expected a call from 1, an action and a short time, found {self}")
        if self.verb is not None and self.verb not in get_args(Verb):
            raise ValueError(f"expected a verb of a storage, found {self}")

    def meets(self, verb: Verb, number: int, number_of_verb: int) -> bool:
        """Whether this call is the one.

        Args:
            verb: Its verb.
            number: Which it is of all calls, from 1.
            number_of_verb: Which it is of the calls of its verb, from 1.
        """
        if self.verb not in {None, verb}:
            return False
        count = number if self.verb is None else number_of_verb
        return count >= self.call if self.lasting else count == self.call


class FaultStorage:
    """Hands every call to another storage, except those that a fault is meant for.

    It can be pickled wherever the other storage can, and counts on from where it was.

    Attributes:
        inner: The storage that is real.
        faults: What happens at which call; of several for one call the first counts.
        calls: All calls so far in their order, also those that a fault refused.
    """

    def __init__(self, inner: Storage, faults: Iterable[Fault] = ()) -> None:
        self.inner = inner
        self.faults = tuple(faults)
        self.calls: list[Call] = []
        self._counting = OwnLock()

    def url(self, key: str = "") -> str:
        """See `Storage.url`; it asks nobody, so it is not counted."""
        return self.inner.url(key)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self._meet("read", key, lambda: self.inner.read(key))

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        return self._meet("size", key, lambda: self.inner.size(key))

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`."""
        return self._meet("modified", key, lambda: self.inner.modified(key))

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self._meet("write", key, lambda: self.inner.write(key, data), data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        return self._meet("create", key, lambda: self.inner.create(key, data), data)

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`."""
        return self._meet("leftovers", "", self.inner.leftovers)

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        return self._meet("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._meet("delete", key, lambda: self.inner.delete(key))

    def _meet(
        self, verb: Verb, key: str, do: Callable[[], Result], data: bytes | None = None
    ) -> Result:
        """Count a call, then do it, or what a fault makes of it."""
        with self._counting:
            self.calls.append(Call(verb, key))
            number = len(self.calls)
            of_verb = sum(call.verb == verb for call in self.calls)
        fault = next((each for each in self.faults if each.meets(verb, number, of_verb)), None)
        if fault is None:
            return do()
        where = f"{verb} {self.url(key)}, call {number}"
        match fault.action:
            case "delay":
                time.sleep(fault.seconds)
                return do()
            case "lost_reply":
                # Whatever the answer is, it does not arrive.
                with suppress(Exception):
                    do()
                raise StorageUnavailableError(f"no answer to {where}, though it was done")
            case "unavailable":
                raise StorageUnavailableError(f"no answer to {where}")
            case "full":
                raise StorageError(f"No space left on device: {where}. Free some space")
            case "kill_before":
                end_this_process()
            case "kill_after":
                with suppress(Exception):
                    do()
                end_this_process()
            case "cut" | "cut_kill" if data is not None:
                self._cut(verb, key, data[: len(data) // 2])
        if fault.action == "cut_kill":
            end_this_process()
        raise StorageError(f"refused on purpose: {where}")

    def _cut(self, verb: Verb, key: str, half: bytes) -> None:
        """Leave half of the bytes, as far as the verb may put any at all."""
        if verb == "create":
            self.inner.create(key, half)
        else:
            self.inner.write(key, half)


@dataclass(frozen=True)
class PointFault:
    """What happens at one pass of a named point.

    Attributes:
        point: The point's name.
        count: At which pass, from 1.
        action: `kill` ends this process, `stop` halts it until somebody continues it, `raise`
            raises a `RuntimeError`, `delay` waits.
        seconds: How long `delay` waits.
    """

    point: str
    count: int
    action: PointAction
    seconds: float = 0.0

    def __post_init__(self) -> None:
        is_point = self.point and not set(self.point) & set(":,") and self.count >= 1
        longest = 3600 if self.action == "delay" else 0
        if (
            not is_point
            or self.action not in get_args(PointAction)
            or not 0 <= self.seconds <= longest
        ):
            raise ValueError(f"expected a point, a count from 1 and an action, found {self}")

    @classmethod
    def parse(cls, text: str) -> PointFault:
        """Read `point:count:action`, such as `storage.half:3:kill` or `step.done:1:delay=0.5`.

        Raises:
            ValueError: If it is something else.
        """
        try:
            point, count, action = text.strip().split(":")
            name, _, seconds = action.partition("=")
            # The check above is by value; a type checker cannot follow it.
            return cls(point, int(count), name, float(seconds or 0))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"expected point:count:action, such as storage.half:3:kill, found {text!r}"
            ) from error

    def __str__(self) -> str:
        """The text that `parse` reads."""
        seconds = f"={self.seconds!r}" if self.action == "delay" else ""
        return f"{self.point}:{self.count}:{self.action}{seconds}"


class PointFaults:
    """A listener for `batchtrain.points.listen` that counts points, and strikes at some.

    Attributes:
        faults: What happens where.
        passed: Point to how often it was passed so far, in all threads.
    """

    def __init__(self, faults: Sequence[PointFault] = ()) -> None:
        self.faults = tuple(faults)
        self.passed: Counter[str] = Counter()
        self._counting = OwnLock()

    @classmethod
    def parse(cls, text: str) -> PointFaults:
        """Read faults with commas in between; an empty text has none."""
        return cls([PointFault.parse(each) for each in text.split(",") if each.strip()])

    def __str__(self) -> str:
        """The text that `parse` reads; what was counted is not in it."""
        return ",".join(map(str, self.faults))

    def __call__(self, name: str) -> None:
        """Count one pass of a point, and strike if a fault is meant for it."""
        with self._counting:
            self.passed[name] += 1
            count = self.passed[name]
        for fault in self.faults:
            if (fault.point, fault.count) == (name, count):
                _strike(fault)


def _strike(fault: PointFault) -> None:
    match fault.action:
        case "kill":
            end_this_process()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise RuntimeError(f"raised on purpose at {fault}")
        case "delay":
            time.sleep(fault.seconds)
