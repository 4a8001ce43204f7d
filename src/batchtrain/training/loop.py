"""The training loop: it knows neither files, nor Ray, nor how many processes there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from batchtrain.errors import DivergedError
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.spec.training import TrainingSpec
from batchtrain.training.deciding import Watched, decide, roll_back
from batchtrain.training.measuring import measure
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.state import TrainState
from batchtrain.training.update import make_update
from batchtrain.training.worker import Share, Worker

__all__ = ["Keeper", "StepLosses", "Watcher", "measure", "train_until_done"]

FLUSH_STEPS = 64
"""Losses are read from the device every so many steps: reading each would make it wait."""

PLAIN = TrainingSpec()


def _nobody(_text: str) -> None:
    """Tell nobody."""


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
        """Save the state where that is due; False where the run is to stop, all ranks alike.

        Where the time is up, it says so in `state.ended_by`; the run then ends as after its last
        step, and the state is not saved before that.
        """
        ...


def train_until_done(
    state: TrainState,
    worker: Worker,
    plan: TrainingPlan,
    loss: Loss,
    watcher: Watcher,
    keeper: Keeper,
    measured: Sequence[str],
    spec: TrainingSpec = PLAIN,
    note: Callable[[str], None] = _nobody,
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
        spec: What is done with gradients, and what follows from an epoch's numbers.
        note: Told what a person should know.

    Raises:
        DivergedError: If the loss is no longer a finite number, and the spec knows no way on.
    """
    model = worker.wrap(state.model, loss)
    update = make_update(spec, state, worker.ranks, note)
    epochs = _Epochs(state, worker, loss, watcher, measured, spec)
    if not state.history:
        epochs.record()
    while state.epoch < plan.epochs and not state.ended_by:
        state.begin_epoch()
        losses = StepLosses(state, watcher, worker)
        end = plan.end_of(state.epoch)
        model.train()
        try:
            for share in worker.shares(state.epoch, plan.steps_into(state.epoch, state.step)):
                if state.schedule.per_step:
                    state.schedule.before_step(state.step)
                state.optimizer.zero_grad()
                parts = update(worker.gradient(model, loss, share, state.step))
                passed("step.optimizer")
                state.step += 1
                losses.add(parts, share.global_rows, _weight_of(share, loss))
                # Before the keeper is asked, so that there is one state a step.
                if state.step == end:
                    epochs.close(losses, plan)
                if not keeper.goes_on(state, losses):
                    return False
                if state.ended_by:
                    break
            if state.history[-1]["step"] != state.step:
                epochs.close(losses, plan)
        except DivergedError as error:
            note(roll_back(state, error, spec.on_nan))
    return True


def _weight_of(share: Share, loss: Loss) -> Tensor | None:
    """What a rank's rows of a batch weigh, a float64 scalar; None where each row weighs 1."""
    if not loss.is_weighted:
        return None
    return torch.stack([loss.weight_sum(batch) for batch in share.batches]).sum()


@dataclass
class StepLosses:
    """The losses of the latest steps, left on the device until there are enough to read."""

    state: TrainState
    watcher: Watcher
    worker: Worker
    _has_weights: bool = False
    _waiting: list[Tensor] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)

    def add(self, parts: Tensor | None, global_rows: int, weight: Tensor | None = None) -> None:
        """Take this rank's parts of the loss of the step that is just over.

        Args:
            parts: They; None where the step does not count.
            global_rows: The rows of the batch, over all ranks.
            weight: What this rank's rows of it weigh, a float64 scalar; None where each weighs 1,
                in all steps alike.
        """
        if parts is None:
            self._read(self.state.step - 1)
            return
        if weight is not None:
            parts = torch.cat([weight.reshape(1), parts.reshape(-1)])
        self._has_weights = weight is not None
        self._waiting.append(parts)
        self._rows.append(global_rows)
        if len(self._waiting) == FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Read the losses and add them up, one step after the other in float64.

        The sum is the same wherever flushes fall, so an interruption cannot change it. All ranks
        read the same losses, so that all end in the same step where one is not finite.

        Raises:
            DivergedError: If a loss is not finite; the state says after which step.
        """
        self._read(self.state.step)

    def _read(self, end: int) -> None:
        """Read the losses of the steps right before `end`."""
        if not self._waiting:
            return
        mine = torch.stack(self._waiting).reshape(len(self._waiting), -1).tolist()
        by_step = list(zip(*self.worker.ranks.gather(mine), strict=True))
        counted: list[float] = list(self._rows)
        if self._has_weights:
            counted = [_sum([parts[0] for parts in of_ranks]) for of_ranks in by_step]
            by_step = [tuple(parts[1:] for parts in of_ranks) for of_ranks in by_step]
        values = [
            _sum(list(chain.from_iterable(of_ranks))) / self.worker.loss_divisor(rows)
            for of_ranks, rows in zip(by_step, self._rows, strict=True)
        ]
        first_step = end - len(values)
        for place, (value, weight) in enumerate(zip(values, counted, strict=True)):
            if not math.isfinite(value):
                self.watcher.steps_done(first_step, values[:place])
                self.state.diverged_at = first_step + place + 1
                raise DivergedError(
                    f"expected a finite training loss, found {value} in step {first_step + place} "
                    f"(epoch {self.state.epoch + 1}). Lower `training.optimizer.lr`, or look for "
                    "extreme values in the data"
                )
            self.state.loss_sum += value * weight
            self.state.loss_rows += weight
        self.watcher.steps_done(first_step, values)
        self._waiting.clear()
        self._rows.clear()


def _sum(parts: list[float]) -> float:
    """The sum, the same on every version of Python; NaN and infinities as they come."""
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)


@dataclass(frozen=True)
class _Epochs:
    """What is done at the end of an epoch."""

    state: TrainState
    worker: Worker
    loss: Loss
    watcher: Watcher
    measured: Sequence[str]
    spec: TrainingSpec

    def close(self, losses: StepLosses, plan: TrainingPlan) -> None:
        """End an epoch, be it at its last row or before."""
        state = self.state
        losses.flush()
        state.epoch += 1
        self.record()
        if state.step == plan.max_steps and not state.ended_by:
            state.ended_by = "max_steps"

    def record(self) -> None:
        """Measure, record, keep the best weights, set the next learning rate.

        Before the first step this records epoch 0: what the untrained model gives.
        """
        passed("epoch.steps")
        state, watched = self.state, Watched.of(self.spec)
        record: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "lr": state.learning_rate(),
            "train_loss": state.loss_sum / state.loss_rows if state.loss_rows else None,
        }
        if state.left_out.in_epoch:
            record["left_out_steps"] = state.left_out.in_epoch
        for name, value in self._measured(watched).items():
            record.setdefault(name, value)
        state.history.append(record)
        if state.epoch:
            decide(state, record, watched, keep_best=self.spec.checkpoint.keep_best)
        state.loss_sum, state.loss_rows, state.left_out.in_epoch = 0.0, 0, 0
        if self.spec.on_nan == "roll_back":
            state.anchor = state.moving()
        self.watcher.epoch_done(record)
        passed("epoch.finished")

    def _measured(self, watched: Watched) -> dict[str, float]:
        state, found = self.state, dict[str, float]()
        with state.averaged():
            for split in self.measured:
                metrics = watched.metrics if split == "valid" else ()
                try:
                    scores = measure(state.model, self.loss, self.worker, split, metrics)
                except DivergedError:
                    # What the ranks found was gathered, so that all of them come here.
                    state.diverged_at = state.step
                    raise
                found |= {f"{split}_{name}": value for name, value in scores.items()}
        return found
