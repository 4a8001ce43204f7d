"""Read a source as blocks of a fixed number of rows, whatever its files look like."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing

import pyarrow as pa

from batchtrain.errors import DataError
from batchtrain.tables.arrow_files import read_arrow, read_arrow_schema
from batchtrain.tables.conform import conform
from batchtrain.tables.delimited import read_names, read_text
from batchtrain.tables.json_lines import count_lines, read_json_lines
from batchtrain.tables.parquet import read_parquet, row_groups
from batchtrain.tables.read_plan import FileRows, ReadUnit
from batchtrain.tables.samples import SAMPLES
from batchtrain.tables.source import (
    Source,
    SourceFile,
    no_rows,
    num_files,
    require_unchanged,
    where_of,
)
from batchtrain.tables.types import ColumnType

__all__ = ["BLOCK_ROWS", "count_rows", "read_blocks", "read_unit", "recut"]

BLOCK_ROWS = 65_536


def read_blocks(
    source: Source, columns: Mapping[str, ColumnType], *, block_rows: int = BLOCK_ROWS
) -> Iterator[pa.Table]:
    """Yield the named columns in the asked types: block b has rows [b*R, (b+1)*R) of the source.

    Where blocks are cut depends on the row number alone, not on files, row groups or buffers, so
    that arithmetic in block order is the same everywhere. A few blocks are in memory at a time.

    Args:
        source: Its files follow one another in their order.
        columns: Name to type, in the order that is wanted; other columns are not read.
        block_rows: R; only the last block may be shorter.

    Yields:
        Tables with one chunk a column.

    Raises:
        SchemaMismatchError: If a file lacks a column, or a cell does not fit its type; it names
            the file, the row and the value.
        DataError: If a file is damaged, has changed since the source was opened, or has no rows.
        UnsafeInputError: If a type of a file could run code.
    """
    return recut(_pieces(source, columns), block_rows)


def recut(pieces: Iterator[pa.Table], block_rows: int) -> Iterator[pa.Table]:
    """Cut a sequence of tables of one schema into tables of `block_rows`, the last one shorter."""
    if block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, found {block_rows}")
    waiting: list[pa.Table] = []
    num_waiting = 0
    for piece in pieces:
        waiting.append(piece)
        num_waiting += piece.num_rows
        if num_waiting >= block_rows:
            joined = pa.concat_tables(waiting)
            whole = num_waiting - num_waiting % block_rows
            for start in range(0, whole, block_rows):
                yield joined.slice(start, block_rows).combine_chunks()
            waiting = [joined.slice(whole)]
            num_waiting -= whole
    if num_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def read_unit(
    source: Source, columns: Mapping[str, ColumnType], unit: ReadUnit, *, block_rows: int
) -> Iterator[pa.Table]:
    """Yield the blocks of a unit: the very tables, and the very errors, of `read_blocks`.

    Args:
        source: As for `read_blocks`.
        columns: As for `read_blocks`.
        unit: Of `plan_units`, for this `block_rows` and the rows that the files have.
        block_rows: R.

    Raises:
        DataError: As `read_blocks`; and if a file has other rows than the unit says.
        SchemaMismatchError: As `read_blocks`.
        UnsafeInputError: As `read_blocks`.
    """
    return recut(_pieces_of_unit(source, columns, unit), block_rows)


def count_rows(source: Source, place: int) -> tuple[int, bool]:
    """How many rows a file has, and whether it could be read to its end; no cell is looked at.

    A file that is broken counts as far as it can be read: whoever reads its cells says why.
    """
    num_rows = 0
    try:
        if source.kind == "sample":
            return SAMPLES[source.sample]().num_rows, True
        file = source.files[place]
        if source.kind == "parquet":
            return sum(row_groups(file)), True
        for rows in _counted(source, file):
            num_rows += rows
    except DataError:
        return num_rows, False
    return num_rows, True


def _counted(source: Source, file: SourceFile) -> Iterator[int]:
    """The rows of a file that has to be read for it, part by part."""
    if source.kind == "jsonl":
        yield from count_lines(file)
    elif source.kind == "arrow":
        for _row, table in read_arrow(file, read_arrow_schema(file).names[:1]):
            yield table.num_rows
    else:
        for table in read_text(file, read_names(file)[:1], ()):
            yield table.num_rows


def _pieces(source: Source, columns: Mapping[str, ColumnType]) -> Iterator[pa.Table]:
    """The rows in canonical types, cut wherever the files happen to be."""
    first_row = 0
    for place in range(num_files(source)):
        for row, table in _tables(source, place, columns):
            yield _conformed(source, place, columns, table, first_row=first_row, in_file=row)
            first_row += table.num_rows
    if first_row == 0:
        raise no_rows(source)


def _pieces_of_unit(
    source: Source, columns: Mapping[str, ColumnType], unit: ReadUnit
) -> Iterator[pa.Table]:
    """The rows of a unit; they are cut where `_pieces` cuts them, and at the ends of the unit."""
    for part in unit.files:
        yield from _pieces_of_part(source, columns, unit, part)
    if unit.is_last and unit.stop_row == 0:
        raise no_rows(source)


def _pieces_of_part(
    source: Source, columns: Mapping[str, ColumnType], unit: ReadUnit, part: FileRows
) -> Iterator[pa.Table]:
    """What one file has of a unit; a table that is cut is held against its types as a whole."""
    first = max(unit.first_row - part.first_row, 0)
    stop = min(unit.stop_row - part.first_row, part.num_rows)
    to_the_end = unit.is_last or stop == part.num_rows
    seen = 0
    with closing(_tables(source, part.place, columns, first_row=first)) as tables:
        for row, table in tables:
            seen = row + table.num_rows
            if seen > part.num_rows:
                break
            if seen > first:
                whole = _conformed(
                    source, part.place, columns, table, first_row=part.first_row + row, in_file=row
                )
                skipped = max(first - row, 0)
                yield whole.slice(skipped, min(stop, seen) - row - skipped)
            if seen >= stop and not to_the_end:
                break
    if seen < stop or (to_the_end and seen != part.num_rows):
        raise DataError(
            f"{where_of(source, part.place)}: expected {part.num_rows} rows as at the first look, "
            f"found {seen}: it changed in between. Let no one write to the input during a run, "
            "then start again"
        )
    if not to_the_end and source.kind != "sample":
        # A file that is read to its end is held against its first look by its reader.
        require_unchanged(source.files[part.place])


def _conformed(
    source: Source,
    place: int,
    columns: Mapping[str, ColumnType],
    table: pa.Table,
    *,
    first_row: int,
    in_file: int,
) -> pa.Table:
    """A table in the asked types; messages give the row in the file where people count rows."""
    return conform(
        table,
        columns,
        first_row=first_row,
        where=where_of(source, place),
        row_in_file=in_file if source.kind in {"csv", "jsonl"} else None,
        has_header=source.kind == "csv",
        for_bundle=source.for_bundle,
    )


def _tables(
    source: Source, place: int, columns: Mapping[str, ColumnType], *, first_row: int = 0
) -> Generator[tuple[int, pa.Table], None, None]:
    """Tables of one file, as they come, each with the number in the file of its first row.

    What ends before `first_row` may be left out.
    """
    names = list(columns)
    if source.kind == "sample":
        yield 0, SAMPLES[source.sample]()
    elif source.kind == "parquet":
        yield from read_parquet(source.files[place], names, first_row=first_row)
    elif source.kind == "arrow":
        yield from read_arrow(source.files[place], names)
    else:
        row = 0
        file, nulls = source.files[place], source.null_values
        lists = [name for name in names if columns[name] == "vector"]
        is_json = source.kind == "jsonl"
        tables = (
            read_json_lines(file, names, nulls, lists) if is_json else read_text(file, names, nulls)
        )
        for table in tables:
            yield row, table
            row += table.num_rows
