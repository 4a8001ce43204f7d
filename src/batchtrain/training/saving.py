"""Checkpoints written in the background while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from batchtrain.artifacts import RunLayout, remove_artifacts
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.training.checkpoints import publish_checkpoint
from batchtrain.training.lineage import CheckpointName, superfluous
from batchtrain.training.machine import MachineChoices
from batchtrain.training.state import Snapshot

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Publishes snapshots in one thread, one after the other, and deletes what is superfluous.

    A snapshot is a copy, so what the loop does meanwhile changes neither. At most one waits: who
    saves faster than storage takes it is slowed down, not run out of memory.
    """

    def __init__(
        self,
        layout: RunLayout,
        machine: MachineChoices,
        *,
        claim: int,
        check_owner: Callable[[], None],
        keep: int,
        published: list[CheckpointName],
        resumed: CheckpointName | None,
        best_epoch: int,
    ) -> None:
        """Start with what is on storage.

        Args:
            layout: Where the run lies.
            machine: The choices that every checkpoint records.
            claim: The claim that this run's owner holds.
            check_owner: Raises `FencedError` where another process has taken the run over.
            keep: How many of the newest stay.
            published: The checkpoints that are there.
            resumed: The one that this attempt goes on from; it stays until the run is over.
            best_epoch: The epoch of the best weights that it holds.
        """
        self._layout = layout
        self._machine = machine
        self._claim = claim
        self._check_owner = check_owner
        self._keep = keep
        self._published = list(published)
        self._resumed = resumed
        self._best = resumed
        self._best_epoch = best_epoch
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        """Nothing to do; leaving waits for the last checkpoint."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the checkpoint in the making; what went wrong with it comes out.

        After another error it is only waited for: the first error is the one to see.
        """
        self._thread.shutdown(wait=True)
        if error is None:
            self._finish()

    @property
    def is_idle(self) -> bool:
        """See `batchtrain.training.keeping.Saver`."""
        return self._running is None or self._running.done()

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """See `batchtrain.training.keeping.Saver`."""
        self._finish()
        name = CheckpointName(snapshot.place, self._claim)
        if name not in self._published:
            self._running = self._thread.submit(self._publish, snapshot)
        if wait:
            self._finish()

    def _finish(self) -> None:
        """Wait for the checkpoint in the making, and raise what went wrong with it."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def _publish(self, snapshot: Snapshot) -> None:
        name = publish_checkpoint(
            snapshot,
            self._machine,
            self._layout,
            claim=self._claim,
            check_owner=self._check_owner,
        )
        if self._best is None or snapshot.best_epoch != self._best_epoch:
            self._best, self._best_epoch = name, snapshot.best_epoch
        self._published.append(name)
        # Who has taken the run over meanwhile may go on from one that is superfluous here.
        self._check_owner()
        protected = [each for each in (self._best, self._resumed) if each is not None]
        for old in superfluous(self._published, keep=self._keep, protected=protected):
            # By its name, since a listing that lags may show the files without it.
            self._layout.storage.delete(f"{old.key(self._layout)}/{MANIFEST}")
            remove_artifacts(self._layout.storage, old.key(self._layout))
            self._published.remove(old)
