"""Read a source as blocks of a fixed number of rows, whatever its files look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from batchtrain.errors import DataError
from batchtrain.tables.conform import conform
from batchtrain.tables.delimited import read_text
from batchtrain.tables.parquet import read_parquet
from batchtrain.tables.samples import SAMPLES
from batchtrain.tables.source import Source
from batchtrain.tables.types import ColumnType

__all__ = ["BLOCK_ROWS", "read_blocks", "recut"]

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


def _pieces(source: Source, columns: Mapping[str, ColumnType]) -> Iterator[pa.Table]:
    """The rows in canonical types, cut wherever the files happen to be."""
    first_row = 0
    for where, tables in _files(source, columns):
        in_file = 0
        for table in tables:
            yield conform(
                table,
                columns,
                first_row=first_row,
                where=where,
                row_in_file=in_file if source.kind == "csv" else None,
            )
            first_row += table.num_rows
            in_file += table.num_rows
    if first_row == 0:
        raise DataError(f"source {source.text!r}: expected rows, found none. Use other files")


def _files(
    source: Source, columns: Mapping[str, ColumnType]
) -> Iterator[tuple[str, Iterator[pa.Table]]]:
    names = list(columns)
    if source.kind == "sample":
        yield f"sample:{source.sample}", iter([SAMPLES[source.sample]()])
    for file in source.files:
        if source.kind == "csv":
            yield str(file.path), read_text(file, names, source.null_values)
        else:
            yield str(file.path), read_parquet(file, names)
