"""Rows that an object of the user's yields: whatever its form, the same rows, types and hash."""

from __future__ import annotations

import datetime as dt
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.errors import DataError, SchemaMismatchError, StorageError
from batchtrain.tables import column_names, open_source, read_blocks, scan, source_contains
from batchtrain.tables import row_files as writing
from batchtrain.tables.hooks import written_rows

TEXT = "custom:my_rows:Rows"

ROWS = [
    {"n": 1, "x": 0.5, "name": "a", "flag": True},
    {"n": None, "x": float("nan"), "name": None, "flag": None},
    {"n": 3, "x": 2.5, "name": "é", "flag": False},
    {"n": 4, "x": None, "name": "", "flag": True},
]
TYPES = {"n": "integer", "x": "number", "name": "string", "flag": "boolean"}


class Mapped:
    """A sequence."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


class Streamed:
    """What can be iterated, and nothing else."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        yield from self.items


def opened(rows: Any) -> Any:
    return written_rows(rows if callable(rows) else lambda: rows, TEXT, "0" * 64)


def read(rows: Any) -> tuple[pa.Table, dict[str, Any], str]:
    """All rows in canonical types, the columns, and the hash of the rows."""
    with opened(rows) as source:
        schema = scan(source)
        blocks = list(read_blocks(source, schema.columns))
        assert dict(source.hashes)["code"] == "0" * 64
        return pa.concat_tables(blocks), schema.columns, dict(source.hashes)["rows"]


FORMS: dict[str, Callable[[], Any]] = {
    "mapped": lambda: Mapped(ROWS),
    "streamed": lambda: Streamed(ROWS),
    "list": lambda: ROWS,
    "table": lambda: Streamed([pa.Table.from_pylist(ROWS)]),
    "batches": lambda: Mapped(pa.Table.from_pylist(ROWS).to_batches(max_chunksize=3)),
    "rows and tables": lambda: Streamed([ROWS[0], pa.Table.from_pylist(ROWS[1:3]), ROWS[3]]),
    "frame": lambda: Streamed([pd.DataFrame(ROWS).astype({"n": "Int64", "flag": "boolean"})]),
    "other order": lambda: Streamed([ROWS[0], *({k: r[k] for k in reversed(r)} for r in ROWS[1:])]),
    "numpy": lambda: Streamed([{**r, "x": r["x"] and np.float64(r["x"])} for r in ROWS]),
    "tensors": lambda: Streamed([{**r, "n": r["n"] and torch.tensor(r["n"])} for r in ROWS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows_types_and_hash(form: str) -> None:
    table, columns, sha256 = read(FORMS[form])
    expected, _, expected_sha256 = read(lambda: ROWS)

    assert columns == TYPES
    assert table.equals(expected)
    assert table.to_pylist() == [ROWS[0], {**ROWS[1], "x": None}, *ROWS[2:]]
    assert sha256 == expected_sha256


def test_the_files_are_there_for_as_long_as_they_are_needed() -> None:
    with opened(ROWS) as source:
        paths = [file.path for file in source.files]
        assert all(path.exists() for path in paths)
        assert column_names(source) == tuple(TYPES)
    assert not any(path.parent.exists() for path in paths)
    with suppress(KeyboardInterrupt), opened(ROWS) as source:
        paths = [file.path for file in source.files]
        raise KeyboardInterrupt
    assert not any(path.parent.exists() for path in paths)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 2), ("n", None), ("x", 0.25), ("name", "b"), ("name", None), ("flag", False)],
)
def test_another_value_anywhere_is_another_hash(name: str, value: Any) -> None:
    assert read([{**ROWS[0], name: value}, *ROWS[1:]])[2] != read(ROWS)[2]


