"""Reading the shards of prepared data: in the order asked, checked, as rows in tensors.

Shapes: S shards of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.errors import ArtifactDamagedError
from batchtrain.models.inputs import Batch, ModelInputs, check_codes
from batchtrain.models.target_scale import TargetScale
from batchtrain.points import passed
from batchtrain.training.rows import Columns, ResidentSplit

__all__ = [
    "CheckedShards",
    "ScaledShards",
    "ShardReader",
    "StoredShards",
    "StreamedBlocks",
    "opened",
    "read_pieces",
    "shards_between",
]

Int64Array = npt.NDArray[np.int64]


class ShardReader(Protocol):
    """Gives the shards of a split in the order asked for."""

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        """Yield the rows of each shard; a generator is closed to let go of what reads ahead.

        What cannot be read is raised where its shard would have come.
        """
        ...


@dataclass(frozen=True)
class StoredShards:
    """Reads shards from storage, always one ahead of the one that was asked for."""

    prepared: PreparedData

    def __call__(self, split: str, shards: Sequence[int]) -> Generator[SplitRows]:
        """See `ShardReader`.

        Raises:
            ArtifactDamagedError: If a shard is not what the manifest says.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="shards") as reader:
            ahead = [reader.submit(self._read, split, number) for number in shards[:1]]
            for following in [*shards[1:], None][: len(shards)]:
                rows = ahead.pop().result()
                if following is not None:
                    ahead.append(reader.submit(self._read, split, following))
                yield rows
                del rows  # While the next one is awaited there is no need for this one.

    def _read(self, split: str, number: int) -> SplitRows:
        rows = self.prepared.shard(split, number)
        # In this thread it is a sign of progress; the ranks do not read equally often.
        passed("shard.read")
        return rows


@dataclass
class CheckedShards:
    """Checks what any reader of shards gives, each time that a shard is read."""

    reader: ShardReader
    prepared: PreparedData
    inputs: ModelInputs
    _seen: dict[str, _RowNumbers] = field(default_factory=dict)

    def __call__(self, split: str, shards: Sequence[int]) -> Generator[SplitRows]:
        """See `ShardReader`.

        Raises:
            ArtifactDamagedError: If the rows are not as many as planned, or not those that the
                shard had before, or if they cannot be in this place of the split.
            DataError: If a category code does not belong to its column.
        """
        with opened(self.reader, split, shards) as found:
            for number in shards:
                rows = next(found, None)
                if rows is None:
                    raise ArtifactDamagedError(
                        f"expected the rows of {self._url(split, number)}, found the end of what "
                        "is read. Run the same command again; if that does not help, delete the "
                        f"folder {self.prepared.artifact.url} and prepare again"
                    )
                self._check(split, number, rows)
                yield rows
                del rows  # While the next one is read there is no need for this one.

    def _check(self, split: str, number: int, rows: SplitRows) -> None:
        self.prepared.check_shard(split, number, rows)
        check_codes(torch.from_numpy(np.array(rows.codes)), self.inputs)
        seen = self._seen.get(split)
        if seen is None:
            num_shards = len(self.prepared.shard_names(split))
            seen = self._seen[split] = _RowNumbers(np.full((num_shards, 2), -1), {})
        problem = seen.problem(number, rows.row_id)
        if problem:
            raise ArtifactDamagedError(
                f"{self._url(split, number)}: {problem}. Let nobody write to the folder "
                f"{self.prepared.artifact.url} while a run reads it; delete it and prepare again"
            )

    def _url(self, split: str, number: int) -> str:
        name = self.prepared.shard_names(split)[number]
        return self.prepared.artifact.file_url(name)


@dataclass(frozen=True)
class ScaledShards:
    """Scales the targets of what any reader gives, in float64 and once a read.

    So the targets lie scaled in the tensors, and no step has to do anything.
    """

    reader: ShardReader
    scale: TargetScale

    def __call__(self, split: str, shards: Sequence[int]) -> Generator[SplitRows]:
        """See `ShardReader`."""
        with opened(self.reader, split, shards) as found:
            for rows in found:
                yield replace(rows, target=self.scale.scaled(rows.target.astype(np.float64)))
                del rows  # While the next one is read there is no need for this one.


