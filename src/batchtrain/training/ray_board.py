"""What the ranks of a training on Ray and its driver say to each other, over one small actor.

Ray's own reports are not used for this: each waits for the controller's next look, and a kill can
lose one that had returned. Everything said is JSON.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchtrain.training.watch import HEARTBEAT_SECONDS, PointCounter

__all__ = ["Board", "BoardClient", "open_board"]

ORPHANED = 75
"""The exit code of a rank that cannot reach its driver any more."""

ENDED = 76
"""The exit code of a rank that was told to end at once."""

ANSWER_SECONDS = 30.0
"""The board answers at once; later than this it is gone, or this process was stopped itself."""


class Board:
    """Keeps what the ranks said until the driver takes it, and what the driver ordered."""

    def __init__(self) -> None:
        self._said: list[tuple[int, str]] = []
        self._num_gone = 0
        self._orders: dict[str, bool] = {}

    def say(self, rank: int, messages: list[str]) -> dict[str, bool]:
        """Take what a rank says; answers with the orders so far."""
        self._said += [(rank, message) for message in messages]
        return self._orders

    def take(self, num_known: int) -> list[tuple[int, str]]:
        """Give all that was said after the first `num_known` messages, in their order.

        What is not known to have arrived is kept: an answer may come too late.
        """
        del self._said[: num_known - self._num_gone]
        self._num_gone = num_known
        return self._said

    def order(self, name: str) -> None:
        """Order something of all ranks: `stop`, `dump` or `end`."""
        self._orders[name] = True


def open_board() -> Any:
    """Start a board on this node, which dies with this process; gives the handle of the actor."""
    here = ray.get_runtime_context().get_node_id()
    options: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return ray.remote(Board).options(**options).remote()


class BoardClient:
    """A rank's side: it says how far the rank is twice a second, and hears what is ordered."""

    def __init__(self, board: Any, rank: int, counter: PointCounter) -> None:
        """Begin to say so, from a thread."""
        self._board = board
        self._rank = rank
        self._counter = counter
        self._orders: Mapping[str, bool] = {}
        self._waiting: list[str] = []
        self._changed = threading.Condition()
        self._closing = False
        self._has_dumped = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def say(self, kind: str, value: Any) -> None:
        """Say a JSON value; it counts as progress, and is sent at once.

        Raises:
            TypeError: If it is not JSON.
        """
        message = self._message(kind, value)
        with self._changed:
            self._waiting.append(message)
            self._changed.notify()

    def stop_requested(self) -> bool:
        """Whether the driver has asked for a stop."""
        return bool(self._orders.get("stop"))

    def close(self) -> None:
        """Send what is left; nothing is said after it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _message(self, kind: str, value: Any) -> str:
        standing = self._counter.standing()
        return json.dumps({"kind": kind, "value": value, **standing})

    def _run(self) -> None:
        # All ranks look at multiples of the same clock, so that their counts can be compared.
        due = _tick() + 1
        closing = False
        while not closing:
            with self._changed:
                if _tick() < due - 1:
                    # The clock was set back.
                    due = _tick() + 1
                wait = due * HEARTBEAT_SECONDS - time.time()
                if not self._waiting and not self._closing and wait > 0:
                    self._changed.wait(wait)
                messages, self._waiting = self._waiting, []
                closing = self._closing
            if _tick() >= due:
                messages.append(self._message("heartbeat", due))
                due = _tick() + 1
            if messages:
                self._send(messages)

    def _send(self, messages: list[str]) -> None:
        try:
            reply = self._board.say.remote(self._rank, messages)
            self._orders = ray.get(reply, timeout=ANSWER_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it is, nobody hears of this rank any more
            os._exit(ORPHANED)
        if self._orders.get("dump") and not self._has_dumped:
            self._has_dumped = True
            with suppress(Exception):
                stacks = self._message("stacks", _stacks())
                self._board.say.remote(self._rank, [stacks])
        if self._orders.get("end"):
            os._exit(ENDED)


def _stacks() -> str:
    """What all threads of this process are doing."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _tick() -> int:
    return math.floor(time.time() / HEARTBEAT_SECONDS)