def test_the_hash_tells_apart_what_looks_alike() -> None:
    def hash_of(*rows: dict[str, Any]) -> str:
        return read(list(rows))[2]

    assert hash_of({"a": "ab", "b": "c"}) != hash_of({"a": "a", "b": "bc"})
    assert hash_of({"a": "", "b": 0}) != hash_of({"a": None, "b": 0})
    assert hash_of({"a": 1}) != hash_of({"a": 1.0})
    assert hash_of({"a": 1}) != hash_of({"b": 1})
    assert hash_of({"a": 1}, {"a": 2}) != hash_of({"a": 2}, {"a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 1}, {"a": None})


@settings(max_examples=6, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    with_gaps=st.booleans(),
    file_rows=st.integers(2, 7),
)
def test_where_tables_and_files_are_cut_changes_nothing(
    sizes: list[int], with_gaps: bool, file_rows: int
) -> None:
    total = sum(sizes) + 1
    rows = [
        {
            # Whole numbers for long, then fractions; and nothing at all for long.
            "x": None if with_gaps and k % 2 else (k if k < total - 1 else 0.5),
            "late": "z" if k == total - 1 else None,
            "name": f"{k}" * (k % 3),
        }
        for k in range(total)
    ]
    starts = np.cumsum([0, *sizes])
    tables = [
        pa.Table.from_pylist(rows[start : start + size], schema=None)
        for start, size in zip(starts, sizes, strict=False)
        if size
    ]
    tables.append(pa.Table.from_pylist(rows[-1:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "FILE_ROWS", file_rows)
        whole, columns, sha256 = read(rows)
        cut, cut_columns, _ = read(Streamed(tables))
        assert columns == cut_columns == {"x": "number", "late": "string", "name": "string"}
        assert cut.equals(whole)
        assert whole.to_pylist() == rows
        assert read(Streamed(rows))[2] == sha256


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FILE_ROWS", 128)

    def peak(num_rows: int) -> int:
        def rows() -> Iterator[dict[str, Any]]:
            for k in range(num_rows):
                yield {"name": f"{k:>1000}"}

        tracemalloc.start()
        with opened(lambda: Streamed(rows())):  # type: ignore[arg-type]
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    assert peak(16 * 128) < 2 * peak(2 * 128)


def test_wide_rows_are_gathered_in_smaller_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FILE_CELLS", 40)
    with opened([{f"c{k}": k for k in range(10)}] * 11) as source:
        assert scan(source).rows_of_files == (4, 4, 3)


def test_how_many_rows_there_are_is_told_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FILE_ROWS", 3)
    told: list[int] = []
    with written_rows(lambda: [{"x": 1}] * 8, TEXT, "", told=told.append):
        assert told == [3, 6, 8]


# --- what is refused -----------------------------------------------------------------------------


def failing(items: list[Any], error: Exception) -> Iterator[Any]:
    yield from items
    raise error


class Shrinking(Mapped):
    def __getitem__(self, place: int) -> Any:
        row = self.items[place]
        if place == 3:
            self.items = self.items[:2]
        return row


class Overlong(Streamed):
    def __len__(self) -> int:
        return len(self.items) + 1


class Short(Mapped):
    def __len__(self) -> int:
        return 5


class Unmade:
    def __init__(self) -> None:
        raise OSError("no such table")


LATE_TEXT = [{"x": k} for k in range(5)] + [{"x": "six"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (object(), "expected an object with `__iter__`, or with `__len__`.* found a object"),
        (Unmade, r"expected the class to make an object, found OSError: no such table \(.*py:\d"),
        ([], "expected rows, found none"),
        (Streamed([pa.table({"x": pa.array([], pa.int64())})]), "expected rows, found none"),
        ([(1.0, "a")], r"row 0: expected a mapping .* found a tuple.* such as \{'x': 1.5"),
        ([{"x": 1}, 7], "row 1: expected a mapping .* found a int"),
        ([{}], "expected at least one column"),
        ([{1: 2}], "expected text for every column name, found 1"),
        ([{"x": 1}, {"x": 2, "y": 3}], "row 1: expected the columns of the first .* with 'y'"),
        ([{"x": 1, "y": 2}, {"y": 2, "z": 1}], "found a row without 'x' and with 'z'"),
        (Streamed([pa.table({"x": [1]}), pa.table({"y": [1]})]), "row 1: .* without 'x'"),
        ([{"x": 1}, {"x": "a"}], "column 'x' .* expected values of one type, found int, str"),
        (
            partial(Streamed, [pa.table({"x": [k["x"]]}) for k in LATE_TEXT]),
            "numeric values from row 0 on and string values among the rows from 5 on",
        ),
        ([{"x": 2**53 + 1}, {"x": 0.5}], "column 'x'"),
        (Streamed([pa.table({"x": [2**60]}), pa.table({"x": [0.5]})]), "row_id 0.*too large"),
        (lambda: failing([{"x": 1}], KeyError("k")), r"expected item 1, found KeyError: 'k' \("),
        (Shrinking([{"x": k} for k in range(4)]), "4 items, which .* found a length of 2"),
        (Overlong([{"x": 1}]), "expected 2 items, which `__len__` tells, found 1 items"),
        (Short([{"x": 1}] * 3), "expected item 3, found IndexError"),
    ],
)
def test_what_is_no_row_is_an_error_with_its_place(rows: Any, message: str) -> None:
    make = rows if callable(rows) else lambda: rows
    expected = pytest.raises((DataError, SchemaMismatchError), match=f"(?s){message}")
    with expected as raised, written_rows(make, TEXT, ""):
        raise AssertionError("it was read")
    assert TEXT in str(raised.value)
    assert "batchtrain-rows" not in str(raised.value)


def test_a_value_that_does_not_fit_later_is_told_without_the_temporary_file() -> None:
    with opened([{"x": "1"}, {"x": "one"}]) as source, pytest.raises(SchemaMismatchError) as raised:
        list(read_blocks(source, {"x": "number"}))
    assert "column 'x' of source 'custom:my_rows:Rows', row_id 1: expected number, found 'one'" in (
        str(raised.value)
    )


def test_columns_of_other_types_are_kept_for_whoever_excludes_them() -> None:
    day = dt.date(2026, 1, 2)
    rows = [{"x": 1, "day": None, "pixels": [0.5]}, {"x": 2, "day": day, "pixels": [1.5, 2.0]}]
    with opened(Streamed([pa.Table.from_pylist([row]) for row in rows])) as source:
        columns = scan(source).columns
        assert str(columns["day"]) == "unsupported(date32[day])"
        assert str(columns["pixels"]).startswith("unsupported(list<")
        assert source.hashes != ()
        with opened([rows[0], {**rows[1], "pixels": [1.5, 2.5]}]) as other:
            assert other.hashes != source.hashes


def test_a_full_disk_is_an_error_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(writing.pq, "write_table", full)
    expected = pytest.raises(StorageError, match=r"expected room for its rows in .*TMPDIR")
    with expected, opened(ROWS):
        raise AssertionError("it was written")


def test_elsewhere_such_a_source_is_refused_and_holds_no_output(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected files here, found a class of yours"):
        open_source(TEXT, base=tmp_path, null_values=())
    assert not source_contains(TEXT, tmp_path, tmp_path / "out.csv")
