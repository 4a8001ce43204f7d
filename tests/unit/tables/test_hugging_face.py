"""Folders of the datasets library: in the order of their state, read without that library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from batchtrain.errors import BatchtrainError, DataError, UnsafeInputError
from batchtrain.tables import open_source, read_blocks, scan, source_contains
from tests.support.sources import write_hugging_face, write_hugging_face_splits


def numbers(*values: int) -> pa.Table:
    return pa.table({"a": list(values)})


def state_of(folder: Path, **changes: object) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read(source: str, base: Path) -> list[int]:
    opened = open_source(source, base=base, null_values=())
    blocks = read_blocks(opened, {"a": "integer"})
    return [value for block in blocks for value in block["a"].to_pylist()]


def test_rows_come_in_the_order_of_the_state_and_not_of_the_names(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "d", [numbers(1, 2), numbers(3), numbers(4)])
    names = [f"data-{place:05d}-of-00003.arrow" for place in (2, 0, 1)]
    state_of(tmp_path / "d", _data_files=[{"filename": name} for name in names])
    source = open_source("hf:./d", base=tmp_path, null_values=())
    assert [file.name for file in source.files] == names
    assert read("hf:./d", tmp_path) == [4, 1, 2, 3]
    assert read(f"hf:{tmp_path}/d", tmp_path / "elsewhere") == [4, 1, 2, 3]
    assert scan(source).rows_of_files == (1, 2, 1)
    assert "datasets" not in sys.modules


def test_a_folder_of_splits_gives_them_in_our_order(tmp_path: Path) -> None:
    splits = {"test": numbers(5), "train": numbers(1, 2), "validation": numbers(3, 4)}
    write_hugging_face_splits(tmp_path / "d", splits)
    source = open_source("hf:./d", base=tmp_path, null_values=())
    assert source.splits == ("train", "valid", "test")
    assert [file.name.split("/")[0] for file in source.files] == ["train", "valid", "test"]
    assert read("hf:./d", tmp_path) == [1, 2, 3, 4, 5]
    # And one of them is a source of its own.
    assert open_source("hf:./d/test", base=tmp_path, null_values=()).splits == ()
    assert read("hf:./d/test", tmp_path) == [5]


@pytest.mark.parametrize(
    "splits", [{"train": 1, "unsupervised": 2}, {"test": 1}, {"train": 1, "val": 2, "dev": 3}]
)
def test_splits_of_other_names_are_listed(tmp_path: Path, splits: dict[str, int]) -> None:
    write_hugging_face_splits(tmp_path / "d", {name: numbers(1) for name in splits})
    with pytest.raises(DataError) as caught:
        open_source("hf:./d", base=tmp_path, null_values=())
    message = str(caught.value)
    assert [each for each in [*splits, "hf:./d/SPLIT", "files"] if each not in message] == []


def link_out(folder: Path) -> None:
    name = next(folder.glob("*.arrow"))
    name.rename(folder.parent / "out.arrow")
    name.symlink_to(folder.parent / "out.arrow")


BAD_FOLDERS = {
    "no state": (lambda folder: (folder / "state.json").unlink(), DataError, ["state.json"]),
    "no such folder": (lambda folder: folder.rename(folder.parent / "x"), DataError, ["no such"]),
    "no json": (lambda folder: (folder / "state.json").write_text("{"), DataError, ["JSON"]),
    "a list": (lambda folder: (folder / "state.json").write_text("[]"), DataError, ["object"]),
    "deep": (lambda folder: (folder / "state.json").write_text("[" * 10**6), DataError, ["JSON"]),
    "no files": (lambda folder: state_of(folder, _data_files=[]), DataError, ["_data_files"]),
    "files without names": (lambda folder: state_of(folder, _data_files=[{}, 3]), DataError, ["3"]),
    "a file twice": (
        lambda folder: state_of(folder, _data_files=[{"filename": "a"}, {"filename": "a"}]),
        DataError,
        ["different files"],
    ),
    "an index": (
        lambda folder: state_of(folder, _indices_data_files=[{"filename": "i.arrow"}]),
        DataError,
        ["flatten_indices"],
    ),
    "a path out": (
        lambda folder: state_of(folder, _data_files=[{"filename": "../out.arrow"}]),
        UnsafeInputError,
        ["../out.arrow"],
    ),
    "an absolute path": (
        lambda folder: state_of(folder, _data_files=[{"filename": "/etc/passwd"}]),
        UnsafeInputError,
        ["/etc/passwd"],
    ),
    "a link out": (link_out, UnsafeInputError, ["link"]),
    "a missing file": (
        lambda folder: next(folder.glob("*.arrow")).unlink(),
        DataError,
        ["data-00000"],
    ),
}


@pytest.mark.parametrize(
    ("spoil", "error", "fragments"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys()
)
def test_a_folder_that_cannot_be_read_says_why(
    tmp_path: Path, spoil: object, error: type[BatchtrainError], fragments: list[str]
) -> None:
    write_hugging_face(tmp_path / "d", [numbers(1)])
    assert callable(spoil)
    spoil(tmp_path / "d")
    with pytest.raises(DataError) as caught:
        open_source("hf:./d", base=tmp_path, null_values=())
    assert type(caught.value) is error
    assert [each for each in [*fragments, "expected"] if each not in str(caught.value)] == []


def test_a_folder_named_without_hf_says_how_to_name_it(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "d", [numbers(1)])
    with pytest.raises(DataError, match=r"`hf:\./d`"):
        open_source("d", base=tmp_path, null_values=())


def test_what_is_written_into_the_folder_would_become_input(tmp_path: Path) -> None:
    assert source_contains("hf:./d", tmp_path, Path("d/runs"))
    assert not source_contains("hf:./d", tmp_path, Path("runs"))
    assert not source_contains("hf:org/name@main", tmp_path, Path("org/name@main/runs"))
