"""What the training loop may ask of whatever runs it, and the answer for one rank's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.spec.run import Determinism
from batchtrain.training.gradients import PLAIN, GradientRules, Gradients, make_gradients
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import OneRank, Ranks
from batchtrain.training.rows import (
    Columns,
    EpochBlocks,
    MeasuredRows,
    ResidentBlocks,
    ResidentRows,
    ResidentSplit,
    TrainRows,
    held_blocks,
)

__all__ = ["GATHER_ROWS", "RankWorker", "ResidentSplit", "ResidentWorker", "Share", "Worker"]

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


class RankWorker:
    """Serves one rank's rows, whether they are in memory or are read as they are needed."""

    def __init__(
        self,
        plan: TrainingPlan,
        gradients: Gradients,
        train: TrainRows,
        measured: Mapping[str, MeasuredRows],
        columns: Columns,
        *,
        device: torch.device,
        ranks: Ranks,
        gather_rows: int,
    ) -> None:
        """Take over what serves the rows.

        Args:
            plan: The numbers of the run.
            gradients: Which parts of a batch are this rank's, and how gradients come of them.
            train: Serves the rows of those parts.
            measured: Serves this rank's blocks of the splits that are measured.
            columns: What a row is made of.
            device: Where the model trains.
            ranks: Which of how many this is.
            gather_rows: Rows of the global batches gathered in one go; it is part of the
                numerical result.
        """
        self.device = device
        self.ranks = ranks
        self._plan = plan
        self._gradients = gradients
        self._train = train
        self._measured = dict(measured)
        self._columns = columns
        self._gather_rows = gather_rows

    def wrap(self, model: nn.Module, loss: Loss) -> nn.Module:
        """See `Worker.wrap`."""
        row = self._columns.weightless_row(self.device)
        return self._gradients.wrap(model.to(self.device), loss, row)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """See `Worker.shares`."""
        plan = self._plan
        blocks = EpochBlocks.of(
            plan,
            self._gradients.parts,
            self._gradients.num_parts,
            epoch=epoch,
            first_step=first_step,
            gather_rows=self._gather_rows,
        )
        of_blocks = self._train.batches(blocks)
        for (first, end), of_parts in zip(pairwise(blocks.edges), of_blocks, strict=True):
            for step, batches in zip(range(first, end), zip(*of_parts, strict=True), strict=True):
                if step >= first_step:
                    mine = [self._with_row(batch) for batch in batches]
                    yield Share(mine, plan.order.batch_size(plan.batch_rows, step))

    def gradient(self, model: nn.Module, loss: Loss, share: Share, step: int) -> Tensor:
        """See `Worker.gradient`."""
        passed("step.rows")
        return self._gradients.gradient(model, loss, share.batches, share.global_rows, step)

    def loss_divisor(self, global_rows: int) -> float:
        """See `Worker.loss_divisor`."""
        return self._gradients.loss_divisor(global_rows)

    def split_blocks(self, split: str) -> Iterator[tuple[int, Batch]]:
        """See `Worker.split_blocks`."""
        return self._measured[split].blocks()

    def close(self) -> None:
        """Let go of whatever reads ahead."""
        self._train.close()

    def _with_row(self, batch: Batch) -> Batch:
        return batch if len(batch.target_B) else self._columns.weightless_row(self.device)


class ResidentWorker(RankWorker):
    """Serves one rank's rows from whole splits that are in memory already."""

    def __init__(
        self,
        plan: TrainingPlan,
        splits: Mapping[str, SplitRows],
        device: torch.device,
        *,
        ranks: Ranks | None = None,
        gather_rows: int = GATHER_ROWS,
        determinism: Determinism = "order",
        rules: GradientRules = PLAIN,
    ) -> None:
        """Move the splits to the device.

        Args:
            plan: The numbers of the run.
            splits: The training split, and those that are measured.
            device: Where the model trains.
            ranks: Left out, this worker is the only one.
            gather_rows: See `RankWorker`.
            determinism: Whether the bits may depend on the number of ranks.
            rules: How the rows of a part are differentiated.

        Raises:
            TrainingError: If there are more ranks than `canonical` has groups.
        """
        ranks = ranks or OneRank()
        moved = {name: ResidentSplit.of(rows, device) for name, rows in splits.items()}
        held = {
            name: held_blocks(len(split), gather_rows, size=ranks.size, rank=ranks.rank)
            for name, split in moved.items()
        }
        super().__init__(
            plan,
            make_gradients(determinism, ranks, device, seed=plan.order.seed, rules=rules),
            ResidentRows(moved["train"]),
            {name: ResidentBlocks(split, 0, *held[name]) for name, split in moved.items()},
            moved["train"].columns,
            device=device,
            ranks=ranks,
            gather_rows=gather_rows,
        )
