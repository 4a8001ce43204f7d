"""The training loop: it knows neither files, nor Ray, nor how many processes there are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from batchtrain.errors import DivergedError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.worker import Worker

__all__ = ["Keeper", "StepLosses", "Watcher", "measure", "train_until_done"]

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


class Keeper(Protocol):
    """What is asked between two steps whether to save and whether to go on."""

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        """Save the state where that is due; False where the run is to stop, all ranks alike."""
        ...


def train_until_done(
    state: TrainState,
    worker: Worker,
    plan: TrainingPlan,
    loss: Loss,
    watcher: Watcher,
    keeper: Keeper,
    measured: Sequence[str],
) -> bool:
    """Train to the last epoch, or until stopped; False if it was asked to stop before the end.

    The state is then between two steps, and a later call goes on as if it had not stopped.

    Args:
        state: Where to begin; it is changed in place.
        worker: Serves the rows.
        plan: How far to go.
        loss: What is minimised.
        watcher: Hears of every step and epoch.
        keeper: Saves the state and knows when to stop.
        measured: The splits whose loss and score are recorded after each epoch.

    Raises:
        DivergedError: If the loss is no longer a finite number.
    """
    model = worker.wrap(state.model, loss)
    if not state.history:
        _record_epoch(state, worker, loss, watcher, measured)
    while state.epoch < plan.epochs and not state.stopped:
        losses = StepLosses(state, watcher, worker)
        model.train()
        for share in worker.shares(state.epoch, state.step - state.epoch * plan.steps_per_epoch):
            state.optimizer.zero_grad()
            parts = worker.gradient(model, loss, share, state.step)
            state.optimizer.step()
            passed("step.optimizer")
            state.step += 1
            losses.add(parts, share.global_rows)
            # Before the keeper is asked, so that there is one state a step.
            if state.step % plan.steps_per_epoch == 0:
                losses.flush()
                state.epoch += 1
                _record_epoch(state, worker, loss, watcher, measured)
            if not keeper.goes_on(state, losses):
                return False
    return True


@dataclass
class StepLosses:
    """The losses of the latest steps, left on the device until there are enough to read."""

    state: TrainState
    watcher: Watcher
    worker: Worker
    _waiting: list[Tensor] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)

    def add(self, parts: Tensor, global_rows: int) -> None:
        """Take this rank's parts of the loss of the step that has just been taken."""
        self._waiting.append(parts)
        self._rows.append(global_rows)
        if len(self._waiting) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Read the losses and add them up, one step after the other in float64.

        The sum is the same wherever flushes fall, so an interruption cannot change it. All ranks
        read the same losses, so that all end in the same step where one is not finite.
        """
        if not self._waiting:
            return
        mine = torch.stack(self._waiting).reshape(len(self._waiting), -1).tolist()
        by_step = zip(*self.worker.ranks.gather(mine), strict=True)
        values = [
            _sum(list(chain.from_iterable(of_ranks))) / self.worker.loss_divisor(rows)
            for of_ranks, rows in zip(by_step, self._rows, strict=True)
        ]
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


def _sum(parts: list[float]) -> float:
    """The sum, the same on every version of Python; NaN and infinities as they come."""
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)


def _record_epoch(
    state: TrainState,
    worker: Worker,
    loss: Loss,
    watcher: Watcher,
    measured: Sequence[str],
) -> None:
    """Measure, record, keep the best weights, set the next learning rate.

    Before the first step this records epoch 0: what the untrained model gives.
    """
    passed("epoch.steps")
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "lr": state.learning_rate(),
        "train_loss": state.loss_sum / state.loss_rows if state.loss_rows else None,
    }
    for split in measured:
        record |= {
            f"{split}_{name}": value
            for name, value in measure(state.model, loss, worker, split).items()
            if f"{split}_{name}" not in record
        }
    state.history.append(record)
    if state.epoch:
        _decide(state, record)
    state.loss_sum, state.loss_rows = 0.0, 0
    watcher.epoch_done(record)
    passed("epoch.finished")


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
    passed("epoch.schedule")
    if state.early_stop is not None and valid_loss is not None:
        state.stopped = state.early_stop.update(valid_loss)


@torch.no_grad()
def measure(model: nn.Module, loss: Loss, worker: Worker, split: str) -> dict[str, float]:
    """The row-weighted loss of a split and its score: accuracy (a share), or R2.

    Each rank measures its blocks; what they found is merged in the order of the blocks, so that
    the number of ranks does not show in the last bit.

    Args:
        model: Not wrapped by DDP, which would wait for ranks that have fewer blocks.
        loss: What is summed.
        worker: Serves the blocks.
        split: Which rows.

    Raises:
        DivergedError: If the loss is not finite.
    """
    model.eval()
    mine: list[list[float]] = []
    for number, batch in worker.split_blocks(split):
        outputs_BK = model(batch.numeric_BF, batch.codes_BC)
        mine.append([number, *_block_parts(outputs_BK, batch, loss)])
        passed("measure.block")
    blocks = sorted(block for of_rank in worker.ranks.gather(mine) for block in of_rank)
    found = _merged(block[1:] for block in blocks)
    if not math.isfinite(found.loss_sum):
        raise DivergedError(
            f"expected a finite loss on the {split} split, found {found.loss_sum}. "
            "Lower `training.optimizer.lr`, or look for extreme values in the data"
        )
    scores = {"loss": found.loss_sum / found.rows}
    if loss.name in {"cross_entropy", "bce"}:
        scores["accuracy"] = found.right / found.rows
    elif found.spread > 0:
        scores["r2"] = 1 - found.residual / found.spread
    return scores


@dataclass(frozen=True)
class _Parts:
    """Sums over rows: the loss; rows predicted right; squared errors and deviations of targets."""

    rows: int = 0
    loss_sum: float = 0.0
    right: int = 0
    residual: float = 0.0
    mean: float = 0.0
    spread: float = 0.0


def _block_parts(outputs_BK: Tensor, batch: Batch, loss: Loss) -> list[float]:
    """The parts of one block, as a list in the order of the fields of `_Parts`."""
    rows, loss_sum = len(batch.target_B), float(loss.sum(outputs_BK, batch))
    if batch.target_B.is_floating_point():
        target = batch.target_B.double()
        residual = float((outputs_BK[:, 0].double() - target).square().sum())
        mean = float(target.mean())
        return [rows, loss_sum, 0, residual, mean, float((target - mean).square().sum())]
    if outputs_BK.shape[1] == 1:
        right = int(((outputs_BK[:, 0] > 0) == batch.target_B).sum())
    else:
        right = int((outputs_BK.argmax(dim=1) == batch.target_B).sum())
    return [rows, loss_sum, right, 0.0, 0.0, 0.0]


def _merged(blocks: Iterable[Sequence[Any]]) -> _Parts:
    """All blocks as one; the deviations as Chan, Golub and LeVeque (1983) merge them."""
    all_rows = _Parts()
    for rows, loss_sum, right, residual, mean, spread in blocks:
        total = all_rows.rows + rows
        gap = mean - all_rows.mean
        all_rows = _Parts(
            rows=total,
            loss_sum=all_rows.loss_sum + loss_sum,
            right=all_rows.right + right,
            residual=all_rows.residual + residual,
            mean=all_rows.mean + gap * rows / total,
            spread=all_rows.spread + spread + gap * gap * all_rows.rows * rows / total,
        )
    return all_rows
