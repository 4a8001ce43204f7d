"""Tables that follow one another, as hashed Parquet files of a fixed number of rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables.conform import conform, plain_values
from batchtrain.tables.infer import evidence_of_type, family
from batchtrain.tables.names import check_names
from batchtrain.tables.types import PLAIN_TYPES, ColumnType, Unsupported, column_type

__all__ = ["RowFiles", "other_columns", "rows_of_file"]

FILE_ROWS = 65_536
FILE_CELLS = 1 << 22
"""A file has so many rows, or fewer where there are so many columns that these would be more cells:
whoever gathers rows as Python objects holds no more than one file's."""


def rows_of_file(columns: int) -> int:
    """How many rows a file of so many columns has."""
    return max(1, min(FILE_ROWS, FILE_CELLS // max(columns, 1)))


@dataclass
class RowFiles:
    """Writes the tables that it is given.

    Where files end depends on the number of rows and columns alone, not on the tables that came.

    Attributes:
        folder: Where they lie.
        where: For messages.
        num_rows: Rows that came so far.
        digest: The hash of those that are written.
    """

    folder: Path
    where: str
    num_rows: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    _names: list[str] = field(default_factory=list)
    _kinds: dict[str, tuple[str, int]] = field(default_factory=dict)
    _waiting: list[pa.Table] = field(default_factory=list)
    _written: int = 0

    def add(self, table: pa.Table) -> None:
        """Take the next rows."""
        if not self._names:
            check_names(table.column_names, self.where)
            self._names = table.column_names
        if set(table.column_names) != set(self._names):
            raise other_columns(self.where, self.num_rows, self._names, table.column_names)
        plain = pa.table({name: plain_values(table.column(name)) for name in self._names})
        self._check_kinds(plain)
        self._waiting.append(plain)
        self.num_rows += plain.num_rows
        rows = rows_of_file(len(self._names))
        while self.num_rows - self._written >= rows:
            self._write(rows)

    def close(self) -> None:
        """Write what is left."""
        if self.num_rows > self._written:
            self._write(self.num_rows - self._written)

    def _check_kinds(self, table: pa.Table) -> None:
        """Refuse a column whose values are of several kinds.

        Numbers are one kind, with or without fractions; a column without any value fits all.
        """
        for column in table.schema:
            kind = _kind(column.type)
            known, since = self._kinds.setdefault(column.name, (kind, self.num_rows))
            if kind and not known:
                self._kinds[column.name] = (kind, self.num_rows)
            elif kind and kind != known:
                raise SchemaMismatchError(
                    f"column {column.name!r} of {self.where}: expected one type in all rows, found "
                    f"{known} values from row {since} on and {kind} values among the rows from "
                    f"{self.num_rows} on. Convert the column to one type"
                )

    def _write(self, rows: int) -> None:
        """Write the first rows that wait."""
        taken: list[pa.Table] = []
        missing = rows
        while missing:
            table = self._waiting.pop(0)
            taken.append(table.slice(0, missing))
            if table.num_rows > missing:
                self._waiting.insert(0, table.slice(missing))
            missing -= min(missing, table.num_rows)
        block = _joined(taken, self._written, self.where)
        _hash_into(self.digest, block)
        path = self.folder / f"{self._written:016d}.parquet"
        try:
            pq.write_table(block, path)
        except pa.ArrowException as error:
            raise DataError(
                f"{self.where}: expected columns that a Parquet file can hold, found: "
                f"{str(error)[:200]}. Convert the column, or leave it out"
            ) from error
        self._written += rows


def _kind(arrow_type: pa.DataType) -> str:
    """What all values of a column must agree on; empty for a column of nulls."""
    found = column_type(arrow_type)
    return str(found) if isinstance(found, Unsupported) else family(evidence_of_type(found))


def _joined(tables: list[pa.Table], first_row: int, where: str) -> pa.Table:
    """Tables of the same columns and kinds as one, whose types hold the values of all."""
    types = {
        name: _joint_type([table[name].type for table in tables]) for name in tables[0].schema.names
    }
    asked = {
        name: cast("ColumnType", found) for name, found in types.items() if isinstance(found, str)
    }
    parts = []
    # Very many small tables of one schema are converted in one go.
    for _schema, alike in groupby(tables, key=lambda table: table.schema):
        table = pa.concat_tables(alike)
        typed = conform(table, asked, first_row=first_row, where=where)
        columns = {
            name: typed[name] if name in asked else _as_type(table[name], types[name])
            for name in types
        }
        parts.append(pa.table(columns))
        first_row += table.num_rows
    return pa.concat_tables(parts).combine_chunks()


def _joint_type(found: list[pa.DataType]) -> ColumnType | pa.DataType:
    """The column type of several parts, or the Arrow type where there is none for it."""
    types = [each for each in found if not pa.types.is_null(each)]
    kinds = {column_type(each) for each in types}
    if kinds == {"integer", "number"}:
        return "number"
    kind = next(iter(kinds), None)
    if isinstance(kind, str):
        return kind
    return types[0] if types else pa.null()


def _as_type(column: pa.ChunkedArray, wanted: ColumnType | pa.DataType) -> pa.ChunkedArray:
    if isinstance(wanted, pa.DataType) and column.type != wanted:
        return pa.chunked_array([pa.nulls(len(column), wanted)])
    return column


def _hash_into(digest: Any, block: pa.Table) -> None:
    """Add rows to a hash: of their values alone, not of how a version of pyarrow lays them out."""
    for name, column in zip(block.schema.names, block.columns, strict=True):
        values = plain_values(column)
        head = f"{name}\0{values.type}\0{len(values)}\0"
        digest.update(head.encode())
        if values.type not in PLAIN_TYPES.values():
            digest.update(_stream_bytes(values))
            continue
        digest.update(np.packbits(np.asarray(pc.is_valid(values))).tobytes())
        if pa.types.is_string(values.type):
            values = pc.fill_null(values, "").cast(pa.large_string())
            lengths = np.asarray(pc.binary_length(values), dtype=np.int64)
            digest.update(lengths.tobytes())
            digest.update(_text_bytes(values, int(lengths.sum())))
        elif pa.types.is_boolean(values.type):
            digest.update(np.packbits(np.asarray(pc.fill_null(values, False))).tobytes())
        else:
            digest.update(np.ascontiguousarray(pc.fill_null(values, 0)).tobytes())


def _text_bytes(values: pa.Array, num_bytes: int) -> bytes:
    """The bytes of all texts, one after the other."""
    _valid, offsets, data = values.buffers()
    first = int(np.frombuffer(offsets, dtype=np.int64)[values.offset])
    return b"" if data is None else bytes(memoryview(data)[first : first + num_bytes])


def _stream_bytes(values: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"values": values})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def other_columns(where: str, row: int, names: list[str], found: list[str]) -> SchemaMismatchError:
    """The error for a row whose columns are not those of the first one."""
    lacking = [name for name in names if name not in found]
    added = [name for name in found if name not in names]
    differs = [
        f"{what} {', '.join(map(repr, some[:10]))}"
        for what, some in (("without", lacking), ("with", added))
        if some
    ]
    return SchemaMismatchError(
        f"{where}, row {row}: expected the columns of the first row, found a row "
        f"{' and '.join(differs)}. Give every row the same columns, with None where there is no "
        "value"
    )
