"""Learning-rate schedules and warm-up; all their state is plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer

from batchtrain.errors import Problem, SpecError, TrainingError
from batchtrain.models.rates import rate_at, warmup_share, warmup_steps
from batchtrain.spec.changes import Change, value_at
from batchtrain.spec.schedules import (
    ConstantSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    ScheduleSpec,
    Warmup,
)

__all__ = ["Schedule", "build_schedule"]


def build_schedule(
    spec: ScheduleSpec | None,
    optimizer: Optimizer,
    epochs: int,
    *,
    warmup: Warmup | None = None,
    steps_per_epoch: int | None = None,
    max_steps: int | None = None,
    changes: Sequence[Change] = (),
) -> Schedule:
    """Build the schedule, and set the rate of the first step.

    Args:
        spec: Which schedule; None keeps the learning rate as it is.
        optimizer: Whose learning rate it sets; its present rate is the one to start from.
        epochs: How many epochs the run is meant to have; `cosine`, `one_cycle` and others are
            stretched over them.
        warmup: How the rate grows over the first steps; None takes the full rate at once.
        steps_per_epoch: The global steps of an epoch; a warm-up, `one_cycle` and `max_steps`
            need it.
        max_steps: The global steps at most, where that is less than all epochs have.
        changes: Other rates to start from, from certain epochs on.

    Raises:
        SpecError: If `min_lr` is above the rate that the schedule is to lower.
    """
    spec = spec or ConstantSchedule(kind="constant")
    is_by_step = isinstance(spec, OneCycleSchedule)
    if steps_per_epoch is None:
        if is_by_step or warmup is not None or max_steps is not None:
            raise ValueError("one_cycle, a warm-up and max_steps need `steps_per_epoch`")
        steps_per_epoch = 1
    elif max_steps is not None:
        epochs = min(epochs, math.ceil(max_steps / steps_per_epoch))
    steps = min(epochs * steps_per_epoch, max_steps or math.inf)
    base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    _check_lowest(spec, min(base_lrs))
    course: Course
    if isinstance(spec, PlateauSchedule):
        course = Plateau(spec, base_lrs)
    else:
        course = Curve(spec, base_lrs, int(steps) if is_by_step else epochs)
    return Schedule(optimizer, course, warmup, steps_per_epoch, changes)


def _check_lowest(spec: ScheduleSpec, highest: float) -> None:
    lowest = getattr(spec, "min_lr", 0.0)
    if lowest > highest:
        problem = Problem(
            where="",
            key="training.schedule.min_lr",
            message=f"expected at most the optimizer's lr, {highest!r}, found {lowest!r}",
            hint="The schedule lowers the rate from `lr` to `min_lr`; swap or adjust the two.",
        )
        raise SpecError([problem])


class Course(Protocol):
    """The rates of a run as a schedule alone has them."""

    @property
    def by_step(self) -> bool:
        """Whether the rate changes from step to step, not from epoch to epoch."""
        ...

    def rates(self, number: int, base_lr: float | None = None) -> Sequence[float]:
        """The rate of each group in an epoch, or where it is `by_step` in a step.

        Args:
            number: Of the epoch or step.
            base_lr: In place of the rates that the run began with; None for those.
        """
        ...

    def finish(self, epoch: int, valid_loss: float | None) -> None:
        """Hear of the end of an epoch."""
        ...

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave `state` would."""
        ...


