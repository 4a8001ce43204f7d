"""The loops that are compared: ours, the bare one, and the one of the tutorials.

Shapes: N rows, F features, B rows of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.spec.model import MlpModel
from batchtrain.spec.optimizers import Adam
from batchtrain.spec.training import CheckpointSpec
from batchtrain.training.gradients import GradientRules
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.loop import train_until_done
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import Snapshot, TrainState
from batchtrain.training.tensorboard_log import TensorBoardLog
from batchtrain.training.worker import ResidentWorker
from benchmarks.paired import Taken, timed

__all__ = [
    "NUM_FEATURES",
    "SEED",
    "BareLoop",
    "LoaderLoop",
    "OurLoop",
    "layers_of",
    "loss_of",
    "made_rows",
    "new_model",
]

NUM_FEATURES = 32
NUM_CLASSES = 2
SEED = 7
MODEL = MlpModel(kind="mlp", hidden=(128, 64), activation="relu", dropout=0.0)
OPTIMIZER = Adam(kind="adam", lr=1e-3)


def made_rows(num_rows: int) -> SplitRows:
    """Rows whose class a network of this size can learn in part."""
    generator = np.random.Generator(np.random.Philox(SEED))
    numeric = generator.standard_normal((num_rows, NUM_FEATURES), dtype=np.float32)
    hidden = np.tanh(numeric @ generator.standard_normal((NUM_FEATURES, 8), dtype=np.float32))
    noise = generator.standard_normal(num_rows, dtype=np.float32)
    return SplitRows(
        numeric=numeric,
        codes=np.empty((num_rows, 0), dtype=np.int64),
        target=(hidden.sum(axis=1) + noise > 0).astype(np.int64),
        row_id=np.arange(num_rows, dtype=np.int64),
    )


def new_model() -> nn.Module:
    """The MLP 128-64, with the same initial weights each time."""
    inputs = ModelInputs(num_numeric=NUM_FEATURES, cardinalities=(), num_outputs=NUM_CLASSES)
    return build_model(MODEL, inputs, seed=SEED)


@torch.no_grad()
def loss_of(layers: nn.Module, rows: SplitRows) -> float:
    """The mean loss over all rows: shows that every contender learnt the same."""
    outputs_NK = layers(torch.from_numpy(rows.numeric))
    return float(nn.functional.cross_entropy(outputs_NK, torch.from_numpy(rows.target)))


class NowhereToSave:
    """Asked after each step as the saver of a run is; a checkpoint costs nothing here."""

    is_idle = True

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """See `batchtrain.training.keeping.Saver`."""


class OurLoop:
    """The loop that `batchtrain train` runs, one epoch a call."""

    def __init__(
        self,
        rows: SplitRows,
        plan: TrainingPlan,
        log: TensorBoardLog | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        model = new_model()
        self.layers = layers_of(model)
        self._log = log
        self._plan = plan
        rules = GradientRules(compile=compiled, batch_rows=plan.batch_rows)
        self._worker = ResidentWorker(plan, {"train": rows}, torch.device("cpu"), rules=rules)
        optimizer = build_optimizer(OPTIMIZER, model.parameters(), fused=True)
        schedule = build_schedule(None, optimizer, plan.epochs)
        self._state = TrainState(model, optimizer, schedule, early_stop=None)
        self._loss = make_loss("cross_entropy")
        self._keeper = StateKeeper(
            CheckpointSpec(), OneRank(), NowhereToSave(), stop_requested=lambda: False
        )

    def __call__(self) -> Taken:
        """Train one more epoch."""
        return timed(self._train)

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        if self._log is not None:
            self._log.steps(first_step, losses)

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        if self._log is not None:
            self._log.epoch(record)

    def _train(self) -> None:
        plan = replace(self._plan, epochs=self._state.epoch + 1)
        train_until_done(self._state, self._worker, plan, self._loss, self, self._keeper, ())


class BareLoop:
    """As few lines as training can have: tensors, a permuted index, Adam as it comes."""

    def __init__(self, rows: SplitRows, plan: TrainingPlan) -> None:
        self.layers = layers_of(new_model())
        self._batch_rows = plan.batch_rows
        self._features_NF = torch.from_numpy(rows.numeric)
        self._target_N = torch.from_numpy(rows.target)
        self._optimizer = torch.optim.Adam(self.layers.parameters(), lr=OPTIMIZER.lr)
        self._loss = nn.CrossEntropyLoss()

    def __call__(self) -> Taken:
        """Train one more epoch."""
        return timed(self._train)

    def _train(self) -> None:
        order_N = torch.randperm(len(self._target_N))
        for start in range(0, len(order_N), self._batch_rows):
            index_B = order_N[start : start + self._batch_rows]
            self._optimizer.zero_grad()
            outputs_BK = self.layers(self._features_NF[index_B])
            self._loss(outputs_BK, self._target_N[index_B]).backward()
            self._optimizer.step()


class LoaderLoop:
    """The loop of the tutorials: a shuffling DataLoader over a TensorDataset."""

    def __init__(self, rows: SplitRows, plan: TrainingPlan) -> None:
        self.layers = layers_of(new_model())
        dataset = TensorDataset(torch.from_numpy(rows.numeric), torch.from_numpy(rows.target))
        self._loader = DataLoader(dataset, batch_size=plan.batch_rows, shuffle=True)
        self._optimizer = torch.optim.Adam(self.layers.parameters(), lr=OPTIMIZER.lr)
        self._loss = nn.CrossEntropyLoss()

    def __call__(self) -> Taken:
        """Train one more epoch."""
        return timed(self._train)

    def _train(self) -> None:
        for features_BF, target_B in self._loader:
            self._optimizer.zero_grad()
            self._loss(self.layers(features_BF), target_B).backward()
            self._optimizer.step()


def layers_of(model: nn.Module) -> nn.Sequential:
    """The network alone, without the module around it that knows of categories."""
    layers = model.layers
    if not isinstance(layers, nn.Sequential):
        raise TypeError(f"expected the layers of an MLP, found {layers!r}. Adapt this benchmark")
    return layers
