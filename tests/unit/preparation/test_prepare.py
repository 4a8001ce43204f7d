"""Prepared data: every row once, split before anything is fitted, the same from any format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import ArtifactDamagedError, DataError, SpecError, StorageError
from batchtrain.preparation import prepare as prepare_module
from batchtrain.preparation import shards
from batchtrain.preparation.shards import shard_bounds
from batchtrain.preparation.stage import open_input, prepare, survey_input
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS
from batchtrain.storage import FolderStorage
from tests.support.builders import (
    WatchedStorage,
    all_files,
    mixed_table,
    prepared_for,
    quantity_table,
    spec_for,
    storage_of,
    write_table,
)

DROP_DOSE = {"columns": {"dose": {"kind": "numeric", "missing": "drop"}}}


def hashes(prepared: PreparedData) -> dict[str, str]:
    """File to sha256, without the profile: it names the input's files."""
    files = prepared.artifact.manifest.files
    return {name: entry.sha256 for name, entry in files.items() if name != "profile.json"}


def row_ids(prepared: PreparedData) -> list[int]:
    return sorted(int(row) for split in SPLITS for row in prepared.load(split).row_id)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


@pytest.mark.parametrize("table", [mixed_table(90), quantity_table(90)], ids=["classes", "numbers"])
def test_csv_and_parquet_of_the_same_rows_give_the_same_bytes(
    tmp_path: Path, table: pa.Table
) -> None:
    target = table.column_names[-1]
    cut = folder(tmp_path, "cut")
    pieces = folder(cut, "rows")
    for start in range(0, 90, 25):
        write_table(pieces / f"{start:02d}.parquet", table.slice(start, 25))
    made = [
        prepared_for(spec_for(folder(tmp_path, "csv"), table, target=target, file="rows.csv")),
        prepared_for(spec_for(folder(tmp_path, "pq"), table, target=target)),
        prepared_for(spec_for(cut, target=target, file="rows")),
    ]
    assert hashes(made[0]) == hashes(made[1]) == hashes(made[2])
    assert made[0].content == made[1].content == made[2].content
    profiles = [{**each.profile(), "files": [], "data": {}} for each in made]
    assert profiles[0] == profiles[1] == profiles[2]


@pytest.mark.parametrize("split", ["random", "stratified", "ordered"])
def test_d01_every_row_is_in_one_split_or_counted_as_dropped(tmp_path: Path, split: str) -> None:
    table = mixed_table(100)
    label = pc.if_else(pa.array(np.arange(100) % 10 == 9), None, table["label"])
    table = with_column(table, "label", label.combine_chunks())
    prepared = prepared_for(spec_for(tmp_path, table, data={**DROP_DOSE, "split": {"kind": split}}))
    missing = pc.or_(pc.is_null(table["dose"]), pc.is_null(table["label"])).to_numpy()
    assert row_ids(prepared) == np.flatnonzero(~missing).tolist()
    dropped = [each for each in prepared.profile()["changes"] if each["what"] == "dropped"]
    assert sum(each["count"] for each in dropped) == missing.sum()
    assert {each["detail"].split("'")[1] for each in dropped} == {"label", "dose"}
    rows = sum(prepared.num_rows(split) for split in SPLITS)
    assert prepared.content["input_rows"] == 100 == rows + missing.sum()
    for place in SPLITS:
        loaded = prepared.load(place)
        assert len(loaded) == prepared.num_rows(place)
        # In the order of the input, and each with the target of its own row.
        assert np.array_equal(loaded.row_id, np.sort(loaded.row_id))
        names = [
            prepared.preprocessing_state()["target"]["classes"][code] for code in loaded.target
        ]
        assert names == table["label"].take(loaded.row_id).to_pylist()


