"""What the training loop may ask of whatever runs it, and the one-process answer.

Shapes: B rows of a batch, N rows of a split, F numeric features, C categorical columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.inputs import Batch
from batchtrain.row_order import counter_generator, epoch_order, num_batches
from batchtrain.training.plan import TrainingPlan

__all__ = ["GATHER_ROWS", "LocalWorker", "ResidentSplit", "Worker"]

GATHER_ROWS = 16_384
"""Rows gathered in one go: enough to spread the cost of the call, few enough for the cache. Where a
batch lies in its block shows in the last bits, so a run keeps the number that it began with."""


class Worker(Protocol):
    """What one training process may ask of whatever launched it.

    The loop is written against this and nothing else, so that it knows neither files nor other
    processes. Every worker of a run takes the same number of steps.
    """

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked for the run to stop; the loop looks at it after each step."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """Put the model on the worker's device and make its gradients those of the batch."""
        ...

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield this worker's part of the global batches of an epoch, from `first_step` on.

        Calling twice with the same arguments yields the same rows in the same order.
        """
        ...

    def seed_step(self, step: int) -> None:
        """Set the generator that dropout draws from, by the global step alone."""
        ...

    def split_batches(self, split: str) -> Iterator[Batch]:
        """Yield every row of a split once, in its own order."""
        ...


@dataclass(frozen=True)
class ResidentSplit:
    """A split as contiguous tensors on the device.

    Attributes:
        numeric_NF: float32.
        codes_NC: int64.
        target_N: int64 class codes, or float32 values.
    """

    numeric_NF: Tensor
    codes_NC: Tensor
    target_N: Tensor

    @classmethod
    def of(cls, rows: SplitRows, device: torch.device) -> ResidentSplit:
        """Move rows to the device; a float64 target becomes float32, as the model's outputs are."""
        target = torch.from_numpy(np.array(rows.target))
        if target.is_floating_point():
            target = target.to(torch.float32)
        return cls(
            numeric_NF=torch.from_numpy(np.array(rows.numeric)).to(device),
            codes_NC=torch.from_numpy(np.array(rows.codes)).to(device),
            target_N=target.to(device),
        )

    def __len__(self) -> int:
        """N."""
        return int(self.target_N.shape[0])

    def gathered(self, rows: Tensor, batch_rows: int) -> Iterator[Batch]:
        """Cut the rows of an index into batches; each is a view of one gathered block."""
        # index_select copies whole rows; indexing with [rows] takes five times as long.
        numeric = self.numeric_NF.index_select(0, rows).split(batch_rows)
        codes = self.codes_NC.index_select(0, rows).split(batch_rows)
        targets = self.target_N.index_select(0, rows).split(batch_rows)
        for numeric_BF, codes_BC, target_B in zip(numeric, codes, targets, strict=True):
            yield Batch(numeric_BF, codes_BC, target_B)

    def in_order(self, batch_rows: int) -> Iterator[Batch]:
        """All rows once, as they lie."""
        for numeric_BF, codes_BC, target_B in zip(
            self.numeric_NF.split(batch_rows),
            self.codes_NC.split(batch_rows),
            self.target_N.split(batch_rows),
            strict=True,
        ):
            yield Batch(numeric_BF, codes_BC, target_B)


class LocalWorker:
    """Runs the whole batch in this process, from rows that are resident on the device."""

    def __init__(
        self,
        plan: TrainingPlan,
        splits: Mapping[str, SplitRows],
        device: torch.device,
        stop_requested: Callable[[], bool] = lambda: False,
        *,
        gather_rows: int = GATHER_ROWS,
    ) -> None:
        """Move the splits to the device.

        Args:
            plan: The numbers of the run.
            splits: The training split, and those that are measured.
            device: Where the model trains.
            stop_requested: Asked after every step.
            gather_rows: Rows gathered in one go; it is part of the numerical result.
        """
        self.device = device
        self._plan = plan
        self._gather_rows = gather_rows
        self._splits = {name: ResidentSplit.of(rows, device) for name, rows in splits.items()}
        self._stop_requested = stop_requested
        self._dropout_seed = int(counter_generator(plan.seed, "dropout").random_raw(1)[0] >> 33)

    @property
    def stop_requested(self) -> bool:
        """See `Worker.stop_requested`."""
        return self._stop_requested()

    def wrap(self, model: nn.Module) -> nn.Module:
        """See `Worker.wrap`; with one process the model is its own wrapper."""
        return model.to(self.device)

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """See `Worker.batches`."""
        plan = self._plan
        order = epoch_order(plan.num_rows, lanes=plan.lanes, seed=plan.seed, epoch=epoch)
        rows = torch.from_numpy(order).to(self.device)
        per_block = max(1, self._gather_rows // plan.batch_rows)
        stride = per_block * plan.batch_rows
        for block in range(first_step // per_block, num_batches(plan.num_rows, stride)):
            some = rows[block * stride : (block + 1) * stride]
            batches = self._splits["train"].gathered(some, plan.batch_rows)
            # The last bits of a product depend on where its rows lie in memory. So a resume
            # gathers the same block as the first pass did, and skips what was done.
            yield from islice(batches, max(0, first_step - block * per_block), None)

    def seed_step(self, step: int) -> None:
        """See `Worker.seed_step`.

        torch's CPU generator keeps 32 bits of a seed, so consecutive steps get consecutive
        seeds: no two steps of a run share one.
        """
        seed = self._dropout_seed + step
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def split_batches(self, split: str) -> Iterator[Batch]:
        """See `Worker.split_batches`."""
        return self._splits[split].in_order(self._gather_rows)
