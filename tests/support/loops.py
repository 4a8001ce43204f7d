"""Small trainings of the loop itself, without files: a table in memory, any `training` section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.dropout import dropout_layers
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.losses import Loss, make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.row_order import RowOrder
from batchtrain.spec.training import TrainingSpec
from batchtrain.training.changing import ValueChanges
from batchtrain.training.deciding import Watched
from batchtrain.training.ema import WeightAverage
from batchtrain.training.loop import StepLosses, train_until_done
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import OneRank, Ranks
from batchtrain.training.state import TrainState
from batchtrain.training.worker import ResidentWorker, Share

__all__ = ["LoopRun", "SmallNet", "StopAfter", "rows_of", "written"]


class SmallNet(nn.Module):
    """A hidden layer with dropout; made by its seed alone."""

    def __init__(self, outputs: int = 1, seed: int = 0, features: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(features, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, outputs)
            )

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.layers(numeric_BF)


def rows_of(
    num_rows: int, *, seed: int, classes: int = 0, features: int = 3, noise: float = 0.3
) -> SplitRows:
    """Rows of made-up numbers, and a target that follows from them but for some noise."""
    random = np.random.default_rng(seed)
    numeric = random.normal(size=(num_rows, features)).astype(np.float32)
    target = numeric.sum(axis=1).astype(np.float64) + random.normal(0, noise, num_rows)
    if classes:
        edges = np.linspace(-1, 1, classes - 1) if classes > 2 else np.zeros(1)
        target = np.digitize(target, edges).astype(np.int64)
    return SplitRows(
        numeric=numeric,
        codes=np.empty((num_rows, 0), dtype=np.int64),
        target=target,
        row_id=np.arange(num_rows),
    )


@dataclass
class StopAfter:
    """Keeps nothing; stops after a step, as a signal would, and remembers every state.

    Attributes:
        step: Of the loop's own count, roll-backs not counted; None never stops.
        looks: Called after each step.
    """

    step: int | None = None
    looks: Callable[[TrainState], None] = lambda state: None
    taken: int = 0

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        self.taken += 1
        self.looks(state)
        if self.taken != self.step:
            return True
        losses.flush()
        return False


@dataclass
class Silent:
    """Remembers the records and the losses of the steps."""

    records: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)

    def steps_done(self, first_step: int, losses: Any) -> None:
        self.losses += list(enumerate(losses, first_step))

    def epoch_done(self, record: dict[str, Any]) -> None:
        self.records.append(dict(record))


class SpoiltWorker(ResidentWorker):
    """Serves rows as it should, and spoils the losses and gradients of some steps.

    Attributes:
        spoils: Asked after each backward, with the step; what it returns is what the gradient and
            the loss are multiplied by.
        seen: The step and the rows of each gradient.
    """

    spoils: Callable[[int], tuple[float, float]] | None = None
    seen: list[tuple[int, Tensor]]

    def gradient(self, model: nn.Module, loss: Loss, share: Share, step: int) -> Tensor:
        parts = super().gradient(model, loss, share, step)
        self.seen.append((step, share.batches[0].numeric_BF.clone()))
        if self.spoils is not None:
            of_gradient, of_loss = self.spoils(step)
            for parameter in model.parameters():
                if parameter.grad is not None and of_gradient != 1:
                    parameter.grad.mul_(of_gradient)
            parts = parts * of_loss
        return parts


@dataclass
class LoopRun:
    """One training in memory: the state is made anew for each attempt and loaded from bytes.

    Attributes:
        training: The `training` section.
        train: The training rows.
        valid: The validation rows; None for none.
        network: Makes the model.
        loss: What is minimised.
        spoils: See `SpoiltWorker`; it gets the state of the attempt too.
    """

    training: Mapping[str, Any]
    train: SplitRows = field(default_factory=lambda: rows_of(40, seed=1))
    valid: SplitRows | None = field(default_factory=lambda: rows_of(30, seed=2))
    network: Callable[[], nn.Module] = SmallNet
    loss: Loss = field(default_factory=lambda: make_loss("mse"))
    spoils: Callable[[TrainState, int], tuple[float, float]] | None = None
    ranks: Ranks = field(default_factory=OneRank)
    heard: Silent = field(default_factory=Silent)
    notes: list[str] = field(default_factory=list)
    seen: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def spec(self) -> TrainingSpec:
        return TrainingSpec.model_validate({"epochs": 3, "batch_size": 8, **self.training})

    @property
    def plan(self) -> TrainingPlan:
        order = RowOrder(len(self.train), lanes=1, shards_per_lane=1, window_rows=10**6, seed=5)
        batch_rows = self.spec.batch_size
        assert isinstance(batch_rows, int)
        return TrainingPlan(order, batch_rows, self.spec.epochs, self.spec.max_steps)

    def new_state(self) -> TrainState:
        spec, model = self.spec, self.network()
        optimizer = build_optimizer(spec.optimizer, model.parameters(), fused=True)
        schedule = build_schedule(
            spec.schedule,
            optimizer,
            spec.epochs,
            warmup=spec.warmup,
            steps_per_epoch=self.plan.steps_per_epoch,
            max_steps=spec.max_steps,
            changes=spec.changes,
        )
        stopping = spec.early_stopping
        return TrainState(
            model,
            optimizer,
            schedule,
            EarlyStop(stopping.patience, stopping.min_delta, mode=Watched.of(spec).mode)
            if stopping
            else None,
            average=WeightAverage(spec.ema, model) if spec.ema else None,
            changes=ValueChanges(spec, optimizer, dropout_layers(model) * spec.changes_dropout)
            if spec.changes
            else None,
        )

    def worker(self, state: TrainState) -> SpoiltWorker:
        splits = {"train": self.train} | ({"valid": self.valid} if self.valid else {})
        worker = SpoiltWorker(
            self.plan, splits, torch.device("cpu"), ranks=self.ranks, gather_rows=16
        )
        worker.seen = self.seen
        if self.spoils is not None:
            spoils = self.spoils
            worker.spoils = lambda step: spoils(state, step)
        return worker

    def go(self, state: TrainState, keeper: Any = None) -> bool:
        """Train to the end, or until the keeper stops it."""
        with torch.random.fork_rng(devices=[]):
            return train_until_done(
                state,
                self.worker(state),
                self.plan,
                self.loss,
                self.heard,
                keeper or StopAfter(),
                ["valid"] if self.valid else [],
                self.spec,
                self.notes.append,
            )

    def whole(self) -> TrainState:
        """The state after a training that nobody interrupts."""
        state = self.new_state()
        assert self.go(state)
        return state

    def in_parts(self, *stops: int) -> TrainState:
        """The same after stops, each so many steps after the start before; all from bytes."""
        state = self.new_state()
        for steps in stops:
            if self.go(state, StopAfter(steps)):
                break
            saved = written(state)
            state = self.new_state()
            state.load_bytes(*saved, where="memory")
        assert self.go(state)
        return state


def written(state: TrainState) -> tuple[bytes, bytes]:
    """The state as a checkpoint has it."""
    return state.snapshot().to_bytes()
