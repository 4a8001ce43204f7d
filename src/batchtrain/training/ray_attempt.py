"""One start of the ranks of a training on Ray, watched until they have ended."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress

import ray
from ray.exceptions import RayActorError, RayError

from batchtrain.errors import BatchtrainError, InterruptedRunError
from batchtrain.progress import Progress
from batchtrain.training.launched import hear_progress
from batchtrain.training.placement import Placement
from batchtrain.training.rank import TrainTask
from batchtrain.training.ray_board import open_board
from batchtrain.training.ray_groups import (
    is_within_an_actor,
    placement_groups,
    remove_groups,
)
from batchtrain.training.ray_loss import GO_ON, loss_error
from batchtrain.training.ray_rank import Listeners, RankConfig
from batchtrain.training.ray_trainer import make_trainer
from batchtrain.training.supervision import GroupLimits, GroupWatch, Verdict

__all__ = ["RayAttempt"]

POLL_SECONDS = 0.1

BOARD_SECONDS = 10.0
"""The board answers at once; it is on this node."""

DUMP_SECONDS = 2.0
"""How long the ranks may take to write the stacks of their threads."""

CUT_SECONDS = 8.0
"""From the order to end until what the ranks run on is taken away: a process that is stopped hears
no order."""

WAIT_NOTE_SECONDS = 20.0
"""After so long without all ranks it is said what the run waits for."""


class RayAttempt:
    """One start of all ranks."""

    def __init__(
        self,
        placement: Placement,
        task: TrainTask,
        progress: Progress,
        limits: GroupLimits,
        listeners: Listeners | None,
    ) -> None:
        self._placement = placement
        self._task = task
        self._progress = progress
        self._limits = limits
        self._watch = GroupWatch(placement.workers, limits)
        self._board = open_board()
        self._config = RankConfig(task, self._board, listeners)
        self._error: BaseException | None = None
        self._verdict: Verdict | None = None
        self._ended_at: float | None = None
        self._asked_at: float | None = None
        self._began = time.monotonic()
        self._has_noted = False
        self._num_taken = 0
        self._is_board_lost = False
        self._cut_at: float | None = None
        self._groups: set[str] = set()  # those of which a rank has told
        self._groups_before = None if is_within_an_actor() else placement_groups()
        self._is_cut = False  # a stop took too long

    @property
    def _logs(self) -> str:
        layout = self._task.layout
        return layout.storage.url(f"{layout.logs}/attempt-{self._task.claim}")

    def run(self, stop_requested: Callable[[], bool]) -> None:
        """Start the ranks and wait for their end; raises for the one that is to blame."""
        with (
            tempfile.TemporaryDirectory(
                prefix="batchtrain-ray-", ignore_cleanup_errors=True
            ) as folder,
            ExitStack() as stack,
        ):
            stack.callback(self._close)
            thread = threading.Thread(target=self._fit, args=(folder,), name="fit", daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                self._take()
                self._pass_stop_on(stop_requested)
                self._check()
            self._take()
        self._raise_error()

    def _fit(self, folder: str) -> None:
        try:
            make_trainer(
                self._config,
                self._placement,
                folder,
                # Twice as long as it takes the driver to find out which rank is waited for.
                timeout_seconds=2 * self._limits.stuck_seconds,
            ).fit()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._error = error

    def _take(self) -> None:
        """Hear what the ranks said since the last time."""
        try:
            said: list[tuple[int, str]] = ray.get(
                self._board.take.remote(self._num_taken), timeout=BOARD_SECONDS
            )
        except RayActorError:
            # The ranks cannot reach it either, and end.
            self._is_board_lost = True
            return
        except RayError:
            # A late answer; the board keeps what it said until it is asked for what came after.
            return
        self._num_taken += len(said)
        for rank, text in said:
            message = json.loads(text)
            if message["kind"] == "report":
                hear_progress(message["value"], self._progress)
            elif message["kind"] == "joined":
                self._groups |= {message["value"].get("group", "")} - {""}
            elif message["kind"] == "stacks":
                self._keep_stacks(rank, message["value"])
            note = self._watch.hear(rank, message)
            if note is not None:
                self._progress.note(note)

    def _keep_stacks(self, rank: int, text: str) -> None:
        layout = self._task.layout
        key = f"{layout.logs}/attempt-{self._task.claim}/rank-{rank}.stacks.txt"
        with suppress(BatchtrainError):
            layout.storage.write(key, text.encode())

    def _order(self, name: str) -> None:
        with suppress(RayError):
            ray.get(self._board.order.remote(name), timeout=BOARD_SECONDS)

    def _pass_stop_on(self, stop_requested: Callable[[], bool]) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            if stop_requested():
                self._asked_at = now
                if not self._watch.has_begun:
                    # There is nothing to save, and it may take long until all are there.
                    raise InterruptedRunError(f"stopped before the ranks had begun. {GO_ON}")
                self._order("stop")
        elif now - self._asked_at > self._limits.stop_seconds and not self._is_cut:
            self._is_cut = True
            self._end()

    def _end(self) -> None:
        """Tell all ranks to end; those that cannot hear it lose what they run on."""
        self._ended_at = None
        self._cut_at = time.monotonic() + CUT_SECONDS
        self._order("end")

    def _check(self) -> None:
        """Note what the run waits for; end all ranks where one is stuck or silent."""
        now = time.monotonic()
        is_late = now - self._began > WAIT_NOTE_SECONDS
        if is_late and not self._watch.has_begun and not self._has_noted:
            self._has_noted = True
            with suppress(RayError):
                free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
                self._progress.note(self._placement.waiting(free))
        if self._cut_at is not None and now >= self._cut_at:
            self._cut_at = None
            remove_groups(self._own_groups())
        if self._verdict is None and self._asked_at is None:
            self._verdict = self._watch.verdict()
            if self._verdict is not None:
                self._ended_at = now + DUMP_SECONDS
                self._order("dump")
        elif self._verdict is not None and self._ended_at is not None and now >= self._ended_at:
            self._end()

    def _own_groups(self) -> AbstractSet[str]:
        """What this attempt has taken: as its ranks said, or where none did all that is new.

        Beside the attempts of other trials what is new may be theirs, and is left.
        """
        if self._groups or self._groups_before is None:
            return self._groups
        return placement_groups() - self._groups_before

    def _raise_error(self) -> None:
        """Raise for whoever is to blame; nothing where all ranks returned."""
        size = self._placement.workers
        if self._error is None or self._watch.all_returned:
            # The last state is published, whatever befell Ray or the board after it.
            return
        blamed = self._watch.blamed()
        if blamed is not None:
            rank, failure = blamed
            raise failure.to_error(rank, size, log=f"{self._logs}/rank-{rank}.log")
        if self._is_cut:
            raise InterruptedRunError(
                f"expected all ranks to stop within {self._limits.stop_seconds:g} s, found that "
                f"some did not and ended them. {GO_ON}"
            )
        if self._verdict is not None:
            raise self._verdict.to_error(size, self._logs)
        raise loss_error(self._error, self._watch, self._logs, board_lost=self._is_board_lost)

    def _close(self) -> None:
        """Leave nothing of this attempt behind."""
        with suppress(Exception):
            ray.kill(self._board)
        if isinstance(self._error, RayActorError):
            # A controller that was killed leaves its cores taken.
            remove_groups(self._own_groups())
