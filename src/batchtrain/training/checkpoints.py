"""Checkpoints of a run: published as every artifact is, newest first on a resume."""

from __future__ import annotations

from batchtrain.artifacts import Artifact, Draft, RunLayout, open_artifact
from batchtrain.artifacts.artifact import MANIFEST, reuse_or_build
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.errors import ArtifactDamagedError, ArtifactError
from batchtrain.progress import Progress
from batchtrain.training.machine import MachineChoices
from batchtrain.training.state import TrainState

__all__ = [
    "newest_checkpoint",
    "recorded_machine",
    "remove_checkpoints",
    "restore",
    "save_checkpoint",
]


def save_checkpoint(state: TrainState, machine: MachineChoices, layout: RunLayout) -> Artifact:
    """Publish the state between two steps, and the choices that a resume must make again."""

    def build(draft: Draft) -> dict[str, int]:
        tensors, document = state.to_bytes()
        draft.add("state.safetensors", tensors)
        draft.add("state.json", document)
        draft.add_json("run.json", machine.to_json())
        return {"step": state.step, "epoch": state.epoch}

    key = layout.checkpoint(state.step)
    if not _verifies(layout, key):
        # A damaged one of the same step was passed over; it must not stand in the way.
        _remove(layout, key)
    artifact, _status = reuse_or_build(
        layout.storage,
        key,
        CHECKPOINT,
        inputs={"run": layout.run_id, "step": state.step},
        build=build,
    )
    return artifact


def newest_checkpoint(layout: RunLayout, progress: Progress) -> Artifact | None:
    """The checkpoint with the most steps that verifies, or None where none was ever published.

    Raises:
        ArtifactDamagedError: If there are checkpoints and all are damaged: beginning anew in
            silence would throw away work that somebody may want to save.
    """
    published = _published(layout)
    for key in reversed(published):
        try:
            found = open_artifact(layout.storage, key, CHECKPOINT)
            found.verify()
        except ArtifactError as error:
            progress.note(f"a damaged checkpoint is passed over: {error}")
        else:
            return found
    if published:
        raise ArtifactDamagedError(
            f"expected a whole checkpoint in {layout.storage.url(layout.checkpoints)}, found "
            f"{len(published)} damaged ones. Restore one, or delete that folder to begin anew"
        )
    return None


def recorded_machine(checkpoint: Artifact) -> MachineChoices:
    """The choices of the run that the checkpoint is of."""
    return MachineChoices.from_bytes(checkpoint.read("run.json"), where=checkpoint.url)


def restore(state: TrainState, checkpoint: Artifact) -> None:
    """Make `state` what it was when the checkpoint was published.

    Raises:
        ArtifactError: If the checkpoint is damaged or belongs to another model.
    """
    state.load_bytes(
        checkpoint.read("state.safetensors"), checkpoint.read("state.json"), where=checkpoint.url
    )


def remove_checkpoints(layout: RunLayout) -> None:
    """Delete all checkpoints of a run whose model is published.

    The manifests go first, so that no reader ever takes a part for a whole.
    """
    _remove(layout, layout.checkpoints)


def _remove(layout: RunLayout, folder: str) -> None:
    keys = layout.storage.list(folder)
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        layout.storage.delete(key)


def _verifies(layout: RunLayout, key: str) -> bool:
    try:
        open_artifact(layout.storage, key, CHECKPOINT).verify()
    except ArtifactError:
        return False
    return True


def _published(layout: RunLayout) -> list[str]:
    ending = f"/{MANIFEST}"
    keys = layout.storage.list(layout.checkpoints)
    return [key.removesuffix(ending) for key in keys if key.endswith(ending)]
