"""How far a run has come, read from what it has published; it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchtrain.artifacts import RunLayout, find_artifact
from batchtrain.artifacts.claims import read_claims
from batchtrain.artifacts.trained import TRAINED_MODEL, TrainedModel
from batchtrain.progress import Progress
from batchtrain.training.lineage import newest_checkpoint

__all__ = ["RunStanding", "run_standing"]


@dataclass(frozen=True)
class RunStanding:
    """A run between two steps, or at its end.

    Attributes:
        history: One record an epoch; epoch 0 is the untrained model. Empty before the first.
        epochs: Those that are over.
        best_epoch: The one with the best weights so far.
        ended_by: What ended it before its last epoch; empty where nothing did.
        is_finished: Whether its model is published.
    """

    history: Sequence[Mapping[str, Any]] = ()
    epochs: int = 0
    best_epoch: int = 0
    ended_by: str = ""
    is_finished: bool = False


def run_standing(layout: RunLayout, progress: Progress) -> RunStanding:
    """What a run's model, or else its newest checkpoint, says of it.

    Raises:
        ArtifactError: If neither can be read.
    """
    found = find_artifact(layout.storage, layout.model, TRAINED_MODEL)
    if found is not None:
        model = TrainedModel(found)
        content = model.content
        return RunStanding(
            history=model.history(),
            epochs=int(content["epochs"]),
            best_epoch=int(content["best_epoch"]),
            ended_by=str(content["ended_by"]),
            is_finished=True,
        )
    claims = read_claims(layout.storage, layout.root)
    checkpoint = newest_checkpoint(layout, claims, progress) if claims else None
    if checkpoint is None:
        return RunStanding()
    document = json.loads(checkpoint.artifact.read("state.json"))
    return RunStanding(
        history=document["history"],
        epochs=int(document["epoch"]),
        best_epoch=int(document["best_epoch"]),
        ended_by=str(document["ended_by"]),
    )
