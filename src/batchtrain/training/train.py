"""Train a model on prepared data in this process and write what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from batchtrain.artifacts import Artifact, Draft, RunLayout
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import InterruptedRunError
from batchtrain.models.build import build_model, describe_model
from batchtrain.models.inputs import ModelInputs, check_codes
from batchtrain.models.losses import make_loss, num_outputs, resolve_loss
from batchtrain.models.optim import EarlyStop, build_optimizer, build_schedule
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS
from batchtrain.spec.evaluation import TensorBoardSpec
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import RunSpec
from batchtrain.spec.training import LossName
from batchtrain.training.checkpoints import (
    newest_checkpoint,
    recorded_machine,
    restore,
    save_checkpoint,
)
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.loop import train_until_done
from batchtrain.training.machine import MachineChoices, choose_machine, machine_in_force
from batchtrain.training.plan import TrainingPlan, make_plan
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.tracking import TensorBoardLog
from batchtrain.training.worker import LocalWorker

__all__ = ["train_model"]


def train_model(
    loaded: LoadedSpec,
    prepared: PreparedData,
    layout: RunLayout,
    draft: Draft,
    progress: Progress,
    *,
    allow_code: Sequence[str],
) -> tuple[Mapping[str, Any], bool]:
    """Train to the end, going on from the newest checkpoint where there is one.

    Returns:
        The manifest's content, and whether a checkpoint was resumed.

    Raises:
        InterruptedRunError: If Ctrl-C or SIGTERM came; a checkpoint is published then.
        DivergedError: If the loss is no longer a finite number.
    """
    spec = loaded.spec
    checkpoint = newest_checkpoint(layout, progress)
    machine = _machine(spec, layout, checkpoint, progress)
    plan = make_plan(
        spec.training, num_rows=prepared.num_rows("train"), seed=spec.seed, lanes=prepared.lanes
    )
    measured = _measured_splits(spec, prepared)
    inputs = _model_inputs(spec, prepared)
    loss = make_loss(_loss_name(spec, prepared))
    with machine_in_force(machine) as device, ExitStack() as stack:
        rows = {split: prepared.load(split) for split in {"train", *measured}}
        check_codes(torch.from_numpy(rows["train"].codes.copy()), inputs)
        state = _new_state(loaded, inputs, plan, device, machine, allow_code)
        if checkpoint is not None:
            restore(state, checkpoint)
        log = _open_log(loaded, layout, state, inputs)
        watcher = _Watcher(progress, log, spec.tracking.monitor, plan.epochs)
        stack.callback(watcher.close)
        request = stack.enter_context(stop_on_signals())
        worker = LocalWorker(plan, rows, device, request, gather_rows=machine.gather_rows)
        if not train_until_done(state, worker, plan, loss, watcher, measured):
            raise _interrupted(state, save_checkpoint(state, machine, layout))
    return _write(state, spec, inputs, plan, machine, draft, loss.name), checkpoint is not None


@dataclass
class _Watcher:
    """Hands what happens to the terminal and to TensorBoard.

    A full disk under the event files is no reason to lose a model: the log ends, the run does not.
    """

    progress: Progress
    log: TensorBoardLog | None
    monitored: Sequence[str]
    epochs: int

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `Watcher.steps_done`."""
        self._write(lambda log: log.steps(first_step, losses))

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `Watcher.epoch_done`."""
        self.progress.epoch_finished(record, self.epochs)
        self._write(lambda log: log.epoch(record, self.monitored))

    def close(self) -> None:
        """Write everything out; also on failure."""
        self._write(lambda log: log.close())

    def _write(self, call: Callable[[TensorBoardLog], None]) -> None:
        if self.log is None:
            return
        try:
            call(self.log)
        except OSError as error:
            self.progress.note(
                f"the event files for TensorBoard end here, they cannot be written: {error}"
            )
            self.log = None


def _machine(
    spec: RunSpec, layout: RunLayout, checkpoint: Artifact | None, progress: Progress
) -> MachineChoices:
    """The choices of the first start, which a resume uses again whatever the spec says now."""
    choices = choose_machine(spec.resources)
    if checkpoint is None:
        layout.storage.write(layout.run_record, canonical_json(choices.to_json()))
        return choices
    recorded = recorded_machine(checkpoint)
    for name, (then, now) in recorded.differences(choices).items():
        progress.note(
            f"resumed where {name} is {now!r}; the run began with {then!r} ({checkpoint.url}). "
            "What can be chosen stays as it was; the last bits may differ from an unbroken run"
        )
    return recorded


def _measured_splits(spec: RunSpec, prepared: PreparedData) -> list[str]:
    """The splits to look at after each epoch: valid, and those that `monitor` names."""
    wanted = {"valid", *spec.tracking.monitor}
    return [split for split in SPLITS if split in wanted and prepared.num_rows(split)]


def _loss_name(spec: RunSpec, prepared: PreparedData) -> LossName:
    return resolve_loss(spec.training.loss, prepared.task)


def _model_inputs(spec: RunSpec, prepared: PreparedData) -> ModelInputs:
    return ModelInputs(
        num_numeric=prepared.num_numeric,
        cardinalities=prepared.cardinalities,
        num_outputs=num_outputs(_loss_name(spec, prepared), prepared.task, prepared.num_classes),
    )


def _new_state(
    loaded: LoadedSpec,
    inputs: ModelInputs,
    plan: TrainingPlan,
    device: torch.device,
    machine: MachineChoices,
    allow_code: Sequence[str],
) -> TrainState:
    spec = loaded.spec
    model = build_model(
        spec.model, inputs, seed=spec.seed, allow_code=allow_code, search=loaded.path.parent
    ).to(device)
    optimizer = build_optimizer(spec.training.optimizer, model.parameters(), fused=machine.fused)
    stopping = spec.training.early_stopping
    return TrainState(
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(spec.training.schedule, optimizer, plan.epochs),
        early_stop=EarlyStop(stopping.patience, stopping.min_delta) if stopping else None,
    )


def _open_log(
    loaded: LoadedSpec, layout: RunLayout, state: TrainState, inputs: ModelInputs
) -> TensorBoardLog | None:
    """Open the event files; what an earlier try wrote from this step on is void, not deleted.

    Another process may be training the same run and writing to the same folder.
    """
    wanted = loaded.spec.tracking.tensorboard
    if wanted is False:
        return None
    folder = Path(layout.storage.url(layout.tensorboard))
    if isinstance(wanted, TensorBoardSpec):
        folder = loaded.path.parent / wanted.dir / layout.root
    log = TensorBoardLog(
        folder,
        every_steps=loaded.spec.tracking.log_every_steps,
        purge_step=state.step,
    )
    device = next(state.model.parameters()).device
    numeric_BF = torch.zeros(2, inputs.num_numeric, device=device)
    codes_BC = torch.zeros(2, len(inputs.cardinalities), dtype=torch.int64, device=device)
    log.graph(state.model, (numeric_BF, codes_BC))
    return log


def _interrupted(state: TrainState, checkpoint: Artifact) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped in epoch {state.epoch + 1} after step {state.step}; "
        f"the checkpoint is {checkpoint.url}. "
        "Run the same command again to go on from there"
    )


def _write(
    state: TrainState,
    spec: RunSpec,
    inputs: ModelInputs,
    plan: TrainingPlan,
    machine: MachineChoices,
    draft: Draft,
    loss_name: str,
) -> dict[str, Any]:
    """Write the files of the trained model and return the manifest's content."""
    history = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in state.history)
    draft.add("best.safetensors", safetensors.torch.save(state.kept_weights()))
    draft.add("last.safetensors", safetensors.torch.save(weights_of(state.model)))
    draft.add("history.jsonl", history.encode())
    draft.add_json("run.json", machine.to_json())
    draft.add_json("parameters.json", describe_model(state.model))
    return {
        "model": spec.model.model_dump(mode="json", exclude={"target"}),
        "inputs": inputs.to_json(),
        "loss": loss_name,
        "batch_rows": plan.batch_rows,
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "stopped_early": state.stopped,
    }
