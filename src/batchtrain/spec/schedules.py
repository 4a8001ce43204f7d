"""The learning-rate schedules of the `training` section, and the warm-up before them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from batchtrain.spec.base import SpecModel
from batchtrain.spec.optimizers import OptimizerSpec, Rprop

__all__ = [
    "ConstantSchedule",
    "CosineRestartsSchedule",
    "CosineSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "MultistepSchedule",
    "OneCycleSchedule",
    "PlateauSchedule",
    "PolynomialSchedule",
    "ScheduleSpec",
    "StepSchedule",
    "Warmup",
    "rate_mismatches",
]

Epochs = Annotated[int, Field(ge=1, le=10_000_000)]


class ConstantSchedule(SpecModel):
    """Keep the learning rate as it is, as no schedule does."""

    kind: Literal["constant"]


class PlateauSchedule(SpecModel):
    """Multiply the learning rate by `factor` when the validation loss stops falling.

    A fall counts when it is more than a ten-thousandth of the lowest loss so far.
    """

    kind: Literal["plateau"]
    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=5, ge=0)
    """Epochs without improvement before the rate falls."""
    cooldown: int = Field(default=0, ge=0)
    """Epochs after such a fall of the rate in which none are counted."""
    min_lr: float = Field(default=0.0, ge=0)


class StepSchedule(SpecModel):
    """Multiply the learning rate by `factor` every `every_epochs` epochs."""

    kind: Literal["step"]
    every_epochs: int = Field(default=30, ge=1)
    factor: float = Field(default=0.1, gt=0, le=1)


class MultistepSchedule(SpecModel):
    """Multiply the learning rate by `factor` after each of the epochs in `milestones`."""

    kind: Literal["multistep"]
    milestones: tuple[Epochs, ...] = Field(min_length=1, max_length=1000)
    """After how many epochs, from the smallest to the largest."""
    factor: float = Field(default=0.1, gt=0, le=1)

    @field_validator("milestones")
    @classmethod
    def _milestones_grow(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if any(one >= other for one, other in pairwise(milestones)):
            raise ValueError("expected each number of epochs to be above the one before")
        return milestones


class ExponentialSchedule(SpecModel):
    """Multiply the learning rate by `factor` after each epoch."""

    kind: Literal["exponential"]
    factor: float = Field(gt=0, le=1)


class LinearSchedule(SpecModel):
    """Let the learning rate go in a straight line from `start` to `end`, then stay there."""

    kind: Literal["linear"]
    start: float = Field(default=1.0, gt=0, le=1)
    """The share of the rate in the first epoch."""
    end: float = Field(default=0.0, ge=0, le=1)
    """The share of the rate at the end."""
    over_epochs: Epochs | None = None
    """How many epochs it takes; null is all of them."""


class PolynomialSchedule(SpecModel):
    """Let the learning rate fall as (1 - epoch / epochs) to the power of `power`."""

    kind: Literal["polynomial"]
    power: float = Field(default=1.0, gt=0, le=100)
    over_epochs: Epochs | None = None
    """How many epochs it takes to 0, where the rate stays; null is all of them."""


class CosineSchedule(SpecModel):
    """Let the learning rate fall to `min_lr` along half a cosine over all epochs."""

    kind: Literal["cosine"]
    min_lr: float = Field(default=0.0, ge=0)


class CosineRestartsSchedule(SpecModel):
    """Fall along half a cosine again and again (SGDR: Loshchilov and Hutter, 2017)."""

    kind: Literal["cosine_restarts"]
    first_epochs: Epochs = 10
    """The epochs of the first fall."""
    growth: int = Field(default=1, ge=1, le=1000)
    """How many times as long each fall is as the one before."""
    min_lr: float = Field(default=0.0, ge=0)


class OneCycleSchedule(SpecModel):
    """Grow to the optimizer's `lr` and fall far below it, a little in each step (Smith, 2018).

    It is stretched over all steps of the run. The momentum stays as it is.
    """

    kind: Literal["one_cycle"]
    rise: float = Field(default=0.3, gt=0, lt=1)
    """The share of the steps in which the rate grows."""
    start_divisor: float = Field(default=25.0, ge=1, le=1e9)
    """The first rate is `lr` over this."""
    end_divisor: float = Field(default=1e4, ge=1, le=1e12)
    """The last rate is the first one over this."""
    shape: Literal["cosine", "linear"] = "cosine"
    three_phase: bool = False
    """Fall to the first rate in as many steps as the growth took, and only then below it."""

    @model_validator(mode="after")
    def _three_phases_fit(self) -> OneCycleSchedule:
        if self.three_phase and self.rise > 0.5:
            raise ValueError("`three_phase: true` needs a `rise` of at most 0.5")
        return self


ScheduleSpec = Annotated[
    ConstantSchedule
    | PlateauSchedule
    | StepSchedule
    | MultistepSchedule
    | ExponentialSchedule
    | LinearSchedule
    | PolynomialSchedule
    | CosineSchedule
    | CosineRestartsSchedule
    | OneCycleSchedule,
    Field(discriminator="kind"),
]


class Warmup(SpecModel):
    """Let the learning rate grow to its value over the first steps, in a straight line.

    What the schedule says is multiplied by a share that grows from `start` to 1 (Goyal et al.,
    2017).
    """

    steps: int | None = Field(default=None, ge=1)
    """How many global steps; give this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """How many epochs; parts of one too."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """The share of the rate before the first step."""

    @model_validator(mode="after")
    def _one_length(self) -> Warmup:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give `steps` or `epochs`, one of them")
        return self


def rate_mismatches(
    optimizer: OptimizerSpec,
    schedule: ScheduleSpec | None,
    warmup: Warmup | None,
    *,
    rolls_back: bool = False,
) -> list[str]:
    """What an optimizer, a schedule and a warm-up cannot do together, as sentences.

    Args:
        optimizer: Whose rate is set.
        schedule: What sets it, if anything.
        warmup: How it grows at first, if at all.
        rolls_back: Whether `on_nan` may halve it.

    Example:
        >>> from batchtrain.spec.optimizers import Sgd
        >>> rate_mismatches(Sgd(kind="sgd", lr=0.1), CosineSchedule(kind="cosine", min_lr=1), None)
        ["`training.schedule.min_lr` is 1.0, expected at most the optimizer's lr, 0.1"]
    """
    problems = []
    lowest = getattr(schedule, "min_lr", 0.0)
    if lowest > optimizer.lr:
        problems.append(
            f"`training.schedule.min_lr` is {lowest!r}, expected at most the optimizer's lr, "
            f"{optimizer.lr!r}"
        )
    if isinstance(optimizer, Rprop):
        is_set_by = {
            "schedule": not isinstance(schedule, ConstantSchedule | None),
            "warmup": warmup is not None,
            "on_nan": rolls_back,
        }
        problems += [
            f"`training.{name}` sets a learning rate that rprop reads only once; remove it or "
            "choose another optimizer"
            for name, sets_it in is_set_by.items()
            if sets_it
        ]
    return problems
