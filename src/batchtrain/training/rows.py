"""Which rows a rank holds, and how it cuts them into batches and blocks.

Shapes: B rows of a batch, N rows of a split or of a part of it, F numeric features, C categorical
columns, S shards of a split, V lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.models.inputs import Batch
from batchtrain.row_order import RankRows, RowOrder, rank_lanes, rank_rows
from batchtrain.spec.data import SPLITS
from batchtrain.spec.run import RunSpec
from batchtrain.training.plan import TrainingPlan

__all__ = [
    "Columns",
    "EpochBlocks",
    "MeasuredRows",
    "ResidentBlocks",
    "ResidentRows",
    "ResidentSplit",
    "TrainRows",
    "held_blocks",
    "held_rows",
    "measured_splits",
]

ALIGNED_BYTES = 64
"""Where torch lets a tensor begin on a CPU."""

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """What a row is made of.

    Attributes:
        num_numeric: F.
        num_codes: C.
        target: The type of the target: int64 class codes, or float32 values.
        has_weights: Whether each row has a weight of its own.
    """

    num_numeric: int
    num_codes: int
    target: torch.dtype
    has_weights: bool = False

    @classmethod
    def of(cls, prepared: PreparedData) -> Columns:
        """The columns of prepared data."""
        target = torch.float32 if prepared.task == "regression" else torch.int64
        codes = len(prepared.cardinalities)
        return cls(prepared.num_numeric, codes, target, prepared.has_weights)

    @property
    def row_bytes(self) -> int:
        """What a row takes in tensors."""
        weight = 4 * self.has_weights
        return 4 * self.num_numeric + 8 * self.num_codes + self.target.itemsize + weight

    def weightless_row(self, device: torch.device) -> Batch:
        """A row of zeros with weight 0: it takes part in a step and adds nothing to it.

        A row of the split could be so large that its loss is infinite, and 0 times that is NaN.
        """
        return Batch(
            torch.zeros((1, self.num_numeric), device=device),
            torch.zeros((1, self.num_codes), dtype=torch.int64, device=device),
            torch.zeros(1, dtype=self.target, device=device),
            torch.zeros(1, device=device),
        )


@dataclass(frozen=True)
class ResidentSplit:
    """Rows as contiguous tensors on one device: a split, or a part of one.

    Attributes:
        numeric_NF: float32.
        codes_NC: int64.
        target_N: int64 class codes, or float32 values.
        weight_N: float32, or None where every row weighs 1.
    """

    numeric_NF: Tensor
    codes_NC: Tensor
    target_N: Tensor
    weight_N: Tensor | None = None

    @classmethod
    def empty(cls, columns: Columns, num_rows: int, device: torch.device) -> ResidentSplit:
        """Room for so many rows, whose values are whatever lies there."""
        return cls(
            numeric_NF=torch.empty((num_rows, columns.num_numeric), device=device),
            codes_NC=torch.empty((num_rows, columns.num_codes), dtype=torch.int64, device=device),
            target_N=torch.empty(num_rows, dtype=columns.target, device=device),
            weight_N=torch.empty(num_rows, device=device) if columns.has_weights else None,
        )

    @classmethod
    def of(cls, rows: SplitRows, device: torch.device) -> ResidentSplit:
        """Move rows to the device; a float64 target becomes float32, as the model's outputs are."""
        is_value = np.issubdtype(rows.target.dtype, np.floating)
        target = torch.float32 if is_value else torch.int64
        has_weights = rows.weight is not None
        columns = Columns(rows.numeric.shape[1], rows.codes.shape[1], target, has_weights)
        split = cls.empty(columns, len(rows), device)
        split.put(0, rows)
        return split

    def __len__(self) -> int:
        """N."""
        return int(self.target_N.shape[0])

    @property
    def columns(self) -> Columns:
        """What a row is made of."""
        widths = (self.numeric_NF.shape[1], self.codes_NC.shape[1])
        return Columns(*widths, self.target_N.dtype, self.weight_N is not None)

    def put(self, first: int, rows: SplitRows) -> None:
        """Copy rows to the places from `first` on; they have weights where there is room."""
        end = first + len(rows)
        _copy(rows.numeric, self.numeric_NF[first:end])
        _copy(rows.codes, self.codes_NC[first:end])
        _copy(rows.target, self.target_N[first:end])
        if self.weight_N is not None and rows.weight is not None:
            _copy(rows.weight, self.weight_N[first:end])

    def gathered(
        self, rows: Tensor, batch_rows: int | list[int], device: torch.device | None = None
    ) -> Iterator[Batch]:
        """Cut the rows of an index into batches; each is a view of one gathered block.

        Args:
            rows: Their places.
            batch_rows: The rows of every batch, or of each.
            device: Where the block is moved to; it stays where the rows are by default.
        """
        # index_select copies whole rows; indexing with [rows] takes five times as long.
        columns = (
            _moved(column.index_select(0, rows), device).split(batch_rows)
            for column in self._tensors
        )
        for tensors in zip(*columns, strict=True):
            yield Batch(*tensors)

    def block(self, first: int, end: int, device: torch.device | None = None) -> Batch:
        """The rows of some neighbouring places, in memory as if no row were before them.

        The last bits of a product depend on where its rows lie.
        """
        tensors = (_moved(_aligned(column[first:end]), device) for column in self._tensors)
        return Batch(*tensors)

    def weightless_row(self) -> Batch:
        """See `Columns.weightless_row`."""
        return self.columns.weightless_row(self.target_N.device)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        """All columns, in the order of a batch's."""
        columns = (self.numeric_NF, self.codes_NC, self.target_N)
        return columns if self.weight_N is None else (*columns, self.weight_N)


