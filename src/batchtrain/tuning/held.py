"""Prepared rows in memory, for all trials of a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.points import passed

__all__ = ["HELD_BYTES", "HeldShards", "held_rows"]

HELD_BYTES = 1 << 30
"""Prepared data up to this size are kept in memory by whoever runs trials; larger ones are read
from storage by each."""


@dataclass(frozen=True)
class HeldShards:
    """Gives shards that are in memory already."""

    splits: Mapping[str, Sequence[SplitRows]]

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        """See `ShardReader`."""
        for number in shards:
            passed("shard.read")
            yield self.splits[split][number]


def held_rows(prepared: PreparedData) -> dict[str, list[SplitRows]] | None:
    """All shards that a training reads, or None where they are too many to keep.

    Raises:
        ArtifactDamagedError: If a shard is not what the manifest says.
    """
    files = prepared.artifact.manifest.files
    names = [name for split in ("train", "valid", "test") for name in prepared.shard_names(split)]
    if sum(files[name].size for name in names) > HELD_BYTES:
        return None
    return {
        split: [prepared.shard(split, number) for number in range(len(prepared.shard_names(split)))]
        for split in ("train", "valid", "test")
    }
