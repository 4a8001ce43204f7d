"""What runs in the process of one rank, around the function that it is there for."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from batchtrain import points
from batchtrain.failures import Failure
from batchtrain.training.watch import HEARTBEAT_SECONDS, PointCounter

__all__ = ["HEARTBEAT_SECONDS", "Report", "Surroundings", "listen_too", "run_rank", "stack_path"]

ORPHANED = 75
"""The exit code of a rank whose parent is gone; nobody is left to read it."""


def stack_path(folder: Path, rank: int) -> Path:
    """Where the stacks of a rank's threads are written."""
    return folder / f"rank-{rank}.txt"


@dataclass(frozen=True)
class Surroundings:
    """What a process takes over from the one that asked for it.

    A process that is forked by a server would have the server's, from when that was started.

    Attributes:
        environ: The environment variables.
        folder: The working directory.
        stacks: Where to write the stacks of threads; None for nowhere.
    """

    environ: dict[str, str]
    folder: str
    stacks: Path | None

    def enter(self, rank: int, stack: ExitStack) -> None:
        """Make them this process's own.

        Ctrl-C reaches every process of a terminal. Only the parent answers it, and tells the
        ranks by SIGTERM: a rank that heard of both would take the second for impatience.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.environ.clear()
        os.environ.update(self.environ)
        os.chdir(self.folder)
        if self.stacks is not None:
            file = stack.enter_context(stack_path(self.stacks, rank).open("w"))
            faulthandler.enable(file)
            stack.callback(faulthandler.disable)
            faulthandler.register(signal.SIGUSR1, file, all_threads=True)
            stack.callback(faulthandler.unregister, signal.SIGUSR1)


_counter = PointCounter()


def listen_too(listener: Callable[[str], None] | None) -> None:
    """`points.listen` for a rank: the points are counted as well, before `listener` hears of them.

    A rank that calls `points.listen` itself seems to stand still.
    """
    if listener is None:
        points.listen(_counter)
        return

    def both(name: str) -> None:
        _counter(name)
        listener(name)

    points.listen(both)


class Report:
    """What a rank tells its parent, and what it does last."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._endings = ExitStack()

    def __call__(self, value: Any) -> None:
        """Send a JSON value; it also counts as progress."""
        self._send({"kind": "report", "value": value})

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call this when every rank has returned, or when this one has failed and said so."""
        self._endings.callback(callback)

    def close(self) -> None:
        """Call what was asked for, the last first."""
        self._endings.close()


class _Messenger:
    """Sends messages and heartbeats from one thread of its own.

    A signal handler that raises, as Python runs it in the main thread, cannot cut a message.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message and how far the rank is; TypeError or ValueError if it is not JSON."""
        self._waiting.put(_encoded(message))

    def close(self) -> None:
        """Wait until all is sent; no heartbeat comes after it."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        # All ranks look at multiples of the same clock, so that their counts can be compared.
        due = self._tick() + 1
        while True:
            wait = due * HEARTBEAT_SECONDS - time.monotonic()
            if wait <= 0:
                data: bytes | None = _encoded({"kind": "heartbeat", "tick": due})
                due = self._tick() + 1
            else:
                try:
                    data = self._waiting.get(timeout=wait)
                except Empty:
                    continue
            if data is None:
                return
            try:
                self._connection.send_bytes(data)
            except OSError:
                os._exit(ORPHANED)

    @staticmethod
    def _tick() -> int:
        return math.floor(time.monotonic() / HEARTBEAT_SECONDS)


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps({**message, **_counter.standing()}).encode()


class _Leash:
    """Ends this process when its parent is gone, and hears when all ranks are done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._released = threading.Event()
        threading.Thread(target=self._run, name="leash", daemon=True).start()

    def wait(self) -> None:
        """Wait until the parent says that all ranks have returned."""
        self._released.wait()

    def _run(self) -> None:
        try:
            self._connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(ORPHANED)
        self._released.set()


def run_rank(rank: int, connection: Connection, surroundings: Surroundings) -> None:
    """Receive a function, call it and send what it returns or raises: the life of a rank's process.

    A rank that has returned stays until all have: were it to leave at once, what it sent last to
    another rank could be lost with its sockets.
    """
    with ExitStack() as stack:
        surroundings.enter(rank, stack)
        listen_too(None)
        messenger = _Messenger(connection)
        report = Report(messenger.send)
        try:
            target: Callable[[int, Report], Any] = connection.recv()
            leash = _Leash(connection)
            messenger.send({"kind": "returned", "value": target(rank, report)})
        # Whatever it is, SystemExit of a custom model included, the parent is told.
        except BaseException as error:  # noqa: BLE001
            messenger.send({"kind": "failed", "failure": Failure.of(error).to_json()})
            messenger.close()
            report.close()
            raise SystemExit(1) from None
        leash.wait()
        messenger.close()
        report.close()
