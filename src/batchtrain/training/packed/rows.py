"""The rows of a pack's batches: one gather for all trials where they have one seed.

Shapes: K trials, S seeds among them, B rows of a batch, N rows of several batches, F numeric
features, C categorical columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batchtrain.training.plan import TrainingPlan
from batchtrain.training.rows import ResidentSplit
from batchtrain.training.worker import GATHER_ROWS

__all__ = ["PackedBatch", "packed_batches", "packed_blocks"]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch of each trial; what all of them share is there once, expanded.

    Attributes:
        numeric_KBF: float32 [K, B, F].
        codes_KBC: int64 [K, B, C].
        target_KB: int64 or float32 [K, B].
        weight_KB: float32 [K, B], or None where every row weighs 1.
    """

    numeric_KBF: Tensor
    codes_KBC: Tensor
    target_KB: Tensor
    weight_KB: Tensor | None

    def __len__(self) -> int:
        """B."""
        return int(self.target_KB.shape[1])


def packed_batches(
    split: ResidentSplit, plans: Sequence[TrainingPlan], epoch: int
) -> Iterator[PackedBatch]:
    """The batches of an epoch, those of each trial in the order of its own seed.

    Args:
        split: All training rows.
        plans: Of the trials; they differ in their seeds alone.
        epoch: From 0.
    """
    plan, device = plans[0], split.target_N.device
    seeds = sorted({each.order.seed for each in plans})
    orders_SN = torch.stack(
        [torch.from_numpy(replace(plan.order, seed=seed).epoch(epoch)) for seed in seeds]
    ).to(device)
    seed_K = torch.tensor([seeds.index(each.order.seed) for each in plans], device=device)
    if len(seeds) > 1:
        orders_SN = orders_SN.index_select(0, seed_K)
    rows = plan.batch_rows
    at_once = max(1, GATHER_ROWS // (rows * len(orders_SN))) * rows
    for first in range(0, orders_SN.shape[1], at_once):
        block = _gathered(split, orders_SN[:, first : first + at_once])
        for start in range(0, len(block), rows):
            yield _cut(block, slice(start, start + rows), len(plans))


def packed_blocks(split: ResidentSplit, trials: int) -> Iterator[PackedBatch]:
    """All rows of a split in their order, the same for all trials, some at a time."""
    at_once = max(1, GATHER_ROWS // trials)
    for first in range(0, len(split), at_once):
        block = split.block(first, min(first + at_once, len(split)))
        weight_B = block.weight_B
        whole = PackedBatch(
            block.numeric_BF.unsqueeze(0),
            block.codes_BC.unsqueeze(0),
            block.target_B.unsqueeze(0),
            None if weight_B is None else weight_B.unsqueeze(0),
        )
        yield _cut(whole, slice(None), trials)


def _gathered(split: ResidentSplit, rows_SN: Tensor) -> PackedBatch:
    places = rows_SN.reshape(-1)

    def taken(column: Tensor) -> Tensor:
        return column.index_select(0, places).view(*rows_SN.shape, *column.shape[1:])

    weight_N = split.weight_N
    return PackedBatch(
        taken(split.numeric_NF),
        taken(split.codes_NC),
        taken(split.target_N),
        None if weight_N is None else taken(weight_N),
    )


def _cut(block: PackedBatch, rows: slice, trials: int) -> PackedBatch:
    def part(column: Tensor) -> Tensor:
        return column[:, rows].expand(trials, *[-1] * (column.ndim - 1))

    weight = block.weight_KB
    return PackedBatch(
        part(block.numeric_KBF),
        part(block.codes_KBC),
        part(block.target_KB),
        None if weight is None else part(weight),
    )
