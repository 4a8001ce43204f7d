"""What follows from an epoch's record: the best weights, the next learning rate, the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from batchtrain.errors import DivergedError
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.schedules import Schedule
from batchtrain.points import passed
from batchtrain.spec.training import NanPolicy, TrainingSpec
from batchtrain.training.measuring import ALWAYS_MEASURED
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.state import KeptEpoch, TrainState

__all__ = ["MOST_ROLL_BACKS", "Decided", "Watched", "decide", "roll_back", "why_ended"]

MOST_ROLL_BACKS = 5
"""With a rate that is halved each time, the last attempt has a 32nd of it."""

VALID = "valid_"


@dataclass(frozen=True)
class Watched:
    """The number that early stopping and the best weights go by.

    Attributes:
        name: Such as `valid_loss` or `valid_f1_macro`.
        mode: Whether less or more of it is better.
    """

    name: str = "valid_loss"
    mode: Literal["min", "max"] = "min"

    @classmethod
    def of(cls, spec: TrainingSpec) -> Watched:
        """What the spec asks for: the validation loss, or a metric of the validation split."""
        if spec.early_stopping is None or spec.early_stopping.metric == "valid_loss":
            return cls()
        # Imported here: few trainings need it.
        from batchtrain.metrics.require import DIRECTION

        name = spec.early_stopping.metric
        return cls(name, DIRECTION[name.removeprefix(VALID)])

    @property
    def metrics(self) -> Sequence[str]:
        """What has to be measured on the validation split for this alone."""
        metric = self.name.removeprefix(VALID)
        return () if metric in ALWAYS_MEASURED else (metric,)

    def is_better(self, value: float, other: float | None) -> bool:
        """Whether a value is better than another; NaN never is, and None is no value."""
        if other is None:
            return not math.isnan(value)
        return value < other if self.mode == "min" else value > other


class Decided(Protocol):
    """What an epoch's record decides about: a `TrainState`, or a trial of a pack."""

    epoch: int
    best: list[KeptEpoch]
    ended_by: str
    schedule: Schedule
    early_stop: EarlyStop | None

    def weights(self) -> Mapping[str, Tensor]:
        """A copy of the weights that were measured."""
        ...


def decide(state: Decided, record: Mapping[str, Any], watched: Watched, *, keep_best: int) -> None:
    """What an epoch's record decides: the best weights, the next rate, whether to stop.

    Without a validation split the last weights count as the best: the training loss of an epoch is
    measured before its steps, so it says little about the weights after them.

    Args:
        state: It is changed in place.
        record: The epoch's line of the history.
        watched: What the best weights and early stopping go by; a plateau of the learning rate
            follows the validation loss.
        keep_best: How many of the best epochs' weights are kept.
    """
    value = record.get(watched.name)
    if value is None:
        state.best = [KeptEpoch(state.epoch, None, {})]
    else:
        _rank(state, value, watched, keep_best)
    state.schedule.step(state.epoch - 1, record.get("valid_loss"))
    passed("epoch.schedule")
    if state.early_stop is not None and value is not None and state.early_stop.update(value):
        state.ended_by = "early_stopping"


def _rank(state: Decided, value: float, watched: Watched, keep_best: int) -> None:
    """Take the epoch among the best ones, if it is one; the earlier of equals is the better."""
    values = [kept.value for kept in state.best]
    place = next(
        (place for place, other in enumerate(values) if watched.is_better(value, other)),
        len(values),
    )
    if place >= keep_best or not watched.is_better(value, None):
        return
    kept = KeptEpoch(state.epoch, value, state.weights())
    state.best = [*state.best[:place], kept, *state.best[place:]][:keep_best]


def roll_back(state: TrainState, error: DivergedError, policy: NanPolicy) -> str:
    """Put back the state at the end of the epoch before, with half the learning rate.

    The rows and the dropout of the steps to come are those of the steps that were undone.

    Args:
        state: It is changed in place.
        error: What went wrong.
        policy: What the spec asks for.

    Returns:
        What was done, as a sentence.

    Raises:
        DivergedError: If the spec asks for something else, not all ranks know of the error, or the
            state was put back so often that it is no use.
    """
    if policy != "roll_back" or state.diverged_at is None or state.anchor is None:
        raise error
    if len(state.rolled_back) == MOST_ROLL_BACKS:
        raise DivergedError(
            f"{error}. It went on from the epoch before with half the learning rate "
            f"{MOST_ROLL_BACKS} times, and diverged again each time"
        ) from error
    found_in, share = state.diverged_at - 1, state.schedule.share / 2
    place = state.diverged_at + state.undone
    state.load_moving(state.anchor.tensors, state.anchor.document, where="memory")
    state.schedule.scale_to(share)
    state.undone = place - state.step
    state.diverged_at = None
    state.rolled_back.append({"epoch": state.epoch, "step": found_in, "share": share})
    passed("state.rolled_back")
    return (
        f"the training diverged in step {found_in}; it goes on from the end of epoch "
        f"{state.epoch} with {share:g} of the learning rate"
    )


def why_ended(state: TrainState, plan: TrainingPlan) -> str:
    """`early_stopping`, `epochs`, `max_steps` or `max_time`: the first of them that holds."""
    if state.stopped:
        return state.ended_by
    if state.step == plan.epochs * plan.steps_per_epoch:
        return "epochs"
    return state.ended_by or "epochs"
