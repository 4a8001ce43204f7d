"""One rank's training, from prepared data to the last step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from batchtrain.artifacts import Artifact, RunLayout, open_artifact
from batchtrain.artifacts.claims import check_fence
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.errors import ArtifactError, InterruptedRunError, PausedRunError, TrainingError
from batchtrain.models.build import build_model
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.progress import Progress
from batchtrain.training.changing import ValueChanges
from batchtrain.training.checkpoints import restore
from batchtrain.training.deciding import Watched
from batchtrain.training.ema import WeightAverage
from batchtrain.training.facts import TrainingFacts
from batchtrain.training.gradients import GradientRules
from batchtrain.training.keeping import Saver, StateKeeper
from batchtrain.training.lineage import CheckpointName
from batchtrain.training.loading import RowLoader
from batchtrain.training.loop import train_until_done
from batchtrain.training.machine import MachineChoices, machine_in_force
from batchtrain.training.micro_batches import memory_told
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.precision import LossScaler, precision_in_force
from batchtrain.training.profiling import ProfiledWorker, StepTrace
from batchtrain.training.ranks import Ranks
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.shards import ShardReader, StoredShards
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.tracking import LogSources, RunWatcher, open_run_logs
from batchtrain.training.warm_start import other_inputs, take_weights, warm_start_bundle
from batchtrain.training.worker import RankWorker, Worker

__all__ = ["TrainTask", "resumed_state", "train_rank"]


@dataclass(frozen=True)
class TrainTask(TrainingFacts):
    """All that a rank is told; plain data, so that it can be sent to another process.

    Attributes:
        layout: Where the run lies.
        machine: The choices in force.
        allow_code: Packages whose code a custom model may run.
        claim: The number of the claim that the owner of the run holds.
        token: What tells the owner from any other.
        published: The checkpoints that are there.
        resumed: The one to go on from; None for a start.
        digest: The digest of its manifest, so that no rank goes on from another.
        inexact: What this attempt cannot do as the one before did.
        assets: The files that a custom model needs, by name: a rank may not see the spec's folder.
        pause_after: The epoch after which the training stops for a while; None for its last.
    """

    layout: RunLayout
    machine: MachineChoices
    allow_code: tuple[str, ...]
    claim: int
    token: str
    published: tuple[CheckpointName, ...] = ()
    resumed: CheckpointName | None = None
    digest: str = ""
    inexact: tuple[Mapping[str, Any], ...] = ()
    assets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    pause_after: int | None = None


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
        PausedRunError: If it came to `pause_after`; the same.
        DivergedError: If the loss is no longer a finite number.
        FencedError: If another process has taken the run over.
        RankMemoryError: If a step does not fit into memory.
    """
    plan, training = task.plan, task.spec.training
    with machine_in_force(task.machine) as device, ExitStack() as stack:
        loss = task.loss.on(device)
        note = progress.note if ranks.rank == 0 else Progress().note
        state = resumed_state(task, device, note)
        reader = task.checked(shards or StoredShards(task.prepared))
        worker = _worker(task, reader, state, device, ranks)
        stack.callback(worker.close)
        _check_same_weights(state, ranks)
        writer = watcher = None
        if ranks.rank == 0:
            writer = stack.enter_context(_checkpoint_writer(task, state))
            watcher = stack.enter_context(_watcher(task, state, plan, progress))
        watcher = watcher or RunWatcher.silent()
        keeper = _keeper(task, state, ranks, watcher.before(writer), stop_requested)
        seen = _seen(worker, task, ranks, note, stack)
        with memory_told():
            done = train_until_done(
                state, seen, plan, loss, watcher, keeper, task.measured, training, note
            )
        if not done:
            # Whoever ends all ranks at the first error would cut off what rank 0 still writes.
            ranks.gather(None)
            raise _interrupted(state, task)
        _check_same_weights(state, ranks)
        if save_last and writer is not None:
            writer.save(state.snapshot(), wait=True)
    # A rank that returned while rank 0 still writes would seem to have ended early.
    ranks.gather(None)
    return state


def _keeper(
    task: TrainTask,
    state: TrainState,
    ranks: Ranks,
    saver: Saver | None,
    stop_requested: Callable[[], bool],
) -> StateKeeper:
    training = task.spec.training
    return StateKeeper(
        training.checkpoint,
        ranks,
        saver,
        stop_requested,
        max_seconds=training.max_time,
        seconds_before=state.seconds,
        pause_after=task.pause_after,
    )