def test_the_features_of_a_row_are_those_of_its_raw_values(tmp_path: Path) -> None:
    table = quantity_table(60)
    prepared = prepared_for(spec_for(tmp_path, table, target="y"))
    columns = prepared.preprocessing_state()["columns"]
    raw = np.stack([table[column["name"]].to_numpy() for column in columns], axis=1)
    offset = np.array([column["offset"] for column in columns])
    divisor = np.array([column["divisor"] for column in columns])
    train = prepared.load("train")
    assert np.allclose(raw[train.row_id].mean(axis=0), offset, rtol=1e-12)
    assert np.allclose(raw[train.row_id].std(axis=0), divisor, rtol=1e-12)
    for split in SPLITS:
        rows = prepared.load(split)
        scaled = ((raw[rows.row_id] - offset) / divisor).astype(np.float32)
        assert np.array_equal(rows.numeric, scaled)
        assert np.array_equal(rows.target, table["y"].to_numpy()[rows.row_id])


def wild(table: pa.Table, rows: np.ndarray, *, targets: bool) -> pa.Table:
    """Other values in some rows: within the kinds of the columns, but far from what was there."""
    chosen = pa.array(np.isin(np.arange(table.num_rows), rows))
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name == table.column_names[-1] and not targets:
            columns[name] = column
            continue
        if pa.types.is_string(column.type):
            other = pa.array([f"never-{place}" for place in range(table.num_rows)])
        elif pa.types.is_boolean(column.type):
            other = pc.invert(column)
        else:
            numbers = np.where(np.arange(table.num_rows) % 3 == 0, -1e30, 1e30)
            other = (
                pa.array(numbers)
                if pa.types.is_floating(column.type)
                else pa.array(np.full(table.num_rows, 2**50))
            )
        columns[name] = pc.if_else(chosen, other, column)
    return pa.table(columns)


@pytest.mark.parametrize("split", ["random", "stratified", "ordered"])
@pytest.mark.parametrize("others", [("test",), ("valid", "test")])
def test_d23_what_stands_in_test_rows_does_not_change_the_fitted_state(
    tmp_path: Path, split: str, others: tuple[str, ...]
) -> None:
    table = mixed_table(90)
    data = {
        "split": {"kind": split},
        "columns": {
            "age": {"kind": "numeric", "missing": "median", "scale": "robust"},
            "dose": {"kind": "numeric", "missing": "most_frequent", "scale": "minmax"},
            "pressure": {"kind": "categorical", "missing": "most_frequent"},
        },
    }
    before = prepared_for(spec_for(folder(tmp_path, "before"), table, data=data))
    rows = np.concatenate([before.load(name).row_id for name in others])
    changed = wild(table, rows, targets=False)
    after = prepared_for(spec_for(folder(tmp_path, "after"), changed, data=data))
    files = (before.artifact.manifest.files, after.artifact.manifest.files)
    assert files[0]["preprocess.json"].sha256 == files[1]["preprocess.json"].sha256
    assert files[0]["train/00000.parquet"].sha256 == files[1]["train/00000.parquet"].sha256
    assert files[0]["test/00000.parquet"].sha256 != files[1]["test/00000.parquet"].sha256
    for name in SPLITS:
        assert np.array_equal(before.load(name).row_id, after.load(name).row_id)


@pytest.mark.parametrize("split", ["random", "ordered"])
def test_p6_targets_of_test_rows_do_not_change_it_either_where_the_split_ignores_them(
    tmp_path: Path, split: str
) -> None:
    table = quantity_table(90)
    data = {"split": {"kind": split}}
    before = prepared_for(spec_for(folder(tmp_path, "a"), table, target="y", data=data))
    rows = np.concatenate([before.load(name).row_id for name in ("valid", "test")])
    changed = wild(table, rows, targets=True)
    after = prepared_for(spec_for(folder(tmp_path, "b"), changed, target="y", data=data))
    for name in ("preprocess.json", "train/00000.parquet"):
        first, second = (each.artifact.manifest.files[name] for each in (before, after))
        assert first.sha256 == second.sha256


def fingerprint(parent: Path, table: pa.Table, **changes: Any) -> str:
    loaded = spec_for(folder(parent, f"{len(list(parent.iterdir()))}"), table, **changes)
    return prepared_for(loaded).artifact.manifest.fingerprint


