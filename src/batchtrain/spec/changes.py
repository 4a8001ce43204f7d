"""Values that change while a model trains: `training.changes`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel
from batchtrain.spec.optimizers import Decaying, OptimizerSpec, Rprop
from batchtrain.spec.schedules import ScheduleSpec

__all__ = ["CHANGEABLE", "Change", "ChangingValue", "change_mismatches", "value_at"]

ChangingValue = Literal["lr", "weight_decay", "momentum", "dropout"]

CHANGEABLE: dict[str, ChangingValue] = {
    "training.optimizer.lr": "lr",
    "training.optimizer.weight_decay": "weight_decay",
    "training.optimizer.momentum": "momentum",
    "model.dropout": "dropout",
}
"""The keys of the spec that a change can stand for, and what it calls them."""


class Change(SpecModel):
    """Other values from the beginning of an epoch on, each until a later change sets it again."""

    epoch: int = Field(ge=1, le=10_000_000)
    """How many epochs are over by then."""
    lr: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """In place of the optimizer's `lr`: what schedule and warm-up multiply."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Of all that decays."""
    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of every dropout layer of the model; one that has none gets them after its hidden layers."""

    @model_validator(mode="after")
    def _changes_something(self) -> Change:
        if all(getattr(self, name) is None for name in CHANGEABLE.values()):
            raise ValueError(f"expected one of {', '.join(CHANGEABLE.values())}")
        return self


def value_at(changes: Sequence[Change], name: ChangingValue, epoch: int) -> float | None:
    """The value in force in an epoch; None where it is the one that the run began with.

    Args:
        changes: In the order of their epochs.
        name: Which value.
        epoch: How many epochs are over.

    Example:
        >>> changes = [Change(epoch=2, lr=0.1), Change(epoch=4, dropout=0.5)]
        >>> [value_at(changes, "lr", epoch) for epoch in (1, 2, 4)]
        [None, 0.1, 0.1]
    """
    in_force: float | None = None
    for change in changes:
        value: float | None = getattr(change, name)
        if change.epoch <= epoch and value is not None:
            in_force = value
    return in_force


def change_mismatches(
    changes: Sequence[Change],
    optimizer: OptimizerSpec,
    schedule: ScheduleSpec | None,
    *,
    compiles: bool,
) -> list[str]:
    """What changes cannot do in a training, as sentences.

    Args:
        changes: As the spec has them.
        optimizer: Whose values they are.
        schedule: What multiplies the rate, if anything.
        compiles: Whether the spec asks for compiled kernels.
    """
    problems = []
    if any(one.epoch >= other.epoch for one, other in pairwise(changes)):
        problems.append("expected each epoch of `training.changes` to be above the one before")
    asked = {
        name for name in CHANGEABLE.values() for each in changes if getattr(each, name) is not None
    }
    kind = getattr(optimizer, "kind", "")
    if "lr" in asked and isinstance(optimizer, Rprop):
        problems.append(
            "`training.changes` sets a learning rate that rprop reads only once; remove it or "
            "choose another optimizer"
        )
    if "weight_decay" in asked and not isinstance(optimizer, Decaying):
        problems.append(f"`training.changes` sets a weight decay, which {kind} has not; remove it")
    if "momentum" in asked and not getattr(optimizer, "momentum", 0.0):
        problems.append(
            "`training.changes` sets a momentum, which needs an optimizer that begins with one; "
            f"give `training.optimizer.momentum` of {kind} a value above 0 if it has that key"
        )
    if "dropout" in asked and compiles:
        problems.append(
            "`training.changes` sets a dropout, which compiled kernels hold as a constant; remove "
            "`compile: true`"
        )
    lowest = getattr(schedule, "min_lr", 0.0)
    below = [each.lr for each in changes if each.lr is not None and each.lr < lowest]
    if below:
        problems.append(
            f"`training.schedule.min_lr` is {lowest!r}, expected at most each lr of "
            f"`training.changes`, found {below[0]!r}"
        )
    return problems