@dataclass(frozen=True)
class EpochBlocks:
    """What a rank serves of an epoch, in the blocks of steps in which its rows are gathered.

    Attributes:
        parts: The rank's parts of the global batches.
        edges: The first step of each block, and the end of the last; none without a step.
    """

    parts: Sequence[RankRows]
    edges: Sequence[int]

    @classmethod
    def of(
        cls,
        plan: TrainingPlan,
        parts: range,
        num_parts: int,
        *,
        epoch: int,
        first_step: int,
        gather_rows: int,
    ) -> EpochBlocks:
        """The blocks from the one that holds `first_step` on.

        The last bits of a product depend on where its rows lie in memory. So a resume gathers the
        same block as the first pass did, and skips what was done.
        """
        steps, per_block = plan.steps_per_epoch, max(1, gather_rows // plan.batch_rows)
        if first_step >= steps:
            return cls([], [])
        mine = [
            rank_rows(
                plan.order,
                epoch=epoch,
                batch_rows=plan.batch_rows,
                world_size=num_parts,
                rank=part,
            )
            for part in parts
        ]
        first = first_step - first_step % per_block
        return cls(mine, [*range(first, steps, per_block), steps])

    def __len__(self) -> int:
        """The number of blocks."""
        return max(0, len(self.edges) - 1)

    def __iter__(self) -> Iterator[list[tuple[Int64Array, list[int]]]]:
        """For each block and each part of it: the rows, and how many are of each step."""
        for first, end in pairwise(self.edges):
            block = []
            for part in self.parts:
                starts = part.step_starts[first : end + 1]
                block.append((part.rows[starts[0] : starts[-1]], np.diff(starts).tolist()))
            yield block


class TrainRows(Protocol):
    """Gives the rows of a rank's epochs, from wherever they are."""

    def batches(self, blocks: EpochBlocks) -> Iterator[Sequence[Iterator[Batch]]]:
        """For each block and each part of it, the batches of its steps; some may have no row."""
        ...

    def close(self) -> None:
        """Let go of whatever reads ahead."""
        ...


class MeasuredRows(Protocol):
    """Gives a rank's blocks of a split, from wherever they are."""

    def blocks(self) -> Iterator[tuple[int, Batch]]:
        """See `Worker.split_blocks`."""
        ...


@dataclass(frozen=True)
class ResidentRows:
    """Training rows in tensors on the device.

    Attributes:
        split: Neighbouring rows of the training split, all those that the rank serves.
        first_row: The number of the first of them.
    """

    split: ResidentSplit
    first_row: int = 0

    def batches(self, blocks: EpochBlocks) -> Iterator[Sequence[Iterator[Batch]]]:
        """See `TrainRows.batches`."""
        for block in blocks:
            yield [self.split.gathered(self._places(rows), sizes) for rows, sizes in block]

    def close(self) -> None:
        """See `TrainRows.close`."""

    def _places(self, rows: Int64Array) -> Tensor:
        places = torch.from_numpy(rows - self.first_row if self.first_row else rows)
        return places.to(self.split.target_N.device)


@dataclass(frozen=True)
class ResidentBlocks:
    """A rank's blocks of a split that is measured, in tensors on the device.

    Attributes:
        split: Neighbouring rows, all those of the blocks.
        first_row: The number of the first of them.
        numbers: Those of the blocks.
        edges: The first row of each block, and the end of the last.
    """

    split: ResidentSplit
    first_row: int
    numbers: range
    edges: Sequence[int]

    def blocks(self) -> Iterator[tuple[int, Batch]]:
        """See `MeasuredRows.blocks`."""
        for number, (first, end) in zip(self.numbers, pairwise(self.edges), strict=True):
            yield number, self.split.block(first - self.first_row, end - self.first_row)


def held_rows(order: RowOrder, parts: range, num_parts: int) -> tuple[int, int]:
    """The first of the training rows that a rank serves, and the end of them: whole lanes.

    A rank without a part, which is refused later on, has none.
    """
    lanes = [rank_lanes(order.lanes, num_parts, part) for part in parts] or [range(0)]
    first, end = lanes[0].start, lanes[-1].stop
    return first * order.num_rows // order.lanes, end * order.num_rows // order.lanes


def held_blocks(
    num_rows: int, block_rows: int, *, size: int, rank: int
) -> tuple[range, Sequence[int]]:
    """The blocks of a measured split that a rank has: neighbours, so that it reads few shards.

    Returns:
        The numbers of the blocks; the first row of each and the end of the last.

    Example:
        >>> [held_blocks(10, 4, size=2, rank=rank) for rank in range(2)]
        [(range(0, 1), [0, 4]), (range(1, 3), [4, 8, 10])]
    """
    blocks = -(-num_rows // block_rows)
    numbers = range(rank * blocks // size, (rank + 1) * blocks // size)
    edges = range(numbers.start, numbers.stop + 1)
    return numbers, [min(edge * block_rows, num_rows) for edge in edges]


def measured_splits(spec: RunSpec, prepared: PreparedData) -> list[str]:
    """The splits to look at after each epoch: valid, and those that `monitor` names."""
    wanted = {"valid", *spec.tracking.monitor}
    return [split for split in SPLITS if split in wanted and prepared.num_rows(split)]


def _copy(values: npt.NDArray[Any], place: Tensor) -> None:
    if place.device.type == "cpu" and values.dtype == place.numpy().dtype:
        place.numpy()[...] = values
    else:
        # torch warns of an array that must not be written, such as one of Arrow's.
        place.copy_(torch.from_numpy(np.array(values)))


def _aligned(rows: Tensor) -> Tensor:
    return rows if rows.data_ptr() % ALIGNED_BYTES == 0 else rows.clone()


def _moved(rows: Tensor, device: torch.device | None) -> Tensor:
    if device is None or device == rows.device:
        return rows
    # Out of pinned memory the copy overlaps with what the device computes.
    return rows.pin_memory().to(device, non_blocking=True)
