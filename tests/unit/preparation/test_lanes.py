"""Lanes of the training rows: whole shards, as many as the size of the data or the spec says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import SpecError
from batchtrain.preparation import prepare as prepare_module
from batchtrain.preparation import shards
from batchtrain.preparation.shards import auto_lanes, packed_row_bytes
from batchtrain.row_order import WINDOW_ROWS, RowOrder, lane_bounds
from batchtrain.spec.data import SPLITS
from tests.support.builders import mixed_table, prepared_for, quantity_table, spec_for

TRAIN_ONLY = {"split": {"kind": "ordered", "fractions": {"train": 1.0}}}


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def shard_rows(prepared: PreparedData, split: str) -> list[np.ndarray]:
    """The row numbers of each shard of a split."""
    names = prepared.content["splits"][split]["shards"]
    return [
        pq.read_table(pa.BufferReader(prepared.artifact.read(name)))["row_id"].to_numpy()
        for name in names
    ]


@pytest.mark.parametrize(
    ("num_rows", "row_bytes", "lanes"),
    [(0, 16, 1), (1, 16, 1), (2**26 - 1, 16, 1), (2**26, 16, 64), (10**9, 144, 64)],
)
def test_rows_of_one_gibibyte_and_more_have_64_lanes(
    num_rows: int, row_bytes: int, lanes: int
) -> None:
    assert auto_lanes(num_rows, row_bytes) == lanes


def test_the_bytes_of_a_row_are_those_of_its_packed_columns() -> None:
    rows = SplitRows(
        numeric=np.zeros((7, 3), np.float32),
        codes=np.zeros((7, 2), np.int64),
        target=np.zeros(7),
        row_id=np.zeros(7, np.int64),
    )
    columns = (rows.numeric, rows.codes, rows.target, rows.row_id)
    assert packed_row_bytes(3, 2) * 7 == sum(column.nbytes for column in columns)


def test_a_small_table_has_one_lane_in_all_splits(tmp_path: Path) -> None:
    prepared = prepared_for(spec_for(tmp_path, mixed_table(90)))
    assert (prepared.lanes, prepared.shards_per_lane) == (1, 1)
    assert prepared.window_rows == WINDOW_ROWS
    assert [len(shard_rows(prepared, split)) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("more_bytes", [0, 1])
def test_the_training_rows_alone_decide_on_the_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more_bytes: int
) -> None:
    table = quantity_table(90, features=3)
    size = 63 * packed_row_bytes(3, 0)
    monkeypatch.setattr(shards, "SMALL_BYTES", size + more_bytes)
    prepared = prepared_for(spec_for(tmp_path, table, target="y"))
    assert prepared.num_rows("train") == 63
    assert prepared.lanes == (1 if more_bytes else 64)
    assert [len(shard_rows(prepared, split)) for split in SPLITS] == [prepared.lanes, 1, 1]


@pytest.mark.parametrize("lanes", [1, 2, 7, 8])
@pytest.mark.parametrize("at_most", [5, 1000])
def test_a_lane_is_its_whole_shards_and_only_the_training_split_has_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, at_most: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", at_most)
    prepared = prepared_for(spec_for(tmp_path, mixed_table(90), data={"lanes": lanes}))
    num_rows = prepared.num_rows("train")
    assert prepared.lanes == lanes
    found = shard_rows(prepared, "train")
    assert len(found) == lanes * prepared.shards_per_lane
    assert prepared.shards_per_lane == -(-num_rows // (lanes * at_most))
    train = prepared.load("train").row_id
    edges = lane_bounds(num_rows, lanes)
    for lane in range(lanes):
        of_lane = found[lane * prepared.shards_per_lane : (lane + 1) * prepared.shards_per_lane]
        assert np.array_equal(np.concatenate(of_lane), train[edges[lane] : edges[lane + 1]])
    for split in ("valid", "test"):
        assert len(shard_rows(prepared, split)) == -(-prepared.num_rows(split) // at_most)


def test_the_order_of_prepared_rows_takes_whole_shards_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    monkeypatch.setattr(prepare_module, "WINDOW_ROWS", 9)
    prepared = prepared_for(spec_for(tmp_path, mixed_table(103), data={"lanes": 3, **TRAIN_ONLY}))
    order = RowOrder(
        num_rows=prepared.num_rows("train"),
        lanes=prepared.lanes,
        shards_per_lane=prepared.shards_per_lane,
        window_rows=prepared.window_rows,
        seed=1,
    )
    row_id = prepared.load("train").row_id
    written = shard_rows(prepared, "train")
    assert [len(written), prepared.shards_per_lane, order.window_rows] == [27, 9, 9]
    for lane in range(3):
        taken = row_id[order.lane_rows(0, lane)]
        of_lane = written[lane * 9 : (lane + 1) * 9]
        assert sorted(taken.tolist()) == np.concatenate(of_lane).tolist()
        places = [np.flatnonzero(np.isin(taken, shard)) for shard in of_lane]
        for place in range(len(taken)):
            # Begun and not yet ended: what a reader of this lane must hold at this place.
            held = [len(each) for each in places if each[0] <= place <= each[-1]]
            assert sum(held) <= order.window_rows


@pytest.mark.parametrize("lanes", [64, 200])
@pytest.mark.parametrize("num_rows", [40, 63, 65])
def test_d04_fewer_rows_than_lanes_come_back_with_all_their_columns(
    tmp_path: Path, lanes: int, num_rows: int
) -> None:
    loaded = spec_for(tmp_path, mixed_table(num_rows), data={"lanes": lanes, **TRAIN_ONLY})
    prepared = prepared_for(loaded)
    one = prepared_for(spec_for(folder(tmp_path, "one"), mixed_table(num_rows), data=TRAIN_ONLY))
    assert len(shard_rows(prepared, "train")) == lanes
    expected, found = one.load("train"), prepared.load("train")
    for name in ("numeric", "codes", "target", "row_id"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name in prepared.content["splits"]["train"]["shards"]:
        shard = SplitRows.from_bytes(prepared.artifact.read(name), where=name)
        assert shard.numeric.shape == (len(shard), prepared.num_numeric)
        assert shard.codes.shape == (len(shard), len(prepared.cardinalities))
        assert shard.target.dtype == expected.target.dtype


@pytest.mark.parametrize("num_rows", [21, 22, 23, 24, 25, 26, 27])
def test_d01_every_remainder_of_rows_over_lanes_is_written_once(
    tmp_path: Path, num_rows: int
) -> None:
    prepared = prepared_for(
        spec_for(tmp_path, quantity_table(num_rows), target="y", data={"lanes": 7, **TRAIN_ONLY})
    )
    assert np.concatenate(shard_rows(prepared, "train")).tolist() == list(range(num_rows))


@pytest.mark.parametrize("block_rows", [1, 16, 33])
def test_d24_the_blocks_of_the_input_do_not_show_in_the_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    data = {"lanes": 9, "split": {"kind": "ordered"}}
    whole = prepared_for(spec_for(folder(tmp_path, "whole"), mixed_table(60), data=data))
    monkeypatch.setattr(prepare_module, "EmbeddedEngine", partial(EmbeddedEngine, block_rows))
    cut = prepared_for(spec_for(folder(tmp_path, "cut"), mixed_table(60), data=data))
    for split in SPLITS:
        for name in whole.content["splits"][split]["shards"]:
            files = (whole.artifact.manifest.files, cut.artifact.manifest.files)
            assert files[0][name].sha256 == files[1][name].sha256


def test_other_lanes_are_another_artifact(tmp_path: Path) -> None:
    keys = set()
    for lanes in (2, 3):
        loaded = spec_for(folder(tmp_path, str(lanes)), mixed_table(60), data={"lanes": lanes})
        keys.add(prepared_for(loaded).artifact.key)
    assert len(keys) == 2


@pytest.mark.parametrize("lanes", [0, -1, 4097, 2.5, "8", True])
def test_lanes_that_cannot_be_are_refused_by_their_key(tmp_path: Path, lanes: object) -> None:
    with pytest.raises(SpecError, match=r"data\.lanes"):
        spec_for(tmp_path, mixed_table(60), data={"lanes": lanes})
