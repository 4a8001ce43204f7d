"""Which process this is, said so that any process of this machine can tell whether it is gone."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessIdentity", "this_process"]

PROC = Path("/proc")
DEAD_STATES = "ZXx"
"""Exited, and only not yet fetched by its parent."""


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(
        host=platform.node(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started=_state_and_start(pid)[1],
    )


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, ever: a later process with the same number is another.

    Attributes:
        host: The name of the machine or container, for people.
        boot_id: Which start of which machine; empty where the system does not tell.
        pid_namespace: Whose process numbers these are; two containers of one machine have two.
        pid: The number of the process, above 0.
        started: When it started, in clock ticks after the boot; None where there is no `/proc`.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: int | None

    def __post_init__(self) -> None:
        # Signal 0 to a number that is not above 0 asks about whole groups of processes.
        if not 0 < self.pid < 2**31:
            raise ValueError(f"expected a process number from 1 to 2**31 - 1, found {self.pid}")

    def is_here(self) -> bool:
        """Whether its number means the same process here."""
        here = (platform.node(), _boot_id(), _pid_namespace())
        # Where a system gives no number of its start, two machines may have one name.
        return bool(self.boot_id) and (self.host, self.boot_id, self.pid_namespace) == here

    def is_known_dead(self) -> bool:
        """Whether it surely does not run any more; False where that cannot be seen from here."""
        if not self.is_here():
            return False
        # Asked first: `/proc` can hide the processes of other users, which then look gone.
        if not _has_process(self.pid):
            return True
        state, started = _state_and_start(self.pid)
        if state and state in DEAD_STATES:
            return True
        return None not in (started, self.started) and started != self.started


def _has_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _state_and_start(pid: int) -> tuple[str, int | None]:
    """The state letter and the start time; empty and None where they cannot be read."""
    try:
        line = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", None
    # The second field is the program's name in parentheses and may hold blanks and parentheses.
    fields = line.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _boot_id() -> str:
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _pid_namespace() -> str:
    with suppress(OSError):
        return str((PROC / "self/ns/pid").readlink())
    return ""
