"""Prepared data from every source and every split: the same bytes, fitted on training rows only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import UnsafeInputError
from batchtrain.preparation.stage import prepare, refuse_storage_in_input
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS
from batchtrain.storage import FolderStorage
from tests.support.builders import mixed_table, prepared_for, spec_for, storage_of, write_table
from tests.support.engines import ScrambledEngine
from tests.support.sources import (
    write_arrow,
    write_hugging_face,
    write_hugging_face_splits,
    write_json_lines,
)


def hashes(prepared: PreparedData) -> dict[str, str]:
    """File to sha256, without the profile: it names the input's files."""
    files = prepared.artifact.manifest.files
    return {name: entry.sha256 for name, entry in files.items() if name != "profile.json"}


def made(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


SOURCES = {
    "rows.jsonl": lambda folder, table: write_json_lines(folder / "rows.jsonl", table),
    "rows.arrow": lambda folder, table: write_arrow(folder / "rows.arrow", table, stream=True),
    "rows.feather": lambda folder, table: write_arrow(folder / "rows.feather", table),
    "hf:./rows": lambda folder, table: write_hugging_face(
        folder / "rows", [table.slice(0, 31), table.slice(31)]
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_bytes_of_a_csv_file_on_both_engines(
    tmp_path: Path, source: str
) -> None:
    table = mixed_table(90)
    folder = made(tmp_path, "other")
    SOURCES[source](folder, table)
    csv = spec_for(made(tmp_path, "csv"), table, file="rows.csv")
    other = spec_for(folder, file=source)
    prepared = [
        prepare(loaded, FolderStorage(tmp_path / str(place)), Progress(), engine=engine)[0]
        for place, (loaded, engine) in enumerate(
            [
                (csv, EmbeddedEngine(block_rows=16)),
                (other, EmbeddedEngine(block_rows=16)),
                (other, ScrambledEngine(block_rows=16)),
            ]
        )
    ]
    assert hashes(prepared[0]) == hashes(prepared[1]) == hashes(prepared[2])
    assert prepared[0].content == prepared[1].content


def split_columns(table: pa.Table) -> pa.Table:
    """With a column for each kind of split; the last 20 rows are the test rows of all of them."""
    rows = np.arange(table.num_rows)
    fold = np.where(rows >= 70, "test", np.where(rows >= 60, "valid", "train"))
    return table.append_column("fold", pa.array(fold)).append_column("when", pa.array(rows))


BY_COLUMN = {"kind": "column", "column": "fold"}
BY_TIME = {
    "kind": "time",
    "column": "when",
    "fractions": {"train": 6 / 9, "valid": 1 / 9, "test": 2 / 9},
}


@pytest.mark.parametrize("split", [BY_COLUMN, BY_TIME], ids=["column", "time"])
def test_p6_features_of_test_rows_do_not_change_the_fitted_state(
    tmp_path: Path, split: dict[str, Any]
) -> None:
    table = split_columns(mixed_table(90, gaps=False))
    doses = table["dose"].to_numpy().copy()
    doses[70:] = 1e6
    pressures = table["pressure"].to_pylist()[:70] + ["UNHEARD"] * 20
    changed = table.set_column(1, "dose", pa.array(doses))
    changed = changed.set_column(2, "pressure", pa.array(pressures))
    first, second = (
        prepared_for(spec_for(made(tmp_path, name), each, data={"split": split}))
        for name, each in (("first", table), ("second", changed))
    )
    assert first.preprocessing_state() == second.preprocessing_state()
    for name in ("train", "valid"):
        assert np.array_equal(first.load(name).numeric, second.load(name).numeric)
    assert not np.array_equal(first.load("test").numeric, second.load("test").numeric)
    names = {column["name"] for column in first.preprocessing_state()["columns"]}
    assert {"dose", "pressure"} <= names
    assert split["column"] not in names


def files_spec(folder: Path, tables: dict[str, pa.Table], **data: Any) -> Any:
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    split = {"kind": "files", **{name: f"{name}.csv" for name in tables}}
    return spec_for(folder, file="train.csv", data={"split": split, **data})


def test_a_file_for_each_split_gives_its_rows_and_p6_holds(tmp_path: Path) -> None:
    table = mixed_table(90, gaps=False)
    parts = {"train": table.slice(0, 60), "valid": table.slice(60, 10), "test": table.slice(70)}
    first = prepared_for(files_spec(made(tmp_path, "first"), parts))
    for name, rows in (("train", range(60)), ("valid", range(60, 70)), ("test", range(70, 90))):
        assert first.load(name).row_id.tolist() == list(rows)
    # The rows are those of one file with a column that says so, to the last byte.
    fold = ["train"] * 60 + ["valid"] * 10 + ["test"] * 20
    one = table.append_column("fold", pa.array(fold))
    same = prepared_for(spec_for(made(tmp_path, "same"), one, data={"split": BY_COLUMN}))
    assert hashes(first) == hashes(same)
    parts["test"] = parts["test"].set_column(1, "dose", pa.array([1e6] * 20))
    second = prepared_for(files_spec(made(tmp_path, "second"), parts))
    assert first.preprocessing_state() == second.preprocessing_state()
    assert first.artifact.manifest != second.artifact.manifest


def test_moved_files_are_the_same_rows_and_swapped_ones_are_not(tmp_path: Path) -> None:
    table = mixed_table(90)
    parts = {"train": table.slice(0, 45), "test": table.slice(45)}
    loaded = files_spec(made(tmp_path, "a"), parts)
    storage = storage_of(loaded)
    first, _ = prepare(loaded, storage, Progress())
    (tmp_path / "a" / "moved").mkdir()
    for name in parts:
        (tmp_path / "a" / f"{name}.csv").rename(tmp_path / "a" / "moved" / f"{name}.csv")
    moved = spec_for(
        tmp_path / "a",
        file="moved/train.csv",
        data={"split": {"kind": "files", "train": "moved/train.csv", "test": "moved/test.csv"}},
    )
    again, status = prepare(moved, storage, Progress())
    assert again.artifact.key == first.artifact.key
    assert status == "reused"
    swapped = spec_for(
        tmp_path / "a",
        file="moved/test.csv",
        data={"split": {"kind": "files", "train": "moved/test.csv", "test": "moved/train.csv"}},
    )
    other, _ = prepare(swapped, storage, Progress())
    assert other.artifact.key != first.artifact.key


def test_storage_among_the_files_of_any_split_is_refused(tmp_path: Path) -> None:
    table = mixed_table(90)
    write_table(tmp_path / "train.csv", table)
    write_table(made(tmp_path, "test") / "rows.csv", table)
    split = {"kind": "files", "train": "train.csv", "test": "test"}
    loaded = spec_for(tmp_path, file="train.csv", data={"split": split}, storage="test/runs")
    with pytest.raises(UnsafeInputError, match="storage"):
        refuse_storage_in_input(loaded, storage_of(loaded))


def test_runs_of_other_seeds_share_the_rows_where_nothing_is_drawn(tmp_path: Path) -> None:
    table = split_columns(mixed_table(90))
    for place, (split, shared) in enumerate(
        [
            (BY_COLUMN, True),
            (BY_TIME, True),
            ({"kind": "group", "column": "when"}, False),
            ({"kind": "group", "column": "when", "seed": 1}, True),
        ]
    ):
        folder = made(tmp_path, str(place))
        first, second = (
            prepared_for(spec_for(folder, table, data={"split": split}, seed=seed))
            for seed in (1, 2)
        )
        assert (first.artifact.key == second.artifact.key) == shared


def test_the_splits_of_a_folder_are_those_of_the_prepared_data(tmp_path: Path) -> None:
    table = mixed_table(120)
    parts = {"train": table.slice(0, 80), "validation": table.slice(80, 20)}
    write_hugging_face_splits(tmp_path / "d", {**parts, "test": table.slice(100)})
    prepared = prepared_for(spec_for(tmp_path, file="hf:./d"))
    assert [prepared.num_rows(split) for split in SPLITS] == [80, 20, 20]
    assert prepared.profile()["data"]["split"] == {"kind": "source"}
