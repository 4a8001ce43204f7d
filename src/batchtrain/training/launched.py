"""What launchers of ranks in other processes have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from batchtrain.artifacts.claims import read_claims
from batchtrain.errors import ArtifactMissingError
from batchtrain.progress import Progress, TrainingStanding
from batchtrain.training.lineage import published_checkpoints
from batchtrain.training.machine import machine_in_force
from batchtrain.training.rank import TrainTask, resumed_state
from batchtrain.training.state import TrainState

__all__ = ["SentProgress", "hear_progress", "last_state"]


class SentProgress(Progress):
    """Sends what a rank's training says to the process that launched it, as JSON."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        self._send({"epoch": dict(record), "epochs": epochs})

    def working(self, what: str, done: int, total: int | None) -> None:
        """See `Progress.working`."""
        self._send({"working": what, "done": done, "total": total})

    def training(self, standing: TrainingStanding) -> None:
        """See `Progress.training`."""
        self._send({"training": asdict(standing)})

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._send({"note": text})


def hear_progress(value: Mapping[str, Any], progress: Progress) -> None:
    """Tell a progress what `SentProgress` sent."""
    if "note" in value:
        progress.note(value["note"])
    elif "working" in value:
        progress.working(value["working"], value["done"], value["total"])
    elif "training" in value:
        progress.training(TrainingStanding(**value["training"]))
    else:
        progress.epoch_finished(value["epoch"], value["epochs"])


def last_state(task: TrainTask) -> TrainState:
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