def test_the_fingerprint_follows_the_rows_the_data_section_and_the_seed(tmp_path: Path) -> None:
    table = mixed_table(60)
    base = fingerprint(tmp_path, table)
    same: dict[str, Mapping[str, Any]] = {
        "elsewhere": {},
        "storage": {"storage": "./other"},
        "resources": {"resources": {"cpus_per_worker": 2}},
        "tracking": {"tracking": {"tensorboard": False, "log_every_steps": 3, "monitor": ["test"]}},
        "name": {"name": "another"},
        "model": {"model": {"kind": "linear"}},
        "training": {"training": {"epochs": 1}},
    }
    for name, changes in same.items():
        assert fingerprint(tmp_path, table, **changes) == base, name
    other: dict[str, Mapping[str, Any]] = {
        "seed": {"seed": 43},
        "split": {"data": {"split": {"kind": "random"}}},
        "split-seed": {"data": {"split": {"kind": "stratified", "seed": 1}}},
        "exclude": {"data": {"exclude": ["age"]}},
        "drop": {"data": DROP_DOSE},
    }
    found = {name: fingerprint(tmp_path, table, **changes) for name, changes in other.items()}
    found["rows"] = fingerprint(tmp_path, mixed_table(60, seed=1))
    found["order"] = fingerprint(tmp_path, table.take(np.arange(60)[::-1]))
    assert len({base, *found.values()}) == len(found) + 1


@pytest.mark.parametrize(
    ("split", "shared"),
    [
        ({"kind": "ordered"}, True),
        ({"kind": "stratified", "seed": 7}, True),
        ({"kind": "random", "seed": 7}, True),
        ({"kind": "stratified"}, False),
        ({"kind": "random"}, False),
    ],
)
def test_runs_of_other_seeds_share_the_rows_where_the_split_is_not_drawn_with_it(
    tmp_path: Path, split: dict[str, Any], shared: bool
) -> None:
    table = mixed_table(60)
    one, two = (fingerprint(tmp_path, table, data={"split": split}, seed=seed) for seed in (1, 2))
    assert (one == two) is shared


def test_a_changed_file_is_another_artifact_and_a_touched_one_is_not(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), file="rows.csv")
    first = prepared_for(loaded)
    path = tmp_path / "rows.csv"
    os.utime(path, ns=(10**18, 10**18))
    assert prepare(loaded, storage_of(loaded), Progress())[1] == "reused"
    # One digit, the same length, the same time.
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("4"))
    path.write_text(text.replace(line, "5" + line[1:]))
    os.utime(path, ns=(10**18, 10**18 + 1))
    second, status = prepare(loaded, storage_of(loaded), Progress())
    assert status == "built"
    assert second.artifact.key != first.artifact.key
    assert first.artifact.verify()


def test_d20_a_file_that_changes_between_two_passes_is_an_error_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), file="rows.csv")
    path = tmp_path / "rows.csv"
    fit = prepare_module.fit

    def fit_and_append(*arguments: Any) -> Any:
        result = fit(*arguments)
        with path.open("a") as file:
            file.write("33,1.5,LOW,true,a\n")
        return result

    monkeypatch.setattr(prepare_module, "fit", fit_and_append)
    with pytest.raises(DataError, match="changed"):
        prepared_for(loaded)
    assert storage_of(loaded).list("_prepared") == []