class Schedule:
    """Sets the learning rates: what the course says, times the warm-up, times `share`.

    Nothing is computed from the rate before, so that neither a warm-up nor a resume can shift it.

    Attributes:
        per_step: Whether `before_step` is to be called before every step; else the rate is that
            of the epoch, and nothing is to be done in between.
        share: What all rates are multiplied by; less than 1 after a roll-back.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        course: Course,
        warmup: Warmup | None,
        steps_per_epoch: int,
        changes: Sequence[Change] = (),
    ) -> None:
        self.per_step = course.by_step or warmup is not None
        self.share = 1.0
        self._optimizer = optimizer
        self._course = course
        self._steps_per_epoch = steps_per_epoch
        self._changes = changes
        self._warmup_start = warmup.start if warmup else 0.0
        self._warmup_steps = warmup_steps(warmup, steps_per_epoch) if warmup else 0
        self._at = 0
        self._set()

    def before_step(self, step: int) -> None:
        """Set the rates of a global step; the first is 0. Only `per_step` needs it."""
        self._at = step
        self._set()

    def step(self, epoch_finished: int, valid_loss: float | None) -> None:
        """Set the rates for the epoch after this one, unless each step sets its own.

        Args:
            epoch_finished: The epoch that has just ended; the first is 0.
            valid_loss: The validation loss after it, if there is one.

        Raises:
            TrainingError: If the schedule follows the validation loss and there is none.
        """
        self._course.finish(epoch_finished, valid_loss)
        if not self.per_step:
            self._at = epoch_finished + 1
            self._set()

    def begin_epoch(self) -> None:
        """Set the rates that it is at anew: a loaded state may hold another run's."""
        self._set()

    def scale_to(self, share: float) -> None:
        """Multiply all rates by a share from now on, in place of the share until now."""
        self.share = share
        self._set()

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object; the rate itself is the optimizer's."""
        return {"at": self._at, "share": self.share, "course": self._course.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the schedule that gave `state` would."""
        self._at = int(state["at"])
        self.share = float(state["share"])
        self._course.load_state(state["course"])

    def _set(self) -> None:
        """Set the rates of the epoch or step that it is at."""
        epoch, share = self._at, self.share
        if self.per_step:
            share *= warmup_share(self._warmup_start, self._warmup_steps, self._at)
            epoch = self._at // self._steps_per_epoch
        number = self._at if self._course.by_step else epoch
        rates = self._course.rates(number, value_at(self._changes, "lr", epoch))
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share


class Curve:
    """Rates that are a pure function of the number of the epoch or step."""

    def __init__(self, spec: ScheduleSpec, base_lrs: Sequence[float], total: int) -> None:
        self.by_step = isinstance(spec, OneCycleSchedule)
        self._spec = spec
        self._base_lrs = list(base_lrs)
        self._total = total

    def rates(self, number: int, base_lr: float | None = None) -> list[float]:
        """The rate of each group."""
        return [
            rate_at(self._spec, first if base_lr is None else base_lr, number, self._total)
            for first in self._base_lrs
        ]

    def finish(self, epoch: int, valid_loss: float | None) -> None:
        """The loss plays no part."""

    def state(self) -> dict[str, Any]:
        """The rates that the run began with."""
        return {"base_lrs": list(self._base_lrs)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the rates that the run began with; the optimizer's may be lower by now."""
        self._base_lrs = [float(base_lr) for base_lr in state["base_lrs"]]


class Plateau:
    """Rates that fall when the loss has not, as torch's ReduceLROnPlateau has them.

    Torch's own keeps the rate in the optimizer, where a warm-up would leak into it. A loss that is
    negative, as a custom one may be, falls when it is below its best by the same share of its size.
    """

    by_step = False
    LEAST_FALL = 1e-4
    """The share of the best loss by which a loss must be below it; torch's default."""
    LEAST_CHANGE = 1e-8
    """A rate that would fall by less stays as it is; torch's default."""

    def __init__(self, spec: PlateauSchedule, base_lrs: Sequence[float]) -> None:
        self._spec = spec
        self._base_lrs = list(base_lrs)
        self._lrs = list(base_lrs)
        self._best: float | None = None
        self._bad_epochs = 0
        self._cooldown_epochs = 0

    def rates(self, number: int, base_lr: float | None = None) -> list[float]:
        """The rate of each group; the number plays no part.

        Another rate to start from has fallen by the same share, though not below the lowest.
        """
        if base_lr is None:
            return self._lrs
        pairs = zip(self._lrs, self._base_lrs, strict=True)
        return [max(base_lr * (lr / first), self._spec.min_lr) for lr, first in pairs]

    def finish(self, epoch: int, valid_loss: float | None) -> None:
        """Lower the rates once the loss has not fallen for long enough; NaN is no fall."""
        if valid_loss is None:
            raise TrainingError(
                "training.schedule plateau: expected a validation loss after epoch "
                f"{epoch}, found none. Give `data.split.fractions.valid` a share."
            )
        if self._has_fallen(valid_loss):
            self._best = valid_loss
            self._bad_epochs = 0
        else:
            self._bad_epochs += 1
        if self._cooldown_epochs > 0:
            self._cooldown_epochs -= 1
            self._bad_epochs = 0
        if self._bad_epochs > self._spec.patience:
            self._lrs = [self._lowered(lr) for lr in self._lrs]
            self._cooldown_epochs = self._spec.cooldown
            self._bad_epochs = 0

    def state(self) -> dict[str, Any]:
        """The rates, the best loss (None before the first) and what was counted since."""
        return {
            "lrs": list(self._lrs),
            "best": self._best,
            "bad_epochs": self._bad_epochs,
            "cooldown_epochs": self._cooldown_epochs,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._lrs = [float(lr) for lr in state["lrs"]]
        self._best = None if state["best"] is None else float(state["best"])
        self._bad_epochs = int(state["bad_epochs"])
        self._cooldown_epochs = int(state["cooldown_epochs"])

    def _has_fallen(self, loss: float) -> bool:
        if self._best is None or not math.isfinite(loss):
            return math.isfinite(loss)
        side = 1.0 if self._best >= 0 else -1.0
        return loss < self._best * (1.0 - side * self.LEAST_FALL)

    def _lowered(self, lr: float) -> float:
        new_lr = max(lr * self._spec.factor, self._spec.min_lr)
        return new_lr if lr - new_lr > self.LEAST_CHANGE else lr
