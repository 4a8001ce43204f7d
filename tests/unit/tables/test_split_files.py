"""A source for each split: one numbering through all files, and no file in two splits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables import content_hashes, open_source, open_splits, read_blocks, scan
from tests.support.builders import mixed_table
from tests.support.sources import write_hugging_face_splits


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def test_rows_run_through_train_valid_and_test(tmp_path: Path) -> None:
    write(tmp_path, z="a\n1\n2\n", y="a\n3\n", x="a\n4\n5\n")
    sources = {"test": "x.csv", "valid": "y.csv", "train": "z.csv"}
    source = open_splits(sources, base=tmp_path, null_values=())
    assert source.splits == ("train", "valid", "test")
    (block,) = read_blocks(source, {"a": "integer"})
    assert block["a"].to_pylist() == [1, 2, 3, 4, 5]
    assert scan(source).rows_of_files == (2, 1, 2)


def test_files_of_one_name_in_several_folders_are_several_files(tmp_path: Path) -> None:
    for place, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, rows=f"a\n{place}\n")
    sources = {"train": "one/rows.csv", "test": "two"}
    source = open_splits(sources, base=tmp_path, null_values=())
    assert [file.name for file in source.files] == ["train/rows.csv", "test/rows.csv"]
    hashes = dict(content_hashes(source))
    assert len(set(hashes.values())) == 2


def test_a_schema_that_differs_between_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a="a,b\n1,x\n", b="a\n1\n")
    source = open_splits({"train": "a.csv", "test": "b.csv"}, base=tmp_path, null_values=())
    with pytest.raises(SchemaMismatchError, match=r"column 'b' in .*a\.csv but not in .*b\.csv"):
        scan(source)


def test_a_file_in_two_splits_is_refused_by_any_name(tmp_path: Path) -> None:
    write(tmp_path, a="a\n1\n", c="a\n1\n")
    os.link(tmp_path / "a.csv", tmp_path / "b.csv")
    for other in ("a.csv", "b.csv", "[ac].csv"):
        with pytest.raises(DataError, match="each file in one split"):
            open_splits({"train": "a.csv", "test": other}, base=tmp_path, null_values=())
    # Equal rows in files of their own are the user's choice.
    open_splits({"train": "a.csv", "test": "c.csv"}, base=tmp_path, null_values=())


def test_what_cannot_be_a_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a="a\n1\n")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n')
    table = mixed_table(4)
    write_hugging_face_splits(tmp_path / "d", {"train": table, "test": table})
    for test, fragment in (
        ("b.jsonl", "one format"),
        ("sample:drug200", "built-in sample"),
        ("hf:./d", "Name one split"),
        ("gone.csv", "gone.csv"),
    ):
        with pytest.raises(DataError, match=fragment):
            open_splits({"train": "a.csv", "test": test}, base=tmp_path, null_values=())
    assert open_source("hf:./d/test", base=tmp_path, null_values=()).splits == ()
