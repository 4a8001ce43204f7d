"""Write a split as near-equal shards in lanes while its rows stream past."""

from __future__ import annotations

from batchtrain.artifacts import Draft
from batchtrain.artifacts.prepared import SplitRows

__all__ = [
    "SHARD_ROWS",
    "ShardWriter",
    "auto_lanes",
    "packed_row_bytes",
    "shard_bounds",
    "shard_names",
]

SHARD_ROWS = 131_072
"""A shard has at most this many rows."""

SMALL_BYTES = 1 << 30
"""Training rows of less than this are one lane: they fit into the memory of one process."""

MANY_LANES = 64
"""The lanes of larger ones: as many ranks can each hold a part of the rows."""


def packed_row_bytes(num_numeric: int, num_categorical: int, *, has_weight: bool = False) -> int:
    """What a row takes: float32 features, int64 codes, target, row number, float32 weight."""
    return 4 * num_numeric + 8 * num_categorical + 8 + 8 + 4 * has_weight


def auto_lanes(num_rows: int, row_bytes: int) -> int:
    """V of the row order, from the size of the training rows alone.

    Neither the machine nor the number of workers plays a part, since V decides the order.
    """
    return 1 if num_rows * row_bytes < SMALL_BYTES else MANY_LANES


def shard_bounds(num_rows: int, lanes: int) -> list[int]:
    """Where each shard begins, and the end of the last: sizes differ by at most one row.

    The number of shards is a multiple of `lanes`, so that a lane is whole shards.

    Example:
        >>> shard_bounds(10, lanes=4)
        [0, 2, 5, 7, 10]
    """
    shards = lanes * max(1, -(-num_rows // (lanes * SHARD_ROWS)))
    return [shard * num_rows // shards for shard in range(shards + 1)]


def shard_names(split: str, num_rows: int, *, lanes: int) -> list[str]:
    """The files that a split of so many rows is written to.

    Example:
        >>> shard_names("valid", 10, lanes=1)
        ['valid/00000.parquet']
    """
    return [_name(split, shard) for shard in range(len(shard_bounds(num_rows, lanes)) - 1)]


def _name(split: str, shard: int) -> str:
    return f"{split}/{shard:05d}.parquet"


class ShardWriter:
    """Takes the rows of one split in order and writes each shard as soon as it is full."""

    def __init__(self, draft: Draft, split: str, num_rows: int, *, lanes: int) -> None:
        self._draft = draft
        self._split = split
        self._bounds = shard_bounds(num_rows, lanes)
        self._parts: list[SplitRows] = []
        self._waiting = 0
        self.names: list[str] = []

    def add(self, rows: SplitRows) -> None:
        """Take the next rows of the split."""
        self._parts.append(rows)
        self._waiting += len(rows)
        while len(self.names) < len(self._bounds) - 1 and self._waiting >= self._next_size():
            self._write_shard()

    def _next_size(self) -> int:
        shard = len(self.names)
        return self._bounds[shard + 1] - self._bounds[shard]

    def _write_shard(self) -> None:
        size = self._next_size()
        # Of one part many small shards may be cut; each is a view of it.
        one_part = len(self._parts) == 1
        waiting = self._parts[0] if one_part else SplitRows.concatenate(self._parts)
        name = _name(self._split, len(self.names))
        self._draft.add(name, waiting[slice(0, size)].to_bytes())
        self.names.append(name)
        self._parts = [waiting[slice(size, None)]]
        self._waiting -= size
