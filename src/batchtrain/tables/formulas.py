"""Keep a spreadsheet from running cells of a CSV file as formulas."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.tables.types import is_text

__all__ = ["neutralise_formulas"]

# Also after blanks, since spreadsheets trim them, and in the full-width forms of East Asian text.
FORMULA = (
    "^[ \\x{A0}\\x{2000}-\\x{200B}\\x{202F}\\x{3000}\\x{FEFF}]*"
    "[=+\\-@\\t\\r\\n\\x{FF1D}\\x{FF0B}\\x{FF0D}\\x{FF20}]"
)
PLAIN_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def neutralise_formulas(table: pa.Table) -> tuple[pa.Table, int]:
    """Put an apostrophe before text cells and column names that a spreadsheet would run.

    For CSV output only: in Parquet the exact text is kept. Columns of numbers, and text that is
    nothing but a number (the class "-1"), stay as they are.

    Returns:
        The table, and how many cells and names were changed.
    """
    count = 0
    names, columns = [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if is_text(column.type):
            column, changed = _neutralised(column.cast(pa.string()))
            count += changed
        runs = _would_run(pa.array([name]))[0].as_py()
        names.append(f"'{name}" if runs else name)
        count += runs
        columns.append(column)
    return pa.table(columns, names=names), count


def _neutralised(cells: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    runs = pc.fill_null(_would_run(cells), False)
    marked = pc.binary_join_element_wise("'", cells, "")
    return pc.if_else(runs, marked, cells), pc.sum(runs).as_py() or 0


def _would_run(cells: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    is_formula = pc.match_substring_regex(cells, FORMULA)
    return pc.and_(is_formula, pc.invert(pc.match_substring_regex(cells, PLAIN_NUMBER)))
