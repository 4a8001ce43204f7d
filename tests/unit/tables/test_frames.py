"""In-memory rows enter by the same rules as files; formulas are neutralised on the way out."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables import conform, extra_columns, frame_to_table, neutralise_formulas


def conformed(frame: object, **columns: str) -> dict[str, list[object]]:
    table = conform(frame_to_table(frame), columns, first_row=0, where="the given rows")
    return table.to_pydict()


FRAME = pd.DataFrame(
    {
        "numpy": np.array([1, 2, 3], dtype=np.int32),
        "nullable": pd.array([1, None, 3], dtype="Int64"),
        "gaps": [1.0, np.nan, 3.0],
        "names": np.array(["a", None, "c"], dtype=object),
        "category": pd.Categorical(["x", "y", None]),
        "codes": pd.Categorical([7, 8, 7]),
        "flag": pd.array([True, None, False], dtype="boolean"),
        "arrow": pd.array([1.5, None, 2.5], dtype="double[pyarrow]"),
        "nothing": [np.nan] * 3,
    },
    index=[5, 6, 7],
)


def test_every_kind_of_pandas_column_is_read() -> None:
    assert conformed(
        FRAME,
        numpy="number",
        nullable="number",
        gaps="integer",
        names="string",
        category="string",
        codes="string",
        flag="boolean",
        arrow="number",
        nothing="string",
    ) == {
        "numpy": [1.0, 2.0, 3.0],
        "nullable": [1.0, None, 3.0],
        "gaps": [1, None, 3],
        "names": ["a", None, "c"],
        "category": ["x", "y", None],
        "codes": ["7", "8", "7"],
        "flag": [True, None, False],
        "arrow": [1.5, None, 2.5],
        "nothing": [None] * 3,
    }


def test_a_frame_a_table_and_a_mapping_give_the_same() -> None:
    columns = {"x": [1, 2], "y": ["a", None]}
    expected = frame_to_table(pa.table(columns))
    assert frame_to_table(columns).equals(expected)
    read = frame_to_table(pd.DataFrame({"y": columns["y"], "x": columns["x"], "more": 1}))
    kinds = {"x": "integer", "y": "string"}
    assert conform(read, kinds, first_row=0, where="").equals(expected)
    assert extra_columns(read.column_names, kinds) == ("more",)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (True, "string", "true"),
        (5, "string", "5"),
        (2.0, "string", "2"),
        (-0.0, "string", "0"),
        (2.0**53 - 1, "string", "9007199254740991"),
        (float("nan"), "string", None),
        (-0.0, "integer", 0),
        (1.0, "boolean", True),
        (0, "boolean", False),
        ("12", "integer", 12),
        (" 1.50 ", "number", 1.5),
        ("TRUE", "boolean", True),
        (float("nan"), "number", None),
        (float("-inf"), "number", float("-inf")),
        (2**53, "number", 2.0**53),
        (None, "boolean", None),
    ],
)
def test_a_cast_without_loss_is_made(value: object, wanted: str, expected: object) -> None:
    assert conformed({"a": [value]}, a=wanted) == {"a": [expected]}


BAD_FRAMES: list[tuple[object, type[DataError], str]] = [
    (pd.DataFrame({"a": [1, "x"]}, dtype=object), SchemaMismatchError, "'a'.*one type.*int, str"),
    ({"a": [1, "x"]}, SchemaMismatchError, "one type"),
    ({"a": [2**70]}, SchemaMismatchError, "'a'"),
    ({"a": [object()]}, SchemaMismatchError, "object"),
    ({"a": "text"}, SchemaMismatchError, "sequence"),
    ({"a": 1}, SchemaMismatchError, r"Write \[value\]"),
    ({"a": np.zeros((2, 2))}, SchemaMismatchError, "'a'"),
    ({"a": [1, 2], "b": [1]}, DataError, "one length"),
    ({}, DataError, "at least one column"),
    ({1: [1]}, SchemaMismatchError, "found 1 of type int"),
    ([{"a": 1}], SchemaMismatchError, "found list"),
    (pd.DataFrame([[1, 2]], columns=["a", "a"]), DataError, "'a' 2 times"),
]


@pytest.mark.parametrize(("frame", "error", "pattern"), BAD_FRAMES)
def test_rows_that_are_no_table_are_refused(
    frame: object, error: type[DataError], pattern: str
) -> None:
    with pytest.raises(error, match=pattern):
        frame_to_table(frame)


@pytest.mark.parametrize(
    ("values", "wanted", "pattern"),
    [
        ([True], "integer", "found True"),
        ([1.5], "string", r"found 1\.5"),
        ([2.0, 2.0**53], "string", r"found 9007199254740992\.0"),
        ([float("inf")], "string", "found inf"),
        ([""], "number", "found ''"),
        ([dt.date(2020, 1, 1)], "number", "date32"),
        ([1, 2, 5, 6], "boolean", r"found 2 .*at least 2 more rows"),
    ],
)
def test_a_value_of_another_type_is_refused(
    values: list[object], wanted: str, pattern: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=pattern):
        conformed({"a": values}, a=wanted)


@pytest.mark.parametrize(
    ("given", "asked", "pattern"),
    [
        ("age", "Age", "upper and lower case"),
        ("cafe\u0301", "caf\u00e9", "Unicode form"),
        ("rating", "ratng", r"did you mean 'rating'\?"),
        ("x", "unlike", r"expected the column 'unlike', found only 'x'"),
    ],
)
def test_a_missing_column_is_named_with_its_like(given: str, asked: str, pattern: str) -> None:
    with pytest.raises(SchemaMismatchError, match=pattern):
        conformed({given: [1]}, **{asked: "number"})


def test_all_missing_columns_are_listed_at_once() -> None:
    with pytest.raises(SchemaMismatchError, match="columns 'p', 'q'"):
        conformed({"x": [1]}, p="number", x="number", q="number")


FORMULAS = ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1", "=1\nx"]
HARMLESS = ["a=1", "x\n=1", "-1", "+2.5e3", "", " x", "'=1", None]


def test_x15_cells_and_names_that_a_spreadsheet_runs_are_neutralised() -> None:
    cells = [*FORMULAS, *HARMLESS]
    table = pa.table(
        {
            "plain": cells,
            "=name": pa.array(cells).dictionary_encode(),
            "number": pa.array(range(-5, len(cells) - 5)),
        }
    )
    safe, count = neutralise_formulas(table)
    expected = [f"'{cell}" for cell in FORMULAS] + HARMLESS
    assert safe.column_names == ["plain", "'=name", "number"]
    assert safe["plain"].to_pylist() == expected
    assert safe["'=name"].to_pylist() == expected
    assert safe["number"].equals(table["number"])
    assert count == 2 * len(FORMULAS) + 1


def test_a_table_without_formulas_is_unchanged() -> None:
    table = pa.table({"a": ["x", None], "b": [-1.5, 2.0]})
    safe, count = neutralise_formulas(table)
    assert safe.equals(table)
    assert count == 0
