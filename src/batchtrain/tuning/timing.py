"""How long the steps of a training take here, tried with random rows; nothing of it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.row_order import RowOrder
from batchtrain.training.measuring import measure
from batchtrain.training.passes import GradientRules
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.precision import precision_in_force
from batchtrain.training.rank import TrainTask, resumed_state
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import TrainState
from batchtrain.training.update import make_update
from batchtrain.training.worker import ResidentWorker, Share

__all__ = ["StepTimes", "time_steps"]

WARM_STEPS = 3
MOST_SECONDS = 0.6
MOST_STEPS = 200
MOST_EPOCHS = 1_000_000
MOST_BYTES = 1 << 28
"""Random rows take no more memory than this."""


@dataclass(frozen=True)
class StepTimes:
    """What was measured, and the memory of the model.

    Attributes:
        steps: How many were timed.
        step_seconds: One step, the mean over them.
        measured_row_seconds: One row of a split that is measured after an epoch.
        parameters: The numbers of the model.
        trained: Those of them that are trained.
        model_bytes: Weights, gradients and the state of the optimizer.
    """

    steps: int
    step_seconds: float
    measured_row_seconds: float
    parameters: int
    trained: int
    model_bytes: int


def time_steps(task: TrainTask, *, clock: Callable[[], float] = time.perf_counter) -> StepTimes:
    """Take some steps as a run of one worker does, on rows of random numbers.

    They are not compiled, as that takes longer than many a run. All rows are in memory.

    Args:
        task: What would be trained; its machine is in force by `machine_in_force`.
        clock: Seconds.

    Raises:
        TrainingError: If the model cannot be built or takes no step.
    """
    device, plan, all_rows = (
        torch.device(task.machine.device),
        _short(task),
        task.plan.order.num_rows,
    )
    state = resumed_state(task, device)
    rows = _random_rows(task, plan.order.num_rows)
    rules = GradientRules(
        micro_rows=task.machine.micro_rows,
        precision=precision_in_force(task.spec.training.precision, device),
        scaler=state.scaler,
        batch_rows=plan.batch_rows,
    )
    determinism = task.spec.determinism
    worker = ResidentWorker(plan, {"train": rows}, device, determinism=determinism, rules=rules)
    loss = task.loss.on(device)
    model = worker.wrap(state.model, loss)
    update = make_update(task.spec.training, state, OneRank(), lambda _: None)
    model.train()
    began, taken = clock(), 0
    for share in _shares(worker):
        if taken == WARM_STEPS:
            _wait(device)
            began = clock()
        state.optimizer.zero_grad()
        update(worker.gradient(model, loss, share, state.step))
        taken += 1
        is_enough = clock() - began > MOST_SECONDS or taken == WARM_STEPS + MOST_STEPS
        if taken > WARM_STEPS and is_enough:
            break
    _wait(device)
    seconds, steps = clock() - began, taken - WARM_STEPS
    began = clock()
    measure(state.model, loss, worker, "train")
    _wait(device)
    measuring = clock() - began
    return StepTimes(
        steps=steps,
        step_seconds=seconds / steps * min(task.plan.batch_rows, all_rows) / plan.batch_rows,
        measured_row_seconds=measuring / plan.order.num_rows,
        **_sizes(state),
    )


def _sizes(state: TrainState) -> dict[str, int]:
    """The numbers of the model, and what it takes with its gradients and moments."""
    moments = [
        each
        for of_parameter in state.optimizer.state.values()
        for each in of_parameter.values()
        if isinstance(each, torch.Tensor)
    ]
    weights = list(state.model.parameters())
    trained = [each for each in weights if each.requires_grad]
    return {
        "parameters": sum(each.numel() for each in weights),
        "trained": sum(each.numel() for each in trained),
        "model_bytes": sum(each.nbytes for each in [*weights, *trained, *moments]),
    }


def _short(task: TrainTask) -> TrainingPlan:
    """The plan of a table that is large enough to try it with."""
    plan = task.plan
    columns = 4 * task.inputs.num_numeric + 8 * len(task.inputs.cardinalities) + 12
    room = max(1, MOST_BYTES // columns)
    batch = min(plan.batch_rows, plan.order.num_rows, room)
    rows = min(plan.order.num_rows, room, 16 * batch)
    order = RowOrder(rows, lanes=1, shards_per_lane=1, window_rows=rows, seed=plan.order.seed)
    return replace(plan, order=order, batch_rows=batch, epochs=MOST_EPOCHS, max_steps=None)


def _shares(worker: ResidentWorker) -> Iterator[Share]:
    epoch = 0
    while True:
        yield from worker.shares(epoch, 0)
        epoch += 1


def _random_rows(task: TrainTask, count: int) -> SplitRows:
    random = np.random.default_rng(0)
    inputs, prepared = task.inputs, task.prepared
    codes = [random.integers(0, size, count) for size in inputs.cardinalities]
    is_regression = prepared.task == "regression"
    return SplitRows(
        numeric=random.standard_normal((count, inputs.num_numeric), dtype=np.float32),
        codes=np.stack(codes, axis=1) if codes else np.zeros((count, 0), np.int64),
        target=random.standard_normal(count)
        if is_regression
        else random.integers(0, prepared.num_classes, count),
        row_id=np.arange(count),
        weight=np.ones(count, np.float32) if prepared.has_weights else None,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
