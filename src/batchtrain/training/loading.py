"""What serves the rows of one rank: those of its lanes and of its blocks, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.spec.run import Determinism
from batchtrain.training.gradients import PLAIN, GradientRules, make_gradients
from batchtrain.training.machine import MachineChoices
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import Ranks
from batchtrain.training.rows import (
    Columns,
    MeasuredRows,
    ResidentBlocks,
    ResidentRows,
    ResidentSplit,
    TrainRows,
    held_blocks,
    held_rows,
)
from batchtrain.training.shards import ShardReader, StreamedBlocks, read_pieces
from batchtrain.training.streaming import StreamedRows
from batchtrain.training.worker import RankWorker

__all__ = ["RowLoader"]

KEPT_BYTES = 1 << 28
"""Blocks of a measured split that take no more than this stay in memory, streaming or not."""

Blocks = tuple[range, Sequence[int]]
"""The numbers of some blocks; the first row of each and the end of the last."""


@dataclass(frozen=True)
class RowLoader:
    """Makes the worker of a rank.

    Attributes:
        reader: Reads shards.
        prepared: What they belong to.
        device: Where the model trains.
    """

    reader: ShardReader
    prepared: PreparedData
    device: torch.device

    def worker(
        self,
        plan: TrainingPlan,
        machine: MachineChoices,
        measured: Sequence[str],
        *,
        ranks: Ranks,
        determinism: Determinism,
        rules: GradientRules = PLAIN,
    ) -> RankWorker:
        """The worker of one rank, its rows in memory or streaming.

        Args:
            plan: The numbers of the run.
            machine: The choices in force.
            measured: The splits that are measured.
            ranks: Which of how many this is.
            determinism: Whether the bits may depend on the number of ranks.
            rules: How the rows of a part are differentiated.

        Raises:
            ArtifactDamagedError: If a shard is not what it must be.
            TrainingError: If there are more ranks than `canonical` has groups.
        """
        gradients = make_gradients(
            determinism, ranks, self.device, seed=plan.order.seed, rules=rules
        )
        blocks = {
            split: held_blocks(
                self.prepared.num_rows(split),
                machine.gather_rows,
                size=ranks.size,
                rank=ranks.rank,
            )
            for split in measured
        }
        train: TrainRows
        if machine.rows == "streaming":
            train, blocks_of = self._streaming(blocks)
        else:
            lanes = held_rows(plan.order, gradients.parts, gradients.num_parts)
            train, blocks_of = self._resident(lanes, blocks)
        return RankWorker(
            plan,
            gradients,
            train,
            blocks_of,
            self._columns,
            device=self.device,
            ranks=ranks,
            gather_rows=machine.gather_rows,
        )

    def _resident(
        self, lanes: tuple[int, int], blocks: Mapping[str, Blocks]
    ) -> tuple[ResidentRows, dict[str, MeasuredRows]]:
        first, end = lanes
        if "train" in blocks and blocks["train"][0]:
            # They are cut elsewhere than the lanes, at both ends.
            edges = blocks["train"][1]
            first, end = min(first, edges[0]), max(end, edges[-1])
        train = self._load("train", first, end)
        measured: dict[str, MeasuredRows] = {
            split: ResidentBlocks(train, first, *found)
            if split == "train"
            else self._kept(split, *found)
            for split, found in blocks.items()
        }
        return ResidentRows(train, first), measured

    def _streaming(
        self, blocks: Mapping[str, Blocks]
    ) -> tuple[StreamedRows, dict[str, MeasuredRows]]:
        bounds = self.prepared.shard_bounds("train")
        measured: dict[str, MeasuredRows] = {}
        for split, (numbers, edges) in blocks.items():
            if (edges[-1] - edges[0]) * self._columns.row_bytes <= KEPT_BYTES:
                measured[split] = self._kept(split, numbers, edges)
            else:
                measured[split] = StreamedBlocks(
                    self.reader,
                    split,
                    self.prepared.shard_bounds(split),
                    self._columns,
                    self.device,
                    numbers,
                    edges,
                )
        return StreamedRows(self.reader, bounds, self._columns, self.device), measured

    def _kept(self, split: str, numbers: range, edges: Sequence[int]) -> ResidentBlocks:
        held = self._load(split, edges[0], edges[-1])
        return ResidentBlocks(held, edges[0], numbers, edges)

    def _load(self, split: str, first: int, end: int) -> ResidentSplit:
        """Some neighbouring rows of a split, read one shard after the other into one place."""
        bounds = self.prepared.shard_bounds(split)
        pieces = read_pieces(self.reader, split, bounds, [first, end], self._columns, self.device)
        with closing(pieces):
            return next(pieces)

    @property
    def _columns(self) -> Columns:
        return Columns.of(self.prepared)
