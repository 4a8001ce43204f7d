"""The rows of one rank, in memory or streaming: those of its lanes and blocks, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import ArtifactDamagedError
from batchtrain.models.inputs import Batch
from batchtrain.preparation import prepare as prepare_module
from batchtrain.preparation import shards as writing
from batchtrain.spec.run import Determinism, ResourcesSpec
from batchtrain.training import loading, machine
from batchtrain.training.loading import RowLoader
from batchtrain.training.machine import choose_machine
from batchtrain.training.memory import resident_bytes
from batchtrain.training.plan import TrainingPlan, row_order
from batchtrain.training.rows import Columns, ResidentRows, ResidentSplit, held_blocks, held_rows
from batchtrain.training.shards import StoredShards
from batchtrain.training.streaming import StreamedRows
from batchtrain.training.worker import RankWorker, ResidentWorker
from tests.support.builders import (
    mixed_table,
    prepared_for,
    quantity_table,
    run,
    spec_for,
    stop_training,
)
from tests.unit.training.test_streaming import OneOf, assert_same_batch, assert_same_shares

CPU = torch.device("cpu")
SPLITS = ("train", "valid", "test")
SIZES = [1, 3, 7]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of at most five rows, and windows of two of them."""
    monkeypatch.setattr(writing, "SHARD_ROWS", 5)
    monkeypatch.setattr(prepare_module, "WINDOW_ROWS", 11)


@dataclass
class Recorded:
    """Reads from storage and remembers what."""

    prepared: PreparedData
    asked: dict[str, list[int]] = field(default_factory=dict)

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        for number in shards:
            self.asked.setdefault(split, []).append(number)
            yield self.prepared.shard(split, number)


def prepared_in(folder: Path, num_rows: int = 110, *, lanes: int = 3) -> PreparedData:
    table = quantity_table(num_rows)
    return prepared_for(spec_for(folder, table, target="y", data={"lanes": lanes}))


def plan_of(prepared: PreparedData) -> TrainingPlan:
    return TrainingPlan(row_order(prepared, seed=3), batch_rows=8, epochs=2)


def rank_worker(
    prepared: PreparedData,
    place: OneOf,
    *,
    rows: Any,
    determinism: Determinism = "order",
    gather_rows: int = 16,
    measured: Sequence[str] = SPLITS,
    reader: Any = None,
) -> RankWorker:
    choices = replace(
        choose_machine(ResourcesSpec(device="cpu")), rows=rows, gather_rows=gather_rows
    )
    loader = RowLoader(reader or StoredShards(prepared), prepared, CPU)
    return loader.worker(plan_of(prepared), choices, measured, ranks=place, determinism=determinism)


def whole_worker(
    prepared: PreparedData, place: OneOf, *, determinism: Determinism, gather_rows: int = 16
) -> ResidentWorker:
    """A rank that has all splits in memory."""
    return ResidentWorker(
        plan_of(prepared),
        {split: prepared.load(split) for split in SPLITS},
        CPU,
        ranks=place,
        gather_rows=gather_rows,
        determinism=determinism,
    )


@pytest.mark.parametrize("lanes", [1, 5])
@pytest.mark.parametrize("determinism", ["order", "canonical"])
@pytest.mark.parametrize("rows", ["resident", "streaming"])
def test_p2_a_rank_that_holds_its_own_rows_serves_what_one_with_all_rows_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    determinism: Determinism,
    rows: str,
) -> None:
    monkeypatch.setattr(loading, "KEPT_BYTES", 0)
    prepared = prepared_in(tmp_path, lanes=lanes)
    for place in (OneOf(rank, size) for size in SIZES for rank in range(size)):
        worker = rank_worker(prepared, place, rows=rows, determinism=determinism)
        whole = whole_worker(prepared, place, determinism=determinism)
        for epoch, first_step in [(0, 0), (1, 3), (1, 0)]:
            expected = list(whole.shares(epoch, first_step))
            assert_same_shares(list(worker.shares(epoch, first_step)), expected)
        worker.close()


