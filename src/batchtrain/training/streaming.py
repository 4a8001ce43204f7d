"""Training rows that are read anew in each epoch, a window or two of each lane at a time.

The shards that a rank will need, and when, follow from the order of its rows. A thread reads them
in the order of their first need into the slots of one arena, as soon as a slot is free; a slot is
free once the last row of its shard was served. There are as many slots as two neighbouring blocks
of rows need shards, so that the thread never waits for a slot that an earlier shard holds on to,
and reads the next window of each lane while the last one is served.

Shapes: n rows, S shards of the split.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.inputs import Batch
from batchtrain.points import passed
from batchtrain.training.rows import Columns, EpochBlocks, ResidentSplit
from batchtrain.training.shards import ShardReader, opened

__all__ = ["ShardPlan", "StreamedRows", "shard_plan"]

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardPlan:
    """Which shards the blocks of an epoch need, and when.

    Attributes:
        order: The shards in the order of their first need: int64 `[n]`.
        first: The first block that needs each of them: int64 `[n]`, ascending.
        last: The last block that needs each of them: int64 `[n]`.
    """

    order: Int64Array
    first: Int64Array
    last: Int64Array

    @property
    def slots(self) -> int:
        """The most shards that two neighbouring blocks need, those before and after them counted.

        So there is always room to read what the next block needs while a block is served.
        """
        if not len(self.order):
            return 0
        begun = np.bincount(self.first, minlength=int(self.last.max()) + 3)
        ended = np.bincount(self.last + 2, minlength=len(begun))
        return int(np.cumsum(begun - ended).max())


def shard_plan(blocks: Iterable[Sequence[Int64Array]], bounds: Int64Array) -> ShardPlan:
    """Plan from the rows of each block.

    Args:
        blocks: For each block some arrays of rows, in any order.
        bounds: The first row of each shard, and the end of the last: int64 `[S + 1]`.

    Example:
        >>> plan = shard_plan([[np.array([9, 8])], [np.array([7, 0])]], np.array([0, 4, 8, 10]))
        >>> plan.order.tolist(), plan.first.tolist(), plan.last.tolist(), plan.slots
        ([2, 0, 1], [0, 1, 1], [0, 1, 1], 3)
    """
    first = np.full(len(bounds) - 1, -1)
    last = first.copy()
    for number, parts in enumerate(blocks):
        needed = np.zeros(len(first), dtype=bool)
        for rows in parts:
            needed[_shard_of(rows, bounds)] = True
        last[needed] = number
        first[needed & (first < 0)] = number
    shards = np.flatnonzero(first >= 0)
    order = shards[np.argsort(first[shards], kind="stable")]
    return ShardPlan(order, first[order], last[order])


class StreamedRows:
    """Serves a rank's training rows out of shards that are read as they are needed.

    Where a lane is at most two windows, all its shards are needed at once in some block; they
    then stay in their slots and are not read again.
    """

    def __init__(
        self, reader: ShardReader, bounds: Int64Array, columns: Columns, device: torch.device
    ) -> None:
        """Read nothing yet.

        Args:
            reader: Reads the shards of the training split.
            bounds: The first row of each shard, and the end of the last: int64 `[S + 1]`.
            columns: What a row is made of.
            device: Where the model is; the shards are in the memory of the CPU.
        """
        self._reader = reader
        self._bounds = bounds
        self._columns = columns
        self._device = device
        self._arena: _Arena | None = None
        self._filling: _Filling | None = None

    def batches(self, blocks: EpochBlocks) -> Iterator[Sequence[Iterator[Batch]]]:
        """See `TrainRows.batches`.

        Raises:
            ArtifactDamagedError: If a shard is not what it must be.
        """
        self.close()
        plan = shard_plan(([rows for rows, _sizes in block] for block in blocks), self._bounds)
        arena = self._arena_for(plan)
        filling = self._filling = _Filling(self._reader, arena, plan)
        with closing(filling):
            for number, block in enumerate(blocks):
                filling.wait_for(number)
                # All rows are copied before their slots can be filled with others.
                served = [list(self._gathered(arena, rows, sizes)) for rows, sizes in block]
                filling.release(number)
                yield [iter(batches) for batches in served]

    def close(self) -> None:
        """See `TrainRows.close`."""
        if self._filling is not None:
            self._filling.close()
            self._filling = None

    def _arena_for(self, plan: ShardPlan) -> _Arena:
        """An arena with enough slots: the one that is there, or a larger one without a shard."""
        if self._arena is None or len(self._arena.shards) < plan.slots:
            self._arena = None  # It must be gone before there is another.
            self._arena = _Arena(self._bounds, self._columns, plan.slots)
        return self._arena

    def _gathered(self, arena: _Arena, rows: Int64Array, sizes: list[int]) -> Iterator[Batch]:
        places = rows + arena.shift[_shard_of(rows, self._bounds)]
        return arena.rows.gathered(torch.from_numpy(places), sizes, self._device)


class _Arena:
    """Room for some shards, and which of them lie where.

    Attributes:
        rows: Slot after slot, each as long as the longest shard.
        shards: The shard in each slot; -1 where there is none, or not yet all of one.
        shift: What to add to a row of each shard to have its place: int64 `[S]`.
    """

    def __init__(self, bounds: Int64Array, columns: Columns, num_slots: int) -> None:
        self._starts = bounds[:-1]
        self._slot_rows = int(np.diff(bounds).max())
        num_rows = num_slots * self._slot_rows
        self.rows = ResidentSplit.empty(columns, num_rows, torch.device("cpu"))
        self.shards = [-1] * num_slots
        self.shift = np.zeros(len(bounds) - 1, dtype=np.int64)

    def fill(self, slot: int, shard: int, rows: SplitRows) -> None:
        """Copy a shard into a slot."""
        self.shards[slot] = -1
        start = slot * self._slot_rows
        self.rows.put(start, rows)
        self.shift[shard] = start - self._starts[shard]
        self.shards[slot] = shard


class _Filling:
    """Fills an arena with the shards of a plan, in a thread of its own."""

    def __init__(self, reader: ShardReader, arena: _Arena, plan: ShardPlan) -> None:
        self._reader = reader
        self._arena = arena
        self._plan = plan
        lying = {shard: slot for slot, shard in enumerate(arena.shards) if shard >= 0}
        # These would come before any other shard is dropped, so what is here of them stays. One
        # that is needed later could hold the slot that an earlier one waits for.
        soon = plan.order[: len(arena.shards)].tolist()
        self._slots = {shard: lying[shard] for shard in soon if shard in lying}
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in set(range(len(arena.shards))).difference(self._slots.values()):
            self._free.put(slot)
        self._arrived: SimpleQueue[tuple[int, int] | BaseException] = SimpleQueue()
        self._stopping = False
        self._served = 0
        awaited = [shard for shard in plan.order.tolist() if shard not in self._slots]
        self._thread = threading.Thread(
            target=self._fill, args=(awaited,), name="arena", daemon=True
        )
        self._thread.start()

    def wait_for(self, block: int) -> None:
        """Wait until all shards that a block needs are there.

        Raises:
            BaseException: What the reader raised in the place of one of them.
        """
        end = int(np.searchsorted(self._plan.first, block, side="right"))
        for shard in self._plan.order[self._served : end].tolist():
            while shard not in self._slots:
                arrived = self._arrived.get()
                if isinstance(arrived, BaseException):
                    raise arrived
                self._slots.update([arrived])
        self._served = end

    def release(self, block: int) -> None:
        """Drop the shards that no later block needs."""
        for shard in self._plan.order[self._plan.last == block].tolist():
            self._free.put(self._slots.pop(shard))

    def close(self) -> None:
        """End the thread and let go of the reader."""
        self._stopping = True
        self._free.put(-1)
        self._thread.join()

    def _fill(self, shards: list[int]) -> None:
        try:
            with opened(self._reader, "train", shards) as found:
                for shard in shards:
                    slot = self._free.get()
                    if self._stopping:
                        return
                    self._arena.fill(slot, shard, next(found))
                    self._arrived.put((shard, slot))
                    passed("shard.placed")
        except BaseException as error:  # noqa: BLE001  # it is raised where its shard is awaited
            self._arrived.put(error)


def _shard_of(rows: Int64Array, bounds: Int64Array) -> Int64Array:
    return np.searchsorted(bounds, rows, side="right") - 1
