"""The training loop: it knows neither files, nor Ray, nor how many processes there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from batchtrain.errors import DivergedError
from batchtrain.models.losses import Loss
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.worker import Worker

__all__ = ["StepLosses", "Watcher", "measure", "train_until_done"]

FLUSH_STEPS = 64
"""Losses are read from the device every so many steps: reading each would make it wait."""


class Watcher(Protocol):
    """What hears of the training; it never changes the result."""

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """Steps `first_step`, `first_step + 1`, ... had these mean losses."""
        ...

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch is over; `record` is its line of the history."""
        ...


def train_until_done(
    state: TrainState,
    worker: Worker,
    plan: TrainingPlan,
    loss: Loss,
    watcher: Watcher,
    measured: Sequence[str],
) -> bool:
    """Train to the last epoch, or until stopped; False if it was asked to stop before the end.

    The state is then between two steps, and a later call goes on as if it had not stopped.

    Args:
        state: Where to begin; it is changed in place.
        worker: Serves the batches.
        plan: How far to go.
        loss: What is minimised.
        watcher: Hears of every step and epoch.
        measured: The splits whose loss and score are recorded after each epoch.

    Raises:
        DivergedError: If the loss is no longer a finite number.
    """
    model = worker.wrap(state.model)
    if not state.history:
        _finish_epoch(state, worker, model, loss, watcher, measured)
    while state.epoch < plan.epochs and not state.stopped:
        losses = StepLosses(state, watcher)
        model.train()
        for batch in worker.batches(state.epoch, state.step - state.epoch * plan.steps_per_epoch):
            worker.seed_step(state.step)
            state.optimizer.zero_grad()
            batch_loss = loss(model(batch.numeric_BF, batch.codes_BC), batch)
            batch_loss.backward()
            state.optimizer.step()
            state.step += 1
            losses.add(batch_loss.detach(), len(batch.target_B))
            if worker.stop_requested:
                losses.flush()
                return False
        losses.flush()
        state.epoch += 1
        _finish_epoch(state, worker, model, loss, watcher, measured)
    return True


@dataclass
class StepLosses:
    """The losses of the latest steps, left on the device until there are enough to read."""

    state: TrainState
    watcher: Watcher
    _waiting: list[Tensor] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)

    def add(self, loss: Tensor, rows: int) -> None:
        """Take the mean loss of the step that has just been taken, over `rows` rows."""
        self._waiting.append(loss)
        self._rows.append(rows)
        if len(self._waiting) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Read the losses and add them up, one step after the other in float64.

        The sum is the same wherever flushes fall, so an interruption cannot change it.
        """
        if not self._waiting:
            return
        values = torch.stack(self._waiting).tolist()
        first_step = self.state.step - len(values)
        for place, (value, rows) in enumerate(zip(values, self._rows, strict=True)):
            if not math.isfinite(value):
                self.watcher.steps_done(first_step, values[:place])
                raise DivergedError(
                    f"expected a finite training loss, found {value} in step {first_step + place} "
                    f"(epoch {self.state.epoch + 1}). Lower `training.optimizer.lr`, or look for "
                    "extreme values in the data"
                )
            self.state.loss_sum += value * rows
            self.state.loss_rows += rows
        self.watcher.steps_done(first_step, values)
        self._waiting.clear()
        self._rows.clear()


def _finish_epoch(
    state: TrainState,
    worker: Worker,
    model: nn.Module,
    loss: Loss,
    watcher: Watcher,
    measured: Sequence[str],
) -> None:
    """Measure, record, keep the best weights, set the next learning rate.

    Before the first step this records epoch 0: what the untrained model gives.
    """
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "lr": state.learning_rate(),
        "train_loss": state.loss_sum / state.loss_rows if state.loss_rows else None,
    }
    for split in measured:
        record |= {
            f"{split}_{name}": value
            for name, value in measure(model, loss, worker, split).items()
            if f"{split}_{name}" not in record
        }
    state.history.append(record)
    if state.epoch:
        _decide(state, record)
    state.loss_sum, state.loss_rows = 0.0, 0
    watcher.epoch_done(record)


def _decide(state: TrainState, record: dict[str, Any]) -> None:
    """What an epoch's validation loss decides: the best weights, the next rate, whether to stop.

    Without a validation split the last weights count as the best: the training loss of an epoch is
    measured before its steps, so it says little about the weights after them.
    """
    valid_loss = record.get("valid_loss")
    if valid_loss is None:
        state.best_epoch = state.epoch
    elif valid_loss < state.best_loss:
        state.best_loss, state.best_epoch = valid_loss, state.epoch
        state.best_weights = weights_of(state.model)
    state.schedule.step(state.epoch - 1, valid_loss)
    if state.early_stop is not None and valid_loss is not None:
        state.stopped = state.early_stop.update(valid_loss)


@torch.no_grad()
def measure(model: nn.Module, loss: Loss, worker: Worker, split: str) -> dict[str, float]:
    """The row-weighted loss of a split and its score: accuracy (a share), or R2.

    Raises:
        DivergedError: If the loss is not finite.
    """
    model.eval()
    loss_sum = 0.0
    rows = right = 0
    residual = total = square = 0.0
    shift: float | None = None
    for batch in worker.split_batches(split):
        outputs_BK = model(batch.numeric_BF, batch.codes_BC)
        loss_sum += float(loss.sum(outputs_BK, batch))
        rows += len(batch.target_B)
        if batch.target_B.is_floating_point():
            target = batch.target_B.double()
            residual += float((outputs_BK[:, 0].double() - target).square().sum())
            # Distances from any one value: sums of squares of large targets would cancel.
            shift = float(target[0]) if shift is None else shift
            total += float((target - shift).sum())
            square += float((target - shift).square().sum())
        elif outputs_BK.shape[1] == 1:
            right += int(((outputs_BK[:, 0] > 0) == batch.target_B).sum())
        else:
            right += int((outputs_BK.argmax(dim=1) == batch.target_B).sum())
    if not math.isfinite(loss_sum):
        raise DivergedError(
            f"expected a finite loss on the {split} split, found {loss_sum}. "
            "Lower `training.optimizer.lr`, or look for extreme values in the data"
        )
    found = {"loss": loss_sum / rows}
    spread = square - total * total / rows
    if loss.name in {"cross_entropy", "bce"}:
        found["accuracy"] = right / rows
    elif spread > 0:
        found["r2"] = 1 - residual / spread
    return found
