"""A training on several ranks of this machine, in plain processes and without Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from batchtrain.progress import Progress
from batchtrain.spec.run import ResourcesSpec
from batchtrain.storage import local_folder
from batchtrain.testing.child import Report, listen_too
from batchtrain.testing.faults import PointFaults
from batchtrain.testing.gloo import run_gloo
from batchtrain.testing.processes import DEFAULT_LIMITS, Limits
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.launched import SentProgress, hear_progress, last_state
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import GlooRanks
from batchtrain.training.state import TrainState

__all__ = ["GlooWorker"]


class GlooWorker:
    """Launches the ranks of a training as processes that form a gloo group.

    Each rank has its own model under DDP and its own part of every batch; rank 0 writes the
    checkpoints. Whatever befalls one of them ends all, with that rank's error.

    Attributes:
        size: W, the number of ranks.
        restarts: See `Launcher`.
        passed: Point to how often each rank passed it in the last training that ended.
    """

    def __init__(
        self,
        size: int,
        *,
        faults: Mapping[int, str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        stacks: Path | None = None,
        restarts: bool = False,
    ) -> None:
        """Launch nothing yet.

        Args:
            size: The number of ranks.
            faults: Rank to what happens to it on purpose, as `PointFaults.parse` reads it.
            limits: When a rank counts as stuck, and how long a stop may take.
            stacks: The folder for the stacks of a rank that is stuck.
            restarts: Whether ranks that are lost are started again, within `retries`.
        """
        self.size = size
        self.restarts = restarts
        self.passed: list[dict[str, int]] = []
        self._faults = dict(faults or {})
        self._limits = limits
        self._stacks = stacks

    def choose_machine(self, resources: ResourcesSpec) -> MachineChoices:
        """See `Launcher.choose_machine`."""
        return choose_machine(resources, workers=self.size)

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> TrainState:
        """See `batchtrain.training.launcher.Launcher`.

        Raises:
            RankFailedError: If a rank raises an error that is not ours; ours come out as they are.
            RankLostError: If the process of a rank ends.
            RankStuckError: If a rank makes no progress.
        """

        def hear(_rank: int, value: Mapping[str, Any]) -> None:
            hear_progress(value, progress)

        stacks = self._stacks or _stacks_of(task)
        try:
            results = run_gloo(
                partial(_train, task=task, faults=self._faults),
                self.size,
                on_message=hear,
                limits=self._limits,
                stacks=stacks,
                stop_requested=stop_requested,
            )
        finally:
            if self._stacks is None:
                # Empty files are removed with their folder; so is the folder around it.
                with suppress(OSError):
                    stacks.parent.rmdir()
        self.passed = [result["passed"] for result in results]
        return last_state(task)


def _train(
    ranks: GlooRanks, report: Report, *, task: TrainTask, faults: Mapping[int, str]
) -> dict[str, Any]:
    """One rank, in its process."""
    listener = PointFaults.parse(faults.get(ranks.rank, ""))
    listen_too(listener)
    with stop_on_signals(only_first=False) as stop_requested:
        train_rank(task, ranks, SentProgress(report), stop_requested, save_last=True)
    return {"passed": dict(listener.passed)}


def _stacks_of(task: TrainTask) -> Path:
    """Where a person looks for the logs of a run, apart for each attempt.

    Where the storage has no folder it is a temporary one, which stays if anything is in it.
    """
    folder = local_folder(task.layout.storage)
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="batchtrain-stacks-")) / f"attempt-{task.claim}"
    return folder / task.layout.logs / f"attempt-{task.claim}"
