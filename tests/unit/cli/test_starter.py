"""The spec that `init` writes for a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from batchtrain.cli.starter import write_starter
from batchtrain.errors import DataError
from batchtrain.preparation.stage import open_input, survey_input
from batchtrain.spec.data import DEFAULT_NULL_VALUES
from batchtrain.spec.load import load_spec
from tests.support.builders import mixed_table, write_table


def test_columns_that_no_kind_reads_are_excluded_with_the_reason(tmp_path: Path) -> None:
    rows = 90
    cells = {
        "seen at": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * rows),
        "price": pa.array([Decimal("1.50")] * rows),
        "took": pa.array([timedelta(seconds=3)] * rows),
        "point": pa.array([{"x": 1}] * rows),
        "tags": pa.array([[1.0, 2.0]] * rows),
    }
    table = mixed_table(rows)
    for name, values in cells.items():
        table = table.append_column(name, values)
    file = write_table(tmp_path / "t.parquet", table)

    path = write_starter(str(file), "label", tmp_path / "t.yaml")[0]

    loaded = load_spec(path)
    assert loaded.spec.data.exclude == ("seen at", "price", "took", "point", "tags")
    survey_input(loaded, open_input(loaded))
    text = path.read_text()
    assert "# Excluded: 'price' holds decimal128(3, 2), which is read as no kind" in text
    assert "# Excluded: 'tags' holds list<" in text


def test_a_starter_lists_the_cells_that_mean_missing(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.csv", mixed_table())
    text = write_starter(str(file), "label", tmp_path / "t.yaml")[0].read_text()
    assert f"# {', '.join(map(repr, DEFAULT_NULL_VALUES))}\n" in text
    assert "Excluded:" not in text
    page = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    assert [value for value in DEFAULT_NULL_VALUES if value and f"`{value}`" not in page] == []


def test_a_spreadsheet_is_to_be_saved_as_another_file(tmp_path: Path) -> None:
    (tmp_path / "Rows.XLSX").write_bytes(b"PK")
    with pytest.raises(DataError, match="save it as CSV"):
        write_starter(str(tmp_path / "Rows.XLSX"), "y", tmp_path / "t.yaml")


def test_columns_that_are_probably_something_else_are_named(tmp_path: Path) -> None:
    rows = range(90)
    cells = {
        "row": [1000 + 3 * row for row in rows],
        "key": [f"k{row:03}" for row in rows],
        "price": [f"{row},5" for row in rows],
        "total": [f"1,{row:03}.50" for row in rows],
        "share": [f"{row} %" for row in rows],
        "day": [f"2026-01-{1 + row % 28:02} 08:30" for row in rows],
        "count": [row * 7 % 90 for row in rows],
        "city": [f"c{row % 89}" for row in rows],
    }
    table = mixed_table(90)
    for name, values in cells.items():
        table = table.append_column(name, pa.array(values))
    file = write_table(tmp_path / "t.csv", table)

    path, notes = write_starter(str(file), "label", tmp_path / "t.yaml")

    said = dict(zip(cells, notes, strict=False))
    assert len(notes) == 6
    assert "column 'row' has another value in each of 90 rows" in said["row"]
    assert "add `exclude: [key]` under data" in said["key"]
    assert "numbers with a decimal comma ('0,5')" in said["price"]
    assert "numbers with thousands separators ('1,000.50')" in said["total"]
    assert "percentages ('0 %')" in said["share"]
    assert "dates ('2026-01-01 08:30')" in said["day"]
    assert all(f"# Look at this: {note}.\n" in path.read_text() for note in notes)
    assert load_spec(path).spec.name == "t"
