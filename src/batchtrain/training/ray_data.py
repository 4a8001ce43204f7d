"""Ray Data between prepared shards and the ranks that train on them.

Ray Data's own splitter drops rows and has no order, so that our `DataConfig` gives each rank an
iterator over the shards of its own lanes. The shards are read by our reader, which verifies them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import DataIterator, Dataset

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.engines.session import hush_ray_data
from batchtrain.errors import TrainingError
from batchtrain.row_order import rank_lanes
from batchtrain.spec.run import CANONICAL_GROUPS
from batchtrain.training.gradients import held_groups
from batchtrain.training.rank import TrainTask
from batchtrain.training.shards import ShardReader, StoredShards

__all__ = ["LaneShards", "RayShards", "lane_shards", "rank_shards", "shard_dataset", "train_shards"]

SHARD = "shard"
COLUMNS = NUMERIC, CODES, TARGET, ROW_ID = "numeric", "codes", "target", "row_id"
WEIGHT = "weight"

READ_CPUS = 0
"""Reading needs a core, but to ask Ray for one would never be granted where the ranks hold all."""

AHEAD = 2
"""Shards that are read before they are asked for."""


def shard_dataset(prepared: PreparedData, split: str, shards: Sequence[int]) -> Dataset:
    """The shards of a split in the order asked: one row each, its number and its columns."""
    hush_ray_data()
    items = [{SHARD: int(shard)} for shard in shards]
    # One block for each, so that they are read side by side and none waits for a later one.
    dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
    read = dataset.map_batches(
        partial(_read_shards, prepared, split),
        batch_size=1,
        num_cpus=READ_CPUS,
        # Tasks that ask for no core would all start at once, each in a process of its own.
        compute=ray.data.TaskPoolStrategy(size=AHEAD),
    )
    read.context.execution_options.preserve_order = True
    return read


def lane_shards(task: TrainTask, world_size: int) -> tuple[dict[str, Any], ray.train.DataConfig]:
    """The `datasets` and the `dataset_config` of a trainer: each rank gets what it holds.

    A split of one shard has nothing to divide, and each rank reads it as it is.
    """
    prepared = task.prepared
    if len(prepared.shard_names("train")) == 1:
        return {}, ray.train.DataConfig()
    shards = [train_shards(task, world_size, rank) for rank in range(world_size)]

    def all_rows() -> Dataset:
        return shard_dataset(prepared, "train", range(len(prepared.shard_names("train"))))

    return {"train": all_rows}, LaneShards(prepared, shards)


def train_shards(task: TrainTask, world_size: int, rank: int) -> list[int]:
    """The shards of the training split that a rank needs: those of its lanes, in their order."""
    prepared = task.prepared
    if task.spec.determinism == "canonical":
        parts, num_parts = held_groups(world_size, rank), CANONICAL_GROUPS
    else:
        parts, num_parts = range(rank, rank + 1), world_size
    lanes = [rank_lanes(prepared.lanes, num_parts, part) for part in parts]
    first = min((held.start for held in lanes), default=0)
    end = max((held.stop for held in lanes), default=0)
    return list(range(first * prepared.shards_per_lane, end * prepared.shards_per_lane))


def rank_shards(task: TrainTask, world_size: int, rank: int) -> ShardReader:
    """What reads the shards of one rank."""
    if len(task.prepared.shard_names("train")) == 1:
        return StoredShards(task.prepared)
    return RayShards(task.prepared, {"train": train_shards(task, world_size, rank)})


class LaneShards(ray.train.DataConfig):
    """Gives each rank an iterator over the shards of its lanes, in their order."""

    def __init__(self, prepared: PreparedData, shards_of_rank: Sequence[Sequence[int]]) -> None:
        """Plan for the ranks.

        Args:
            prepared: The rows.
            shards_of_rank: The shards of the training split that each rank needs.
        """
        # Not split by Ray, so that no rank waits for another before it may read.
        super().__init__(datasets_to_split=[])
        self._prepared = prepared
        self._shards_of_rank = [list(shards) for shards in shards_of_rank]

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """See `ray.train.DataConfig.configure`."""
        return [
            {
                name: shard_dataset(self._prepared, name, self._shards_of_rank[rank]).iterator()
                for name in datasets
            }
            for rank in range(world_size)
        ]


class RayShards:
    """Reads shards through Ray Data; see `batchtrain.training.shards.ShardReader`."""

    def __init__(self, prepared: PreparedData, own: Mapping[str, Sequence[int]]) -> None:
        """Read nothing yet.

        Args:
            prepared: The rows.
            own: Split to the shards that Ray Train hands to this rank under that name.
        """
        self._prepared = prepared
        self._own = {split: list(shards) for split, shards in own.items()}

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        """Yield the shards in the order asked."""
        hush_ray_data()
        wanted = [int(shard) for shard in shards]
        if not wanted:
            return
        if self._own.get(split) == wanted:
            iterator = ray.train.get_dataset_shard(split)
        else:
            iterator = shard_dataset(self._prepared, split, wanted).iterator()
        expected = iter(wanted)
        for batch in iterator.iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=AHEAD
        ):
            yield _rows(self._prepared, batch, next(expected, None))


def _read_shards(prepared: PreparedData, split: str, batch: Mapping[str, Any]) -> pa.Table:
    """Read one shard, verified, into one row of bytes."""
    shard = int(batch[SHARD][0])
    rows = prepared.shard(split, shard)
    # Large, since a wide shard may have more than the 2 GiB of a plain binary column.
    columns = {
        name: pa.array([getattr(rows, name).tobytes()], pa.large_binary())
        for name in _columns(prepared)
    }
    return pa.table({SHARD: [shard], **columns})


def _rows(prepared: PreparedData, batch: pa.Table, expected: int | None) -> SplitRows:
    """The rows of one shard, as views of what came."""
    found = batch[SHARD][0].as_py()
    if found != expected:
        # A fault of ours or of Ray's; rows in another order would train on, unseen.
        raise TrainingError(
            f"expected shard {expected} of {prepared.artifact.url} next, found {found}. "
            "Report this: the order of rows is not to depend on Ray Data"
        )
    types = {NUMERIC: np.float32, CODES: np.int64, ROW_ID: np.int64, WEIGHT: np.float32}
    types[TARGET] = np.float64 if prepared.task == "regression" else np.int64
    arrays = {
        name: np.frombuffer(batch[name].chunk(0)[0].as_buffer(), dtype=types[name])
        for name in _columns(prepared)
    }
    size = len(arrays[ROW_ID])
    arrays[NUMERIC] = arrays[NUMERIC].reshape(size, prepared.num_numeric)
    arrays[CODES] = arrays[CODES].reshape(size, len(prepared.cardinalities))
    return SplitRows(**arrays)


def _columns(prepared: PreparedData) -> tuple[str, ...]:
    return (*COLUMNS, WEIGHT) if prepared.has_weights else COLUMNS