@pytest.mark.parametrize("kept_bytes", [0, 1 << 28])
@pytest.mark.parametrize("gather_rows", [7, 16, 1000])
@pytest.mark.parametrize("rows", ["resident", "streaming"])
def test_the_blocks_of_all_ranks_are_every_row_in_the_same_place_whatever_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, gather_rows: int, kept_bytes: int
) -> None:
    monkeypatch.setattr(loading, "KEPT_BYTES", kept_bytes)
    prepared = prepared_in(tmp_path)
    for split in SPLITS:
        whole = ResidentSplit.of(prepared.load(split), CPU)
        for size in SIZES:
            found: dict[int, Batch] = {}
            for rank in range(size):
                worker = rank_worker(
                    prepared, OneOf(rank, size), rows=rows, gather_rows=gather_rows
                )
                # Twice, since each epoch looks at them.
                first = dict(worker.split_blocks(split))
                for number, batch in worker.split_blocks(split):
                    assert_same_batch(batch, first[number])
                    assert number not in found
                    found[number] = batch
            assert sorted(found) == list(range(-(-len(whole) // gather_rows)))
            for number, batch in found.items():
                edges = number * gather_rows, min(len(whole), (number + 1) * gather_rows)
                assert_same_batch(batch, whole.block(*edges))
                assert batch.numeric_BF.data_ptr() % 64 == 0


def test_a_resident_rank_reads_and_holds_the_shards_of_its_lanes_alone(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, lanes=8)
    order = row_order(prepared, seed=3)
    bounds = prepared.shard_bounds("train")
    for size in (1, 2, 4, 8, 16):
        held = 0
        for rank in range(size):
            place = OneOf(rank, size)
            reader = Recorded(prepared)
            worker = rank_worker(prepared, place, rows="resident", measured=[], reader=reader)
            first, end = held_rows(order, range(rank, rank + 1), size)
            train: Any = worker._train
            assert isinstance(train, ResidentRows)
            assert (train.first_row, len(train.split)) == (first, end - first)
            held += len(train.split)
            assert set(reader.asked) == {"train"}
            read = reader.asked["train"]
            # The lanes are whole shards, so that nothing is read that is not held.
            assert sum(np.diff(bounds)[read]) == end - first
        assert held == order.num_rows * max(1, size // 8)


def test_a_rank_reads_the_shards_of_its_blocks_of_a_measured_split_alone(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, 600)
    num_rows = prepared.num_rows("valid")
    bounds = prepared.shard_bounds("valid")
    for rank in range(4):
        reader = Recorded(prepared)
        rank_worker(
            prepared,
            OneOf(rank, 4),
            rows="resident",
            gather_rows=5,
            measured=["valid"],
            reader=reader,
        )
        _numbers, edges = held_blocks(num_rows, 5, size=4, rank=rank)
        read = reader.asked["valid"]
        assert bounds[read[0]] <= edges[0] < bounds[read[0] + 1]
        assert bounds[read[-1]] < edges[-1] <= bounds[read[-1] + 1]


def test_a_large_measured_split_is_read_anew_each_time_where_rows_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path)
    shards = list(range(len(prepared.shard_names("valid"))))
    size = prepared.num_rows("valid") * Columns.of(prepared).row_bytes
    for kept_bytes, times in [(size, 1), (size - 1, 2)]:
        monkeypatch.setattr(loading, "KEPT_BYTES", kept_bytes)
        reader = Recorded(prepared)
        worker = rank_worker(prepared, OneOf(0, 1), rows="streaming", reader=reader)
        assert isinstance(worker._train, StreamedRows)
        for _ in range(2):
            list(worker.split_blocks("valid"))
        assert reader.asked["valid"] == shards * times


def test_a_rank_whose_lane_has_no_row_takes_part_with_one_of_weight_0(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, 6, lanes=16)
    for rows in ("resident", "streaming"):
        without = 0
        for rank in range(8):
            place = OneOf(rank, 8)
            worker = rank_worker(prepared, place, rows=rows, measured=[])
            whole = whole_worker(prepared, place, determinism="order")
            shares = list(worker.shares(0, 0))
            assert_same_shares(shares, list(whole.shares(0, 0)))
            without += all(each.batches[0].weight_B is not None for each in shares)
        assert without == 8 - prepared.num_rows("train")


@pytest.mark.parametrize(
    ("determinism", "workers"), [("order", 1), ("order", 3), ("order", 11), ("canonical", 3)]
)
def test_what_the_ranks_will_need_is_known_before_they_start(
    tmp_path: Path, determinism: Determinism, workers: int
) -> None:
    loaded = spec_for(
        tmp_path,
        quantity_table(200),
        target="y",
        data={"lanes": 5},
        determinism=determinism,
        tracking={"tensorboard": False, "monitor": ["valid", "test"]},
    )
    prepared = prepared_for(loaded)
    expected = resident_bytes(loaded.spec, prepared, workers, 16)
    for rank in range(workers):
        worker = rank_worker(
            prepared,
            OneOf(rank, workers),
            rows="resident",
            determinism=determinism,
            measured=["valid", "test"],
        )
        train: Any = worker._train
        held = [train.split, *(blocks.split for blocks in worker._measured.values())]  # type: ignore[attr-defined]
        tensors = [
            tensor
            for split in held
            for tensor in (split.numeric_NF, split.codes_NC, split.target_N)
        ]
        assert sum(tensor.nbytes for tensor in tensors) == expected[rank]


# ----------------------------------------------------------------------------------------------
# Whole trainings

WHOLE = {
    "data": {"lanes": 3},
    "training": {"epochs": 3, "batch_size": 8},
    "tracking": {"tensorboard": False, "monitor": ["train", "valid", "test"]},
}


def compared(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    names = ("best.safetensors", "last.safetensors", "history.jsonl", "inexact.json")
    return {
        "state": trained.content["state_sha256"],
        **{name: files[name].sha256 for name in names},
    }


def trained_by(folder: Path, *, stops: Sequence[tuple[int, str]] = (), **sections: Any) -> Any:
    """Train, stopped after so many steps each time; each attempt takes its rows in its own way."""
    folder.mkdir()
    table = mixed_table(160)
    for steps, rows in stops:
        loaded = spec_for(folder, table, **{**WHOLE, **sections, "resources": {"rows": rows}})
        stop_training(loaded, steps)
    loaded = spec_for(folder, table, **{**WHOLE, **sections})
    trained = run(loaded, last="train").trained
    assert trained is not None
    return trained


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_p1_p2_a_run_ends_with_the_same_bytes_whether_its_rows_are_in_memory_or_streaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, determinism: Determinism
) -> None:
    monkeypatch.setattr(machine, "GATHER_ROWS", 16)
    monkeypatch.setattr(loading, "KEPT_BYTES", 0)
    found = {
        rows: trained_by(tmp_path / rows, determinism=determinism, resources={"rows": rows})
        for rows in ("resident", "streaming", "auto")
    }
    assert [each.machine()["rows"] for each in found.values()] == [
        "resident",
        "streaming",
        "resident",
    ]
    expected = compared(found["resident"])
    assert compared(found["streaming"]) == compared(found["auto"]) == expected
    # A resume in the midst of an epoch may take its rows in another way.
    stops = [(5, "resident"), (17, "streaming"), (2, "streaming")]
    for last in ("resident", "streaming"):
        trained = trained_by(
            tmp_path / f"stopped {last}",
            stops=stops,
            determinism=determinism,
            resources={"rows": last},
        )
        assert compared(trained) == expected
        assert trained.inexact() == []
        assert trained.machine()["rows"] == last


def test_p1_a_choice_that_was_made_at_the_first_start_is_made_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.training.memory.available_bytes", lambda _device: 1)
    loaded = spec_for(tmp_path, mixed_table(160), **WHOLE)
    stop_training(loaded, 4)
    monkeypatch.setattr("batchtrain.training.memory.available_bytes", lambda _device: 1 << 40)
    trained = run(loaded, last="train").trained
    assert trained is not None
    assert trained.machine()["rows"] == "streaming"
    assert trained.inexact() == []


def test_a_shard_that_is_damaged_in_the_midst_of_a_run_ends_it_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(160), **{**WHOLE, "resources": {"rows": "streaming"}})
    prepared = prepared_for(loaded)
    name = prepared.shard_names("train")[-1]
    path = Path(prepared.artifact.file_url(name).removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactDamagedError, match=name):
        run(loaded, last="train")
