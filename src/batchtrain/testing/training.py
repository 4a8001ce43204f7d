"""A training on several ranks of this machine, in plain processes and without Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from batchtrain.artifacts.claims import read_claims
from batchtrain.errors import ArtifactMissingError
from batchtrain.progress import Progress
from batchtrain.storage import local_folder
from batchtrain.testing.child import Report, listen_too
from batchtrain.testing.faults import PointFaults
from batchtrain.testing.gloo import run_gloo
from batchtrain.testing.processes import DEFAULT_LIMITS, Limits
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.lineage import published_checkpoints
from batchtrain.training.machine import machine_in_force
from batchtrain.training.rank import TrainTask, resumed_state, train_rank
from batchtrain.training.ranks import GlooRanks
from batchtrain.training.state import TrainState

__all__ = ["GlooWorker"]


class GlooWorker:
    """Launches the ranks of a training as processes that form a gloo group.

    Each rank has its own model under DDP and its own part of every batch; rank 0 writes the
    checkpoints. Whatever befalls one of them ends all, with that rank's error.

    Attributes:
        size: W, the number of ranks.
        passed: Point to how often each rank passed it in the last training that ended.
    """

    def __init__(
        self,
        size: int,
        *,
        faults: Mapping[int, str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        stacks: Path | None = None,
    ) -> None:
        """Launch nothing yet.

        Args:
            size: The number of ranks.
            faults: Rank to what happens to it on purpose, as `PointFaults.parse` reads it.
            limits: When a rank counts as stuck, and how long a stop may take.
            stacks: The folder for the stacks of a rank that is stuck.
        """
        self.size = size
        self.passed: list[dict[str, int]] = []
        self._faults = dict(faults or {})
        self._limits = limits
        self._stacks = stacks

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
            if "note" in value:
                progress.note(value["note"])
            else:
                progress.epoch_finished(value["epoch"], value["epochs"])

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
        return _last_state(task)


class _Reported(Progress):
    """Sends what a rank's training says to the process that launched it."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        self._report({"epoch": dict(record), "epochs": epochs})

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._report({"note": text})


def _train(
    ranks: GlooRanks, report: Report, *, task: TrainTask, faults: Mapping[int, str]
) -> dict[str, Any]:
    """One rank, in its process."""
    listener = PointFaults.parse(faults.get(ranks.rank, ""))
    listen_too(listener)
    with stop_on_signals(only_first=False) as stop_requested:
        train_rank(task, ranks, _Reported(report), stop_requested, save_last=True)
    return {"passed": dict(listener.passed)}


def _stacks_of(task: TrainTask) -> Path:
    """Where a person looks for the logs of a run, apart for each attempt.

    Where the storage has no folder it is a temporary one, which stays if anything is in it.
    """
    folder = local_folder(task.layout.storage)
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="batchtrain-stacks-")) / f"attempt-{task.claim}"
    return folder / task.layout.logs / f"attempt-{task.claim}"


def _last_state(task: TrainTask) -> TrainState:
    """The state after the last step, which rank 0 left as a checkpoint.

    Raises:
        ArtifactMissingError: If it is gone.
    """
    layout = task.layout
    names = published_checkpoints(layout, read_claims(layout.storage, layout.root))
    if not names or names[-1].claim != task.claim:
        raise ArtifactMissingError(
            f"expected the last state of the training in {layout.storage.url(layout.checkpoints)}, "
            "found no checkpoint of this attempt. Let nobody clean this folder while a run writes"
        )
    last = replace(task, resumed=names[-1], digest="", inexact=())
    with machine_in_force(task.machine) as device:
        return resumed_state(last, device)
