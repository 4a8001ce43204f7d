"""The rows of each batch are those of the order, when Ray Data carries the shards."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.session import RaySession
from batchtrain.preparation import shards
from batchtrain.row_order import RowOrder
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.loading import RowLoader
from batchtrain.training.machine import choose_machine, machine_in_force
from batchtrain.training.plan import TrainingPlan, row_order
from batchtrain.training.ray_data import RayShards
from tests.support.builders import prepared_for, spec_for
from tests.support.on_ray import train_on_ray
from tests.support.ranks import OneOf, compared, train_ranks

pytestmark = pytest.mark.ray

EPOCH = 3
BATCH = 7
SMALL_SHARD = 10


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", SMALL_SHARD)


def numbered_spec(folder: Path, num_rows: int, lanes: int, **sections: Any) -> LoadedSpec:
    """Training rows alone, whose target is their place in the split."""
    folder.mkdir()
    places = np.arange(num_rows, dtype=np.float64)
    table = pa.table(
        {"x": np.sin(places), "kind": [f"k{place % 3}" for place in range(num_rows)], "y": places}
    )
    split = {"kind": "ordered", "fractions": {"train": 1, "valid": 0, "test": 0}}
    sections = {"training": {"epochs": 2, "batch_size": BATCH}, **sections}
    return spec_for(folder, table, target="y", data={"split": split, "lanes": lanes}, **sections)


@ray.remote(num_cpus=0.25)
def serve(prepared: PreparedData, size: int, rows: str) -> list[list[list[int]]]:
    """The places of the rows that each rank serves, batch by batch, read through Ray Data.

    One process serves for all of them: starting it is what takes long.
    """
    return [served_by(prepared, size, rank, rows) for rank in range(size)]


def served_by(prepared: PreparedData, size: int, rank: int, rows: str) -> list[list[int]]:
    machine = choose_machine(ResourcesSpec.model_validate({"rows": rows}), workers=size)
    with machine_in_force(machine) as device:
        loader = RowLoader(RayShards(prepared, {}), prepared, device)
        order = row_order(prepared, seed=42)
        worker = loader.worker(
            TrainingPlan(order, BATCH, EPOCH + 1),
            machine,
            [],
            ranks=OneOf(rank, size),
            determinism="order",
        )
        served = []
        for share in worker.shares(EPOCH, 0):
            (batch,) = share.batches
            weightless = batch.weight_B is not None
            served.append([] if weightless else [int(place) for place in batch.target_B.tolist()])
        worker.close()
        return served


@pytest.mark.parametrize(
    ("num_rows", "lanes", "size", "rows"),
    [
        *((num_rows, 4, 3, "resident") for num_rows in (101, 102, 103, 104)),
        (103, 4, 2, "streaming"),
        (103, 4, 4, "streaming"),
        (102, 1, 4, "resident"),
        (5, 4, 4, "resident"),
    ],
)
def test_d01_each_batch_has_the_rows_of_the_order_whatever_the_workers(
    num_rows: int, lanes: int, size: int, rows: str, tmp_path: Path, ray_session: RaySession
) -> None:
    prepared = prepared_for(numbered_spec(tmp_path / "run", num_rows, lanes))
    assert prepared.lanes == lanes
    of_ranks: list[list[list[int]]] = ray.get(serve.remote(prepared, size, rows))
    order: RowOrder = row_order(prepared, seed=42)
    expected = order.epoch(EPOCH)
    found = [sorted(chain.from_iterable(parts)) for parts in zip(*of_ranks, strict=True)]
    batches = [
        sorted(expected[start : start + BATCH].tolist()) for start in range(0, num_rows, BATCH)
    ]
    assert found == batches


@pytest.mark.long
@pytest.mark.parametrize("rows", ["resident", "streaming"])
def test_shards_that_ray_hands_out_train_the_bytes_of_shards_read_directly(
    rows: str, tmp_path: Path, ray_session: RaySession
) -> None:
    sections = {"resources": {"rows": rows}, "model": {"kind": "mlp", "hidden": [4]}}
    direct = train_ranks(numbered_spec(tmp_path / "direct", 103, 4, **sections), 3)
    found = train_on_ray(numbered_spec(tmp_path / "ray", 103, 4, **sections), ray_session, 3)
    assert compared(found) == compared(direct)
    assert found.machine()["rows"] == rows
