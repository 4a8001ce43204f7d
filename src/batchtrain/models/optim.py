"""Optimizers, learning-rate schedules and early stopping; all their state is plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from batchtrain.errors import Problem, SpecError, TrainingError
from batchtrain.models.fused import FusedAdam, FusedSgd
from batchtrain.spec.training import Adam as AdamSpec
from batchtrain.spec.training import (
    CosineSchedule,
    OptimizerSpec,
    PlateauSchedule,
    ScheduleSpec,
    Sgd,
    StepSchedule,
)

__all__ = ["EarlyStop", "Schedule", "build_optimizer", "build_schedule"]


class Schedule(Protocol):
    """What decides the learning rate of the next epoch."""

    def step(self, epoch_finished: int, valid_loss: float | None) -> None:
        """Set the learning rate for the epoch after this one.

        Args:
            epoch_finished: The epoch that has just ended; the first is 0.
            valid_loss: The validation loss after it, if there is one.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object; the rate itself is the optimizer's."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the schedule that gave `state` would."""
        ...


def build_optimizer(
    spec: OptimizerSpec, params: Iterable[nn.Parameter], *, fused: bool
) -> Optimizer:
    """Build the optimizer; weight decay applies to all parameters, biases included.

    Args:
        spec: Which optimizer.
        params: The parameters to train, on their device.
        fused: Take torch's one-kernel step. It rounds differently, so it is chosen once a run.
    """
    taken = list(params)
    # One kernel takes one type on one device; torch sorts a mixture, which is rare, by itself.
    is_lean = fused and len({(each.dtype, each.device) for each in taken}) == 1
    if isinstance(spec, Sgd):
        return (FusedSgd if is_lean else SGD)(
            taken,
            lr=spec.lr,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
            fused=fused,
        )
    is_adam = isinstance(spec, AdamSpec)
    if is_lean:
        return FusedAdam(
            taken,
            lr=spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            decoupled_weight_decay=not is_adam,
        )
    return (Adam if is_adam else AdamW)(
        taken,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=fused,
    )


def build_schedule(spec: ScheduleSpec | None, optimizer: Optimizer, epochs: int) -> Schedule:
    """Build the schedule; None keeps the learning rate as it is.

    Args:
        spec: Which schedule.
        optimizer: Whose learning rate it sets; its present rate is the one to start from.
        epochs: How many epochs the run is meant to have; `cosine` is stretched over them.

    Raises:
        SpecError: If `min_lr` is above the rate that the schedule is to lower.
    """
    if spec is None:
        return ConstantRate()
    lowest = 0.0 if isinstance(spec, StepSchedule) else spec.min_lr
    highest = min(float(group["lr"]) for group in optimizer.param_groups)
    if lowest > highest:
        problem = Problem(
            where="",
            key="training.schedule.min_lr",
            message=f"expected at most the optimizer's lr, {highest!r}, found {lowest!r}",
            hint="The schedule lowers the rate from `lr` to `min_lr`; swap or adjust the two.",
        )
        raise SpecError([problem])
    if isinstance(spec, PlateauSchedule):
        return PlateauRate(spec, optimizer)
    return EpochRate(spec, optimizer, epochs)


def rate_after(
    spec: StepSchedule | CosineSchedule, base_lr: float, epoch: int, epochs: int
) -> float:
    """The learning rate of `epoch` (the first is 0), from its number alone."""
    if isinstance(spec, StepSchedule):
        return base_lr * float(spec.factor ** (epoch // spec.every_epochs))
    share = min(epoch / epochs, 1.0)
    return spec.min_lr + (base_lr - spec.min_lr) * (1 + math.cos(math.pi * share)) / 2


class ConstantRate:
    """The learning rate stays as it is."""

    def step(self, epoch_finished: int, valid_loss: float | None) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class EpochRate:
    """A rate that is a pure function of the epoch's number, so that a resume cannot shift it."""

    def __init__(
        self, spec: StepSchedule | CosineSchedule, optimizer: Optimizer, epochs: int
    ) -> None:
        self.spec = spec
        self.optimizer = optimizer
        self.epochs = epochs
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, epoch_finished: int, valid_loss: float | None) -> None:
        """Set the rate of the next epoch; the validation loss plays no part."""
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = rate_after(self.spec, base_lr, epoch_finished + 1, self.epochs)

    def state(self) -> dict[str, Any]:
        """The rates that the run began with."""
        return {"base_lrs": list(self.base_lrs)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the rates that the run began with; the optimizer's may be lower by now."""
        self.base_lrs = [float(base_lr) for base_lr in state["base_lrs"]]


class PlateauRate:
    """Torch's ReduceLROnPlateau: a fall counts when it is more than 1e-4 of the best loss."""

    KEYS = ("num_bad_epochs", "cooldown_counter", "last_epoch")

    def __init__(self, spec: PlateauSchedule, optimizer: Optimizer) -> None:
        self.inner = ReduceLROnPlateau(
            optimizer,
            mode="min",
            factor=spec.factor,
            patience=spec.patience,
            threshold=1e-4,
            threshold_mode="rel",
            min_lr=spec.min_lr,
        )

    def step(self, epoch_finished: int, valid_loss: float | None) -> None:
        """Lower the rate once the loss has not fallen for long enough; NaN is no fall."""
        if valid_loss is None:
            raise TrainingError(
                "training.schedule plateau: expected a validation loss after epoch "
                f"{epoch_finished}, found none. Give `data.split.fractions.valid` a share."
            )
        self.inner.step(valid_loss)

    def state(self) -> dict[str, Any]:
        """The best loss (None before the first) and how long ago it was."""
        inner = self.inner.state_dict()
        return {"best": _finite(inner["best"]), **{key: inner[key] for key in self.KEYS}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        counters = {key: int(state[key]) for key in self.KEYS}
        best = _or_infinite(state["best"])
        self.inner.load_state_dict({**self.inner.state_dict(), **counters, "best": best})


@dataclass(slots=True)
class EarlyStop:
    """Stop once the loss has not fallen for `patience` epochs in a row.

    A patience of 0 stops, as 1 does, at the first epoch without a fall.

    Attributes:
        patience: How many epochs without a fall are too many.
        min_delta: A fall smaller than this does not count.
        best: The lowest loss so far.
        bad_epochs: The epochs since then.
    """

    patience: int
    min_delta: float = 0.0
    best: float = math.inf
    bad_epochs: int = 0

    def update(self, value: float) -> bool:
        """Take the loss of one more epoch; say whether to stop. NaN is no fall."""
        if value < self.best and self.best - value >= self.min_delta:
            self.best = value
            self.bad_epochs = 0
            return False
        self.bad_epochs += 1
        return self.bad_epochs >= self.patience

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object."""
        return {"best": _finite(self.best), "bad_epochs": self.bad_epochs}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.best = _or_infinite(state["best"])
        self.bad_epochs = int(state["bad_epochs"])


def _finite(value: float) -> float | None:
    """JSON has no infinity: nothing was seen yet."""
    return float(value) if math.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else float(value)
