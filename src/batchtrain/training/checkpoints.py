"""Write and read the checkpoints of a run; each is published as every artifact is."""

from __future__ import annotations

from collections.abc import Callable

from batchtrain.artifacts import Artifact, Draft, RunLayout, reuse_or_build
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.points import passed
from batchtrain.training.lineage import CheckpointName
from batchtrain.training.machine import MachineChoices
from batchtrain.training.state import Snapshot, TrainState

__all__ = ["publish_checkpoint", "recorded_machine", "restore"]


def publish_checkpoint(
    snapshot: Snapshot,
    machine: MachineChoices,
    layout: RunLayout,
    *,
    claim: int,
    check_owner: Callable[[], None],
) -> CheckpointName:
    """Publish the state between two steps, and the choices that a resume must make again.

    Args:
        snapshot: The state.
        machine: The choices.
        layout: Where the run lies.
        claim: The claim that this process holds.
        check_owner: Raises `FencedError` if somebody else has taken the run over.
    """

    def build(draft: Draft) -> dict[str, int]:
        tensors, document = snapshot.to_bytes()
        draft.add("state.safetensors", tensors)
        draft.add("state.json", document)
        draft.add_json("run.json", machine.to_json())
        return {"step": snapshot.step, "epoch": snapshot.epoch, "claim": claim}

    name = CheckpointName(snapshot.place, claim)
    passed("checkpoint.begun")
    reuse_or_build(
        layout.storage,
        name.key(layout),
        CHECKPOINT,
        inputs={"run": layout.run_id, "step": snapshot.place, "claim": claim},
        build=build,
        check=check_owner,
    )
    passed("checkpoint.published")
    pointer = canonical_json({"step": name.step, "claim": name.claim})
    layout.storage.write(layout.newest_checkpoint, pointer)
    passed("checkpoint.named")
    return name


def recorded_machine(checkpoint: Artifact) -> MachineChoices:
    """The choices of the run that the checkpoint is of."""
    return MachineChoices.from_bytes(checkpoint.read("run.json"), where=checkpoint.url)


def restore(state: TrainState, checkpoint: Artifact) -> None:
    """Make `state` what it was when the checkpoint was published.

    Raises:
        ArtifactError: If the checkpoint is damaged or belongs to another model.
    """
    passed("resume.reading")
    state.load_bytes(
        checkpoint.read("state.safetensors"), checkpoint.read("state.json"), where=checkpoint.url
    )
    passed("resume.done")
