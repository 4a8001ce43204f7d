"""Checkpoints of a run: published as every artifact is, newest first on a resume."""

from __future__ import annotations

from batchtrain.artifacts import Artifact, Draft, RunLayout, open_artifact, remove_artifact
from batchtrain.artifacts.artifact import MANIFEST, reuse_or_build
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.training.state import TrainState

__all__ = ["newest_checkpoint", "remove_checkpoints", "restore", "save_checkpoint"]


def save_checkpoint(state: TrainState, layout: RunLayout) -> Artifact:
    """Publish the state between two steps."""

    def build(draft: Draft) -> dict[str, int]:
        tensors, document = state.to_bytes()
        draft.add("state.safetensors", tensors)
        draft.add("state.json", document)
        return {"step": state.step, "epoch": state.epoch}

    artifact, _status = reuse_or_build(
        layout.storage,
        layout.checkpoint(state.step),
        CHECKPOINT,
        inputs={"run": layout.run_id, "step": state.step},
        build=build,
    )
    return artifact


def newest_checkpoint(layout: RunLayout) -> Artifact | None:
    """The published checkpoint with the most steps, or None where there is none."""
    found = _published(layout)
    return open_artifact(layout.storage, found[-1], CHECKPOINT) if found else None


def restore(state: TrainState, checkpoint: Artifact) -> None:
    """Make `state` what it was when the checkpoint was published.

    Raises:
        ArtifactError: If the checkpoint is damaged or belongs to another model.
    """
    state.load_bytes(
        checkpoint.read("state.safetensors"), checkpoint.read("state.json"), where=checkpoint.url
    )


def remove_checkpoints(layout: RunLayout) -> None:
    """Delete all checkpoints of a run whose model is published."""
    for key in _published(layout):
        remove_artifact(open_artifact(layout.storage, key, CHECKPOINT))


def _published(layout: RunLayout) -> list[str]:
    ending = f"/{MANIFEST}"
    keys = layout.storage.list(layout.checkpoints)
    return [key.removesuffix(ending) for key in keys if key.endswith(ending)]