def _worker(
    task: TrainTask, reader: ShardReader, state: TrainState, device: torch.device, ranks: Ranks
) -> RankWorker:
    """What serves this rank's rows and differentiates them."""
    return RowLoader(reader, task.prepared, device).worker(
        task.plan,
        task.machine,
        task.measured,
        ranks=ranks,
        determinism=task.spec.determinism,
        rules=_rules(task, state, device),
    )


def resumed_state(
    task: TrainTask, device: torch.device, note: Callable[[str], None] | None = None
) -> TrainState:
    """The state to begin with: that of the checkpoint to go on from, or a new one."""
    state = _new_state(task, device, note or Progress().note)
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


def _new_state(task: TrainTask, device: torch.device, note: Callable[[str], None]) -> TrainState:
    spec = task.spec
    model = build_model(
        spec.model,
        task.inputs,
        seed=spec.seed,
        allow_code=task.allow_code,
        search=task.loaded.path.parent,
        assets=task.assets,
        loss=task.loss,
    ).to(device)
    # A checkpoint holds what was taken; the bundle may be gone by then.
    warm_start = _warm_start(model, task, note) if task.resumed is None else None
    optimizer = build_optimizer(
        spec.training.optimizer, model.parameters(), fused=task.machine.fused
    )
    stopping = spec.training.early_stopping
    return TrainState(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(
            spec.training.schedule,
            optimizer,
            spec.training.epochs,
            warmup=spec.training.warmup,
            steps_per_epoch=task.plan.steps_per_epoch,
            max_steps=spec.training.max_steps,
            changes=spec.training.changes,
        ),
        early_stop=EarlyStop(
            stopping.patience, stopping.min_delta, mode=Watched.of(spec.training).mode
        )
        if stopping
        else None,
        scaler=LossScaler() if spec.training.precision == "float16" else None,
        average=WeightAverage(spec.training.ema, model) if spec.training.ema else None,
        changes=ValueChanges.of(spec, model, optimizer),
        warm_start=warm_start,
    )


def _warm_start(
    model: nn.Module, task: TrainTask, note: Callable[[str], None]
) -> dict[str, Any] | None:
    """Put the weights of the spec's bundle into a new model, where it names one."""
    spec = task.spec.training.warm_start
    if spec is None:
        return None
    bundle = warm_start_bundle(spec, task.loaded.path.parent)
    warning = other_inputs(bundle, task.prepared.preprocessing_state())
    if warning:
        note(warning)
    return {**take_weights(model, bundle, spec), "warning": warning}


def _rules(task: TrainTask, state: TrainState, device: torch.device) -> GradientRules:
    plan = task.plan
    return GradientRules(
        micro_rows=task.machine.micro_rows,
        precision=precision_in_force(task.spec.training.precision, device),
        scaler=state.scaler,
        compile=task.machine.compile,
        batch_rows=min(plan.batch_rows, plan.order.num_rows),
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
    sources = LogSources(
        task.loaded,
        task.prepared,
        task.layout,
        task.machine,
        task.inputs,
        plan,
        task.loss.name,
    )
    logs = open_run_logs(sources, state, progress.note)
    return RunWatcher(progress, logs, plan=plan, state=state)


def _seen(
    worker: Worker, task: TrainTask, ranks: Ranks, note: Callable[[str], None], stack: ExitStack
) -> Worker:
    """The worker, with a trace of some of rank 0's steps where one was asked for."""
    wanted = task.spec.tracking.profile
    if wanted is None or ranks.rank != 0:
        return worker
    trace = stack.enter_context(StepTrace(task.layout, wanted, note))
    return cast(Worker, ProfiledWorker(worker, trace, task.plan.steps_per_epoch))


def _interrupted(state: TrainState, task: TrainTask) -> InterruptedRunError:
    checkpoint = task.layout.checkpoint(state.place, task.claim)
    is_paused = task.pause_after is not None and state.epoch >= task.pause_after
    kind = PausedRunError if is_paused else InterruptedRunError
    return kind(
        f"stopped after step {state.step}; {state.epoch} of {task.plan.epochs} epochs are done, "
        f"and the checkpoint is {task.layout.storage.url(checkpoint)}. "
        "Run the same command again to go on from there"
    )


def _check_same_weights(state: TrainState, ranks: Ranks) -> None:
    """Make sure that all ranks have the same weights, before the first step and after the last.

    Raises:
        TrainingError: If they do not: a rank computes something else.
    """
    if ranks.size == 1:
        return
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
