"""One rank's training, from prepared data to the last step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from batchtrain.artifacts import Artifact, RunLayout, open_artifact
from batchtrain.artifacts.claims import check_fence
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.errors import ArtifactError, InterruptedRunError, StorageError, TrainingError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import Loss, make_loss, num_outputs, resolve_loss
from batchtrain.models.optim import EarlyStop, build_optimizer, build_schedule
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import RunSpec
from batchtrain.training.checkpoints import restore
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.lineage import CheckpointName
from batchtrain.training.loading import RowLoader
from batchtrain.training.loop import train_until_done
from batchtrain.training.machine import MachineChoices, machine_in_force
from batchtrain.training.plan import TrainingPlan, make_plan, row_order
from batchtrain.training.ranks import Ranks
from batchtrain.training.rows import measured_splits
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.shards import CheckedShards, ShardReader, StoredShards
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.tracking import RunWatcher, open_event_log

__all__ = ["TrainTask", "resumed_state", "train_rank"]


@dataclass(frozen=True)
class TrainTask:
    """All that a rank is told; plain data, so that it can be sent to another process.

    Attributes:
        loaded: The spec.
        prepared: The rows.
        layout: Where the run lies.
        machine: The choices in force.
        allow_code: Packages whose code a custom model may run.
        claim: The number of the claim that the owner of the run holds.
        token: What tells the owner from any other.
        published: The checkpoints that are there.
        resumed: The one to go on from; None for a start.
        digest: The digest of its manifest, so that no rank goes on from another.
        inexact: What this attempt cannot do as the one before did.
    """

    loaded: LoadedSpec
    prepared: PreparedData
    layout: RunLayout
    machine: MachineChoices
    allow_code: tuple[str, ...]
    claim: int
    token: str
    published: tuple[CheckpointName, ...] = ()
    resumed: CheckpointName | None = None
    digest: str = ""
    inexact: tuple[Mapping[str, Any], ...] = ()

    @property
    def spec(self) -> RunSpec:
        """The spec."""
        return self.loaded.spec

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return make_loss(resolve_loss(self.spec.training.loss, self.prepared.task))

    @property
    def inputs(self) -> ModelInputs:
        """The widths of the model."""
        prepared = self.prepared
        return ModelInputs(
            num_numeric=prepared.num_numeric,
            cardinalities=prepared.cardinalities,
            num_outputs=num_outputs(self.loss.name, prepared.task, prepared.num_classes),
        )

    @property
    def plan(self) -> TrainingPlan:
        """How far and in which steps to train."""
        order = row_order(self.prepared, seed=self.spec.seed)
        return make_plan(self.spec.training, order)

    @property
    def measured(self) -> list[str]:
        """The splits to look at after each epoch: valid, and those that `monitor` names."""
        return measured_splits(self.spec, self.prepared)


def train_rank(
    task: TrainTask,
    ranks: Ranks,
    progress: Progress,
    stop_requested: Callable[[], bool],
    *,
    save_last: bool,
    shards: ShardReader | None = None,
) -> TrainState:
    """Train one rank to the end; rank 0 writes the checkpoints and the event files.

    Args:
        task: What to train.
        ranks: Which of how many this is.
        progress: Hears of the training.
        stop_requested: Whether somebody asked this rank for a stop.
        save_last: Whether the last state is a checkpoint too, for a launcher in another process.
        shards: Reads the rows; left out, they are read from storage.

    Raises:
        ArtifactDamagedError: If a shard is not what it must be.
        InterruptedRunError: If a rank was asked to stop; a checkpoint is published then.
        DivergedError: If the loss is no longer a finite number.
        FencedError: If another process has taken the run over.
    """
    plan, measured = task.plan, task.measured
    reader = CheckedShards(shards or StoredShards(task.prepared), task.prepared, task.inputs)
    with machine_in_force(task.machine) as device, ExitStack() as stack:
        worker = RowLoader(reader, task.prepared, device).worker(
            plan, task.machine, measured, ranks=ranks, determinism=task.spec.determinism
        )
        stack.callback(worker.close)
        state = resumed_state(task, device)
        if ranks.size > 1:
            _check_same_weights(state, ranks)
        writer = watcher = None
        if ranks.rank == 0:
            writer = stack.enter_context(_checkpoint_writer(task, state))
            watcher = stack.enter_context(_watcher(task, state, plan, progress))
        keeper = StateKeeper(task.spec.training.checkpoint, ranks, writer, stop_requested)
        done = train_until_done(
            state, worker, plan, task.loss, watcher or RunWatcher.silent(), keeper, measured
        )
        if not done:
            # Whoever ends all ranks at the first error would cut off what rank 0 still writes.
            ranks.gather(None)
            raise _interrupted(state, task)
        if ranks.size > 1:
            _check_same_weights(state, ranks)
        if save_last and writer is not None:
            writer.save(state.snapshot(), wait=True)
    # A rank that returned while rank 0 still writes would seem to have ended early.
    ranks.gather(None)
    return state


def resumed_state(task: TrainTask, device: torch.device) -> TrainState:
    """The state to begin with: that of the checkpoint to go on from, or a new one."""
    state = _new_state(task, device)
    if task.resumed is not None:
        restore(state, _checkpoint(task, task.resumed))
        state.inexact.extend(dict(entry) for entry in task.inexact)
    return state


def _checkpoint(task: TrainTask, name: CheckpointName) -> Artifact:
    """The checkpoint that the whole run goes on from, the same bytes on every rank."""
    found = open_artifact(task.layout.storage, name.key(task.layout), CHECKPOINT)
    if task.digest and found.manifest.digest != task.digest:
        raise ArtifactError(
            f"expected the checkpoint {task.digest[:12]} in {found.url}, found "
            f"{found.manifest.digest[:12]}. Give all ranks the same storage"
        )
    return found


def _new_state(task: TrainTask, device: torch.device) -> TrainState:
    spec = task.spec
    model = build_model(
        spec.model,
        task.inputs,
        seed=spec.seed,
        allow_code=task.allow_code,
        search=task.loaded.path.parent,
    ).to(device)
    optimizer = build_optimizer(
        spec.training.optimizer, model.parameters(), fused=task.machine.fused
    )
    stopping = spec.training.early_stopping
    return TrainState(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(spec.training.schedule, optimizer, spec.training.epochs),
        early_stop=EarlyStop(stopping.patience, stopping.min_delta) if stopping else None,
    )


def _checkpoint_writer(task: TrainTask, state: TrainState) -> CheckpointWriter:
    def check_owner() -> None:
        check_fence(task.layout.storage, task.layout.root, task.claim, task.token)

    return CheckpointWriter(
        task.layout,
        task.machine,
        claim=task.claim,
        check_owner=check_owner,
        keep=task.spec.training.checkpoint.keep,
        published=list(task.published),
        resumed=task.resumed,
        best_epoch=state.best_epoch,
    )


def _watcher(
    task: TrainTask, state: TrainState, plan: TrainingPlan, progress: Progress
) -> RunWatcher:
    try:
        log = open_event_log(task.loaded, task.layout, state, task.inputs)
    except (OSError, StorageError) as error:
        progress.note(f"there are no event files for TensorBoard, they cannot be opened: {error}")
        log = None
    return RunWatcher(progress, log, task.spec.tracking.monitor, plan)


def _interrupted(state: TrainState, task: TrainTask) -> InterruptedRunError:
    checkpoint = task.layout.checkpoint(state.step, task.claim)
    return InterruptedRunError(
        f"stopped after step {state.step}; {state.epoch} of {task.plan.epochs} epochs are done, "
        f"and the checkpoint is {task.layout.storage.url(checkpoint)}. "
        "Run the same command again to go on from there"
    )


def _check_same_weights(state: TrainState, ranks: Ranks) -> None:
    """Make sure that all ranks have the same weights, before the first step and after the last.

    Raises:
        TrainingError: If they do not: a rank computes something else.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights_of(state.model).items()):
        digest.update(name.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    found: Sequence[str] = ranks.gather(digest.hexdigest())
    others = [rank for rank, each in enumerate(found) if each != found[0]]
    if others:
        raise TrainingError(
            f"expected the same weights on all {len(found)} ranks, found others on ranks {others}. "
            "A custom model must compute the same on every rank: look for its own random numbers "
            "and for state that is not a buffer"
        )
