"""A trained model: best and last weights, the history, and what is needed to build it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from batchtrain.artifacts.artifact import Artifact, ArtifactKind

__all__ = ["CHECKPOINT", "TRAINED_MODEL", "TrainedModel", "best_file"]

TRAINED_MODEL = ArtifactKind("trained_model", 3)
CHECKPOINT = ArtifactKind("checkpoint", 3)


def best_file(place: int) -> str:
    """The file with the weights of one of the best epochs; the best of them is in place 0.

    Example:
        >>> best_file(0), best_file(1)
        ('best.safetensors', 'best-2.safetensors')
    """
    return "best.safetensors" if place == 0 else f"best-{place + 1}.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A view of a published artifact of kind `trained_model`."""

    artifact: Artifact

    @property
    def content(self) -> dict[str, Any]:
        """The manifest's content: model, inputs, loss, target scale, best epoch, epochs, steps."""
        return dict(self.artifact.manifest.content)

    def best_weights(self) -> bytes:
        """The weights after the best epoch, as safetensors."""
        return self.artifact.read(best_file(0))

    def history(self) -> list[dict[str, Any]]:
        """One record an epoch; epoch 0 is the untrained model."""
        lines = self.artifact.read("history.jsonl").decode().splitlines()
        return [json.loads(line) for line in lines]

    def machine(self) -> dict[str, Any]:
        """Every choice that the machine made."""
        return dict(self.artifact.read_json("run.json"))

    def inexact(self) -> list[dict[str, Any]]:
        """What a resume could not do as the attempt before it; empty for an exact run."""
        return list(self.artifact.read_json("inexact.json"))

    def parameters(self) -> list[dict[str, Any]]:
        """Name, shape and count of each parameter."""
        return list(self.artifact.read_json("parameters.json"))