@pytest.mark.parametrize("call", range(1, 7))
def test_d25_a_preparation_cut_off_at_any_write_leaves_nothing_and_the_next_is_the_same(
    tmp_path: Path, call: int
) -> None:
    loaded = spec_for(folder(tmp_path, "cut"), mixed_table(60))
    calls = Counter[str]()

    def fail(verb: str, key: str) -> None:
        calls[verb] += key.startswith("_prepared")
        if calls["write"] == call:
            raise StorageError("no space")

    storage = storage_of(loaded)
    with pytest.raises(StorageError):
        prepare(loaded, WatchedStorage(storage, before=fail), Progress())
    assert storage.list("_prepared") == []
    whole = prepared_for(spec_for(folder(tmp_path, "whole"), mixed_table(60)))
    again = prepared_for(loaded)
    assert again.artifact.manifest.digest == whole.artifact.manifest.digest
    assert again.artifact.key == whole.artifact.key


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 16 rows and shards of 10, so that a small table has several."""
    monkeypatch.setattr(prepare_module, "EmbeddedEngine", partial(EmbeddedEngine, 16))
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    return


def test_many_blocks_and_shards_hold_the_same_rows(tmp_path: Path, small_blocks: None) -> None:
    table = mixed_table(90)
    prepared = prepared_for(spec_for(tmp_path, table, data=DROP_DOSE))
    present = np.flatnonzero(~pc.is_null(table["dose"]).to_numpy())
    assert row_ids(prepared) == present.tolist()
    for split in SPLITS:
        names = prepared.content["splits"][split]["shards"]
        sizes = [shard_rows(prepared, name) for name in names]
        assert sum(sizes) == prepared.num_rows(split)
        assert max(sizes) <= 10
        assert max(sizes) - min(sizes) <= 1
        assert np.array_equal(prepared.load(split).row_id, np.sort(prepared.load(split).row_id))
    rows, numbers = prepared.golden_rows()
    assert rows.equals(
        table.take(numbers).select(rows.column_names).cast(rows.schema).combine_chunks()
    )


def shard_rows(prepared: PreparedData, name: str) -> int:
    return pq.ParquetFile(pa.BufferReader(prepared.artifact.read(name))).metadata.num_rows


@pytest.mark.parametrize("lanes", [1, 3, 64])
@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 65, 131_072, 131_073, 10**7 + 1])
def test_shards_are_near_equal_and_a_lane_is_whole_shards(num_rows: int, lanes: int) -> None:
    bounds = shard_bounds(num_rows, lanes)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, num_rows)
    assert len(sizes) % lanes == 0
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() <= shards.SHARD_ROWS
    per_lane = len(sizes) // lanes
    assert [bounds[lane * per_lane] for lane in range(lanes + 1)] == [
        lane * num_rows // lanes for lane in range(lanes + 1)
    ]


@pytest.mark.parametrize("name", ["row_id", "numeric", "codes", "target", "prediction", "a.b"])
def test_d15_any_column_name_works(tmp_path: Path, name: str) -> None:
    table = mixed_table(60)
    feature = table.rename_columns([name, *table.column_names[1:]])
    rows, _numbers = prepared_for(spec_for(folder(tmp_path, "f"), feature)).golden_rows()
    assert name in rows.column_names
    target = table.rename_columns([*table.column_names[:-1], name])
    rows, _numbers = prepared_for(
        spec_for(folder(tmp_path, "t"), target, target=name)
    ).golden_rows()
    assert rows.column_names == table.column_names[:-1]


def test_a_split_without_a_share_is_empty_and_can_be_loaded(tmp_path: Path) -> None:
    split = {"kind": "random", "fractions": {"train": 1.0}}
    prepared = prepared_for(spec_for(tmp_path, mixed_table(40), data={"split": split}))
    assert [prepared.num_rows(name) for name in SPLITS] == [40, 0, 0]
    empty = prepared.load("test")
    assert empty.numeric.shape == (0, prepared.num_numeric)
    assert empty.codes.shape == (0, len(prepared.cardinalities))
    rows, numbers = prepared.golden_rows()
    assert rows.num_rows == len(numbers) == 40


def test_d14_an_infinite_value_names_its_column_and_its_row_of_the_input(tmp_path: Path) -> None:
    table = quantity_table(60, features=2)
    data = {
        "split": {"kind": "ordered"},
        "columns": {"x0": {"kind": "numeric", "missing": "drop"}},
    }
    for row in (5, 55):
        values = table["x0"].to_pylist()
        values[0] = values[1] = None
        values[row] = float("inf")
        changed = with_column(table, "x0", pa.array(values))
        loaded = spec_for(folder(tmp_path, str(row)), changed, target="y", data=data)
        with pytest.raises(DataError, match=rf"'x0'.*row {row}\b"):
            prepared_for(loaded)
        assert storage_of(loaded).list("_prepared") == []


def test_whole_numbers_that_float64_cannot_hold_are_no_regression_target(tmp_path: Path) -> None:
    table = with_column(quantity_table(60), "y", pa.array([2**53 + 1 + row for row in range(60)]))
    for task in ("auto", "regression"):
        loaded = spec_for(folder(tmp_path, task), table, target="y", data={"task": task})
        with pytest.raises(DataError, match="9007199254740993"):
            prepared_for(loaded)


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_whole_numbers_that_float64_cannot_hold_are_categories(tmp_path: Path, file: str) -> None:
    wide = pa.array([2**60 + row % 7 for row in range(90)])
    loaded = spec_for(tmp_path, mixed_table(90).append_column("account", wide), file=file)
    state = prepared_for(loaded).preprocessing_state()
    columns = {column["name"]: column for column in state["columns"]}
    assert columns["account"]["kind"] == "categorical"
    assert str(2**60 + 1) in columns["account"]["categories"]


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_whole_numbers_that_float64_cannot_hold_are_refused_as_numbers(
    tmp_path: Path, file: str
) -> None:
    wide = pa.array([None, *(2**60 + row for row in range(89))])
    columns = {"account": {"kind": "numeric"}}
    table = mixed_table(90).append_column("account", wide)
    loaded = spec_for(tmp_path, table, file=file, data={"columns": columns})
    with pytest.raises(SpecError, match=r"account.*beyond 2\*\*53.*Declare it categorical"):
        survey_input(loaded, open_input(loaded))


def test_d21_a_class_that_no_training_row_has_is_refused_with_the_way_out(tmp_path: Path) -> None:
    table = with_column(mixed_table(60), "label", pa.array(["a"] * 30 + ["b"] * 15 + ["c"] * 15))
    loaded = spec_for(tmp_path, table, data={"split": {"kind": "ordered"}})
    with pytest.raises(DataError, match=r"'c' in row 45.*stratified"):
        prepared_for(loaded)


def test_d21_one_class_left_after_dropping_is_refused_before_anything_is_published(
    tmp_path: Path,
) -> None:
    dose = pa.array([float(row) for row in range(50)] + [None] * 10)
    table = with_column(mixed_table(60), "label", pa.array(["a"] * 50 + ["b"] * 10))
    loaded = spec_for(tmp_path, with_column(table, "dose", dose), data=DROP_DOSE)
    with pytest.raises((DataError, SpecError), match="class"):
        prepared_for(loaded)
    assert storage_of(loaded).list("_prepared") == []


def test_advice_for_a_table_whose_rows_are_all_dropped_can_be_followed(tmp_path: Path) -> None:
    dose = pa.array([1.0] + [None] * 59)
    label = pa.array([None] + ["a", "b"] * 29 + ["a"])
    table = with_column(with_column(mixed_table(60), "dose", dose), "label", label)
    loaded = spec_for(tmp_path, table, data=DROP_DOSE)
    with pytest.raises(DataError, match="train split") as caught:
        prepared_for(loaded)
    assert "fractions.train: 0" not in str(caught.value)


def test_d26_a_changed_shard_is_found_by_whoever_loads_it(tmp_path: Path) -> None:
    prepared = prepared_for(spec_for(tmp_path, mixed_table(60)))
    storage = prepared.artifact.storage
    assert isinstance(storage, FolderStorage)
    for name, entry in prepared.artifact.manifest.files.items():
        path = storage.root / prepared.artifact.key / entry.path
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactDamagedError, match=name):
            prepared.artifact.verify()
        path.write_bytes(whole)
    assert prepared.artifact.verify() == len(prepared.artifact.manifest.files)


def test_a_lost_or_damaged_hash_cache_costs_nothing_but_time(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    os.utime(tmp_path / "rows.parquet", ns=(10**18, 10**18))
    first = prepared_for(loaded)
    cache = storage_of(loaded).root / "_cache" / "content-hashes.json"
    assert list(json.loads(cache.read_bytes()).values()) == [
        first.artifact.manifest.inputs["files"][0][1]
    ]
    for damaged in (b"", b"[]", b"{", b"null"):
        cache.write_bytes(damaged)
        assert prepared_for(loaded).artifact.key == first.artifact.key
    cache.unlink()
    assert prepared_for(loaded).artifact.key == first.artifact.key


def test_nothing_is_left_beside_the_artifact_and_the_cache(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    prepared = prepared_for(loaded)
    named = {
        f"{prepared.artifact.key}/{entry.path}"
        for entry in prepared.artifact.manifest.files.values()
    }
    found = set(all_files(storage_of(loaded).root))
    assert found - named <= {f"{prepared.artifact.key}/manifest.json", "_cache/content-hashes.json"}
