"""One trial of a pack, as the host knows it: its history, its schedule, what is best so far.

Shapes: P numbers of a trial's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from batchtrain.errors import ArtifactError
from batchtrain.models.build import build_model
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.schedules import Schedule, build_schedule
from batchtrain.training.deciding import Watched, decide
from batchtrain.training.facts import TrainingFacts
from batchtrain.training.packed.layout import Layout
from batchtrain.training.packed.optimizer import PackableOptimizer, num_moments
from batchtrain.training.packed.states import MemberState
from batchtrain.training.state import KeptEpoch

__all__ = ["Member"]

WEIGHTS, BEST = "weights", "best"


class _Rate:
    """What a schedule sets: it knows an optimizer by its groups alone."""

    def __init__(self, lr: float) -> None:
        self.param_groups = [{"lr": lr}]


class Member:
    """A trial; it has all that an ordinary run has but the loop.

    Attributes:
        facts: Its spec and the rows.
        plan: Its epochs and steps.
        epoch: Epochs that are over.
        step: Steps that were taken.
        history: One record an epoch, as an ordinary run has it.
        best: The best epoch so far; none before the first.
        ended_by: `early_stopping`, or empty.
        error: Why it failed, as a sentence; empty where it did not.
        schedule: Sets its learning rate.
        early_stop: None where the spec asks for none.
        moving: The rows [P] of its weights and of what its optimizer keeps; within a pack they are
            views of the pack's.
    """

    def __init__(self, facts: TrainingFacts, layout: Layout, state: MemberState | None) -> None:
        """Begin a trial, or go on with one.

        Raises:
            ArtifactError: If the state is that of a trial of another shape.
        """
        training = facts.spec.training
        self.facts = facts
        self.plan = facts.plan
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: list[KeptEpoch] = []
        self.ended_by = ""
        self.error = ""
        self.moving: list[Tensor] = []
        self._layout = layout
        self._watched = Watched.of(training)
        self._rate = _Rate(training.optimizer.lr)
        self.schedule: Schedule = build_schedule(
            training.schedule,
            cast(Optimizer, self._rate),
            training.epochs,
            warmup=training.warmup,
            steps_per_epoch=self.plan.steps_per_epoch,
        )
        stopping = training.early_stopping
        self.early_stop = (
            EarlyStop(stopping.patience, stopping.min_delta, mode=self._watched.mode)
            if stopping
            else None
        )
        if state is None:
            self._begin()
        else:
            self._load(state)

    @property
    def best_epoch(self) -> int:
        """The best epoch so far; 0 before the first."""
        return self.best[0].epoch if self.best else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be trained."""
        return bool(self.error or self.ended_by) or self.epoch >= self.plan.epochs

    @property
    def is_recorded(self) -> bool:
        """Whether the history holds the latest epoch."""
        return bool(self.history) and self.history[-1]["epoch"] == self.epoch

    @property
    def rows(self) -> int:
        """The rows that it was trained with, over all epochs."""
        return self.plan.rows_before(self.step)

    @property
    def optimizer(self) -> PackableOptimizer:
        """The optimizer's section of the spec."""
        return cast(PackableOptimizer, self.facts.spec.training.optimizer)

    def learning_rate(self) -> float:
        """The rate that is in force."""
        return self._rate.param_groups[0]["lr"]

    def weights(self) -> dict[str, Tensor]:
        """A copy of its weights, on the CPU."""
        return {WEIGHTS: self.moving[0].detach().to("cpu", copy=True)}

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch, or else the last, as the state of its own network."""
        kept = (self.best[0].weights if self.best else {}) or self.weights()
        names = [name for name, _ in _built(self.facts).named_parameters()]
        return dict(zip(names, self._layout.tensors(kept[WEIGHTS]), strict=True))

    def close_epoch(self, train_loss: float | None, scores: Mapping[str, float]) -> None:
        """Take the record of an epoch, and decide what follows from it.

        Args:
            train_loss: The mean of the steps' losses; None before the first step.
            scores: Of the splits that were measured.

        Raises:
            TrainingError: If the schedule follows a loss that there is not.
        """
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "lr": self.learning_rate(),
            "train_loss": train_loss,
        }
        for name, value in scores.items():
            record.setdefault(name, value)
        self.history.append(record)
        if self.epoch:
            decide(self, record, self._watched, keep_best=1)

    def state(self) -> MemberState:
        """The trial as it is, which the next step does not change."""
        tensors = {
            _moving_name(place): row_P.detach().to("cpu", copy=True)
            for place, row_P in enumerate(self.moving)
        }
        kept = self.best[0] if self.best else None
        if kept is not None and kept.weights:
            tensors[BEST] = kept.weights[WEIGHTS]
        return MemberState(
            tensors,
            {
                "shape": self._shape(),
                "lr": self.optimizer.lr,
                "epoch": self.epoch,
                "step": self.step,
                "schedule": self.schedule.state(),
                "early_stop": self.early_stop.state() if self.early_stop else None,
                "best": None if kept is None else {"epoch": kept.epoch, "value": kept.value},
                "ended_by": self.ended_by,
                "error": self.error,
                "history": list(self.history),
            },
        )

    def _begin(self) -> None:
        row_P = self._layout.row(list(_built(self.facts).parameters()))
        self.moving = [
            row_P,
            *(torch.zeros_like(row_P) for _ in range(num_moments(self.optimizer))),
        ]

    def _load(self, state: MemberState) -> None:
        saved = state.document
        names = [_moving_name(place) for place in range(1 + num_moments(self.optimizer))]
        if saved["shape"] != self._shape() or not state.tensors.keys() >= set(names):
            raise ArtifactError(
                f"expected the state of a trial of the shape {self._shape()}, found one of "
                f"{saved['shape']}. A trial goes on with the model that it began with"
            )
        self.moving = [state.tensors[name].clone() for name in names]
        self.epoch, self.step = int(saved["epoch"]), int(saved["step"])
        self.ended_by, self.error = str(saved["ended_by"]), str(saved["error"])
        self.history = [dict(record) for record in saved["history"]]
        if saved["best"] is not None:
            best = {WEIGHTS: state.tensors[BEST]} if BEST in state.tensors else {}
            self.best = [KeptEpoch(saved["best"]["epoch"], saved["best"]["value"], best)]
        if self.early_stop is not None and saved["early_stop"] is not None:
            self.early_stop.load_state(saved["early_stop"])
        self.schedule.load_state(_rescaled(saved["schedule"], self.optimizer.lr / saved["lr"]))
        self.schedule.scale_to(self.schedule.share)

    def _shape(self) -> list[Any]:
        """What weights and moments must agree in."""
        shapes = [list(slot.shape) for slot in self._layout.slots]
        return [self.optimizer.kind, num_moments(self.optimizer), *shapes]


def _moving_name(place: int) -> str:
    return WEIGHTS if place == 0 else f"moment-{place}"


def _built(facts: TrainingFacts) -> torch.nn.Module:
    spec = facts.spec
    return build_model(spec.model, facts.inputs, seed=spec.seed, loss=facts.loss)


def _rescaled(schedule: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The state of a schedule whose trial goes on with another `lr`, as in PBT.

    All rates of a schedule are proportional to `lr`, but for a `min_lr`, which stays.
    """
    if factor == 1:
        return dict(schedule)
    course = {
        key: [rate * factor for rate in value] if key in {"lrs", "base_lrs"} else value
        for key, value in schedule["course"].items()
    }
    return {**schedule, "course": course}