@dataclass(frozen=True)
class _RowNumbers:
    """The row numbers that the shards of a split had when they were first read.

    Attributes:
        ends: The first and the last of each shard, -1 while they are not known: int64 `[S, 2]`.
        digests: Shard to the digest of all of them.
    """

    ends: Int64Array
    digests: dict[int, bytes]

    def problem(self, number: int, row_id: Int64Array) -> str:
        """What is wrong with the row numbers of a shard; they are kept if nothing is."""
        if not len(row_id):
            return ""
        digest = hashlib.blake2b(row_id.tobytes(), digest_size=8).digest()
        if self.digests.setdefault(number, digest) != digest:
            return "expected the row numbers that were here before, found others"
        first, last = self.ends[number] = row_id[0], row_id[-1]
        before = self.ends[:number, 1].max(initial=-1)
        after = self.ends[number + 1 :, 0]
        after = after[after >= 0].min(initial=np.iinfo(np.int64).max)
        if not before < first <= last < after:
            return (
                f"expected row numbers between those of the shards around it, {before} and "
                f"{after}, found {first} to {last}"
            )
        return ""


@dataclass(frozen=True)
class StreamedBlocks:
    """A rank's blocks of a split that is measured, read from its shards each time.

    Attributes:
        reader: Reads the shards.
        split: The name of the split.
        bounds: The first row of each shard, and the end of the last.
        columns: What a row is made of.
        device: Where the model is.
        numbers: Those of the blocks.
        edges: The first row of each block, and the end of the last.
    """

    reader: ShardReader
    split: str
    bounds: Int64Array
    columns: Columns
    device: torch.device
    numbers: range
    edges: Sequence[int]

    def blocks(self) -> Iterator[tuple[int, Batch]]:
        """See `MeasuredRows.blocks`."""
        with closing(
            read_pieces(self.reader, self.split, self.bounds, self.edges, self.columns)
        ) as pieces:
            for number, piece in zip(self.numbers, pieces, strict=True):
                yield number, piece.block(0, len(piece), self.device)


@contextmanager
def opened(reader: ShardReader, split: str, shards: Sequence[int]) -> Iterator[Iterator[SplitRows]]:
    """The shards of a split while the block runs; whatever reads ahead ends with it."""
    found = reader(split, shards)
    try:
        yield found
    finally:
        if isinstance(found, Generator):
            found.close()


def shards_between(bounds: Int64Array, first: int, end: int) -> list[int]:
    """The shards that have a row of `[first, end)`."""
    inside = (bounds[:-1] < end) & (bounds[1:] > first) & (bounds[:-1] < bounds[1:])
    return [int(number) for number in np.flatnonzero(inside)] if first < end else []


def read_pieces(
    reader: ShardReader,
    split: str,
    bounds: Int64Array,
    edges: Sequence[int],
    columns: Columns,
    device: torch.device | None = None,
) -> Generator[ResidentSplit]:
    """Read neighbouring rows of a split, cut at `edges`; no more than a shard is read before it.

    Args:
        reader: Reads the shards.
        split: The name of the split.
        bounds: The first row of each of its shards, and the end of the last.
        edges: The first row of each piece, and the end of the last.
        columns: What a row is made of.
        device: Of the pieces; the CPU by default.
    """
    row = edges[0]
    numbers = shards_between(bounds, row, edges[-1])
    with opened(reader, split, numbers) as found:
        following = iter(numbers)
        start = shard_end = row
        rows: SplitRows | None = None
        for first, end in pairwise(edges):
            piece = ResidentSplit.empty(columns, end - first, device or torch.device("cpu"))
            while row < end:
                if rows is None or row == shard_end:
                    rows = None  # While the next one is read there is no need for this one.
                    number, rows = next(following), next(found)
                    start, shard_end = (int(edge) for edge in bounds[number : number + 2])
                stop = min(end, shard_end)
                piece.put(row - first, rows[row - start : stop - start])
                row = stop
            yield piece
