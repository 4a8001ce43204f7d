"""What the training loop may ask of whatever runs it, and the answer from rows in memory.

Shapes: B rows of a batch, N rows of a split, F numeric features, C categorical columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.row_order import rank_rows
from batchtrain.spec.run import Determinism
from batchtrain.training.gradients import make_gradients
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import OneRank, Ranks

__all__ = ["GATHER_ROWS", "ResidentSplit", "ResidentWorker", "Share", "Worker"]

GATHER_ROWS = 16_384
"""Rows gathered in one go: enough to spread the cost of the call, few enough for the cache. Where a
batch lies in its block shows in the last bits, so a run keeps the number that it began with."""


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of one global batch.

    Attributes:
        batches: The rank's rows; one batch, or one for each group of `determinism: canonical`.
            Where there is no row, there is one of weight 0: it takes part in the step and adds
            nothing to it.
        global_rows: The rows of the whole batch, over all ranks.
    """

    batches: list[Batch]
    global_rows: int


class Worker(Protocol):
    """What one training process may ask of whatever launched it.

    The loop is written against this and nothing else, so that it knows neither files nor other
    processes. Every worker of a run takes the same number of steps.
    """

    @property
    def ranks(self) -> Ranks:
        """Which of how many workers this is, and how they tell each other something."""
        ...

    def wrap(self, model: nn.Module, loss: Loss) -> nn.Module:
        """Put the model on the worker's device and make its gradients those of the batch."""
        ...

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """Yield this worker's part of the global batches of an epoch, from `first_step` on.

        Calling twice with the same arguments yields the same rows in the same order.
        """
        ...

    def gradient(self, model: nn.Module, loss: Loss, share: Share, step: int) -> Tensor:
        """Leave the gradient of the whole batch in the parameters, which have none.

        Dropout draws by the global step and this worker's part of the batch alone.

        Returns:
            The losses of this worker's parts of the batch, on the device. Those of all workers,
            added and divided by `loss_divisor`, are the mean loss of the batch.
        """
        ...

    def loss_divisor(self, global_rows: int) -> float:
        """See `gradient`."""
        ...

    def split_blocks(self, split: str) -> Iterator[tuple[int, Batch]]:
        """Yield this worker's blocks of a split, each with its number.

        The blocks of all workers together are every row once. A block is the same rows whatever
        the number of workers.
        """
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

    def gathered(self, rows: Tensor, batch_rows: int | list[int]) -> Iterator[Batch]:
        """Cut the rows of an index into batches; each is a view of one gathered block."""
        # index_select copies whole rows; indexing with [rows] takes five times as long.
        numeric = self.numeric_NF.index_select(0, rows).split(batch_rows)
        codes = self.codes_NC.index_select(0, rows).split(batch_rows)
        targets = self.target_N.index_select(0, rows).split(batch_rows)
        for numeric_BF, codes_BC, target_B in zip(numeric, codes, targets, strict=True):
            yield Batch(numeric_BF, codes_BC, target_B)

    def in_order(self, block_rows: int) -> Iterator[Batch]:
        """All rows once, as they lie."""
        for numeric_BF, codes_BC, target_B in zip(
            self.numeric_NF.split(block_rows),
            self.codes_NC.split(block_rows),
            self.target_N.split(block_rows),
            strict=True,
        ):
            yield Batch(numeric_BF, codes_BC, target_B)

    def weightless_row(self) -> Batch:
        """A row of zeros with weight 0: it takes part in a step and adds nothing to it.

        A row of the split could be so large that its loss is infinite, and 0 times that is NaN.
        """
        numeric_BF, codes_BC, target_B = (
            torch.zeros_like(each[:1]) for each in (self.numeric_NF, self.codes_NC, self.target_N)
        )
        return Batch(numeric_BF, codes_BC, target_B, torch.zeros(1, device=target_B.device))


class ResidentWorker:
    """Serves one rank's rows from tensors that are resident on the device."""

    def __init__(
        self,
        plan: TrainingPlan,
        splits: Mapping[str, SplitRows],
        device: torch.device,
        *,
        ranks: Ranks | None = None,
        gather_rows: int = GATHER_ROWS,
        determinism: Determinism = "order",
    ) -> None:
        """Move the splits to the device.

        Args:
            plan: The numbers of the run.
            splits: The training split, and those that are measured.
            device: Where the model trains.
            ranks: Left out, this worker is the only one.
            gather_rows: Rows of the global batches gathered in one go; it is part of the
                numerical result.
            determinism: Whether the bits may depend on the number of ranks.

        Raises:
            TrainingError: If there are more ranks than `canonical` has groups.
        """
        self.device = device
        self.ranks = ranks or OneRank()
        self._plan = plan
        self._gather_rows = gather_rows
        self._splits = {name: ResidentSplit.of(rows, device) for name, rows in splits.items()}
        self._gradients = make_gradients(determinism, self.ranks, device, seed=plan.order.seed)

    def wrap(self, model: nn.Module, loss: Loss) -> nn.Module:
        """See `Worker.wrap`."""
        row = self._splits["train"].weightless_row()
        return self._gradients.wrap(model.to(self.device), loss, row)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """See `Worker.shares`."""
        plan = self._plan
        parts = [self._part(epoch, part, first_step) for part in self._gradients.parts]
        for step, batches in enumerate(zip(*parts, strict=True), first_step):
            yield Share(list(batches), plan.order.batch_size(plan.batch_rows, step))

    def gradient(self, model: nn.Module, loss: Loss, share: Share, step: int) -> Tensor:
        """See `Worker.gradient`."""
        passed("step.rows")
        return self._gradients.gradient(model, loss, share.batches, share.global_rows, step)

    def loss_divisor(self, global_rows: int) -> float:
        """See `Worker.loss_divisor`."""
        return self._gradients.loss_divisor(global_rows)

    def split_blocks(self, split: str) -> Iterator[tuple[int, Batch]]:
        """See `Worker.split_blocks`; block `i` is rank `i mod W`'s."""
        blocks = enumerate(self._splits[split].in_order(self._gather_rows))
        return islice(blocks, self.ranks.rank, None, self.ranks.size)

    def _part(self, epoch: int, part: int, first_step: int) -> Iterator[Batch]:
        """The rows of one part of each global batch, from `first_step` on."""
        mine = rank_rows(
            self._plan.order,
            epoch=epoch,
            batch_rows=self._plan.batch_rows,
            world_size=self._gradients.num_parts,
            rank=part,
        )
        split = self._splits["train"]
        rows = torch.from_numpy(mine.rows).to(self.device)
        starts = mine.step_starts.tolist()
        steps = len(starts) - 1
        per_block = max(1, self._gather_rows // self._plan.batch_rows)
        for block in range(first_step - first_step % per_block, steps, per_block):
            end = min(block + per_block, steps)
            sizes = [starts[step + 1] - starts[step] for step in range(block, end)]
            batches = split.gathered(rows[starts[block] : starts[end]], sizes)
            # The last bits of a product depend on where its rows lie in memory. So a resume
            # gathers the same block as the first pass did, and skips what was done.
            for batch in islice(batches, max(0, first_step - block), None):
                yield batch if len(batch.target_B) else split.weightless_row()
