"""The loops of others, as their documentation writes them: Lightning, Ray Train with Ray Data.

Shapes: N rows, F features, B rows of a batch, K classes.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.training.plan import TrainingPlan
from benchmarks.paired import Taken, timed
from benchmarks.training_loops import OPTIMIZER, layers_of, new_model

__all__ = ["LightningLoop", "RayDataLoop", "has_lightning", "quiet_ray"]


def has_lightning() -> bool:
    """Whether Lightning is installed; it is no dependency of ours."""
    return importlib.util.find_spec("lightning") is not None


class LightningLoop:
    """A `LightningModule` over the shuffling DataLoader; an epoch is a `fit` of one epoch.

    Logger, checkpoints, bar and summary are off, so that only the loop is measured.
    """

    def __init__(self, rows: SplitRows, plan: TrainingPlan) -> None:
        """Take the rows as tensors."""
        import lightning

        self.layers = layers_of(new_model())
        dataset = TensorDataset(torch.from_numpy(rows.numeric), torch.from_numpy(rows.target))
        self._loader = DataLoader(dataset, batch_size=plan.batch_rows, shuffle=True)
        self._module = _lightning_module(lightning.LightningModule, self.layers)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self._trainer: Any = None

    def __call__(self) -> Taken:
        """Train one more epoch."""
        import lightning

        # The optimizer begins anew, as its moments would with another `fit`; the work is the same.
        self._trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timed(lambda: self._trainer.fit(self._module, self._loader))


def _lightning_module(base: Any, layers: nn.Sequential) -> Any:
    class Module(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            features_BF, target_B = batch
            return nn.functional.cross_entropy(self.layers(features_BF), target_B)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=OPTIMIZER.lr)

    return Module()


class RayDataLoop:
    """What a worker of Ray's documented pattern does: `iter_torch_batches` of a `streaming_split`.

    Without a shuffle, which would make it slower.

    It needs a Ray that runs, whose other processes read and shuffle beside this one: on the clock
    it has more than one core.
    """

    def __init__(self, rows: SplitRows, plan: TrainingPlan) -> None:
        """Put the rows into Ray's object store."""
        import ray.data

        self.layers = layers_of(new_model())
        self._batch_rows = plan.batch_rows
        table = np.column_stack([rows.numeric, rows.target.astype(np.float32)])
        blocks = np.array_split(table, 16)
        dataset = ray.data.from_numpy_refs([ray.put(block) for block in blocks])
        (self._shard,) = dataset.streaming_split(1)
        self._optimizer = torch.optim.Adam(self.layers.parameters(), lr=OPTIMIZER.lr)
        self._loss = nn.CrossEntropyLoss()

    def __call__(self) -> Taken:
        """Train one more epoch."""
        return timed(self._train)

    def _train(self) -> None:
        batches: Iterator[dict[str, Tensor]] = self._shard.iter_torch_batches(
            batch_size=self._batch_rows
        )
        for batch in batches:
            values = batch["data"]
            features_BF, target_B = values[:, :-1], values[:, -1].long()
            self._optimizer.zero_grad()
            self._loss(self.layers(features_BF), target_B).backward()
            self._optimizer.step()


@contextmanager
def quiet_ray() -> Iterator[None]:
    """A Ray of two cores."""
    from benchmarks.ray_workers import ray_here

    with ray_here(2):
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
