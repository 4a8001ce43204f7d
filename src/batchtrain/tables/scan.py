"""Read every row of a source once, to learn its columns, their types and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import pyarrow as pa

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables.conform import conform, plain_values
from batchtrain.tables.delimited import read_names, read_text
from batchtrain.tables.infer import (
    Evidence,
    column_type_of,
    evidence_of_cells,
    evidence_of_type,
    family,
)
from batchtrain.tables.parquet import read_parquet, read_schema
from batchtrain.tables.samples import SAMPLES
from batchtrain.tables.source import Source, SourceFile
from batchtrain.tables.types import ColumnType, TableSchema, Unsupported, column_type

__all__ = ["column_names", "scan"]

Found: TypeAlias = Evidence | Unsupported


@dataclass
class _FileScan:
    """What one file holds."""

    where: str
    columns: dict[str, Found]
    num_rows: int = 0
    missing: dict[str, int] = field(default_factory=dict)

    def count(self, table: pa.Table) -> dict[str, pa.Array]:
        """Count rows and missing cells; gives the plain values of each column."""
        self.num_rows += table.num_rows
        values = {name: plain_values(table.column(name)) for name in table.column_names}
        for name, array in values.items():
            self.missing[name] = self.missing.get(name, 0) + array.null_count
        return values


def scan(source: Source) -> TableSchema:
    """Learn the columns and types from all rows of all files, in bounded memory.

    In CSV files a column is "integer" if every cell is an int64, "number" if every cell is a
    number (`inf` included), "boolean" if every cell is true or false, else "string". Digits that
    are no int64 (leading zeros, too many), and whole numbers beyond 2**53 between fractions,
    make the column "string": identifiers stay exact. A `nan` that is not a null value is text.

    Files may differ in the order of columns, in integers against floats ("number" holds both),
    and in columns without any value.

    Raises:
        DataError: If a file cannot be read, or there is no row.
        SchemaMismatchError: If files differ in their columns, or in the types of a column.
        UnsafeInputError: If a type of a file could run code.
    """
    scans = list(_file_scans(source))
    _require_same_columns(scans)
    num_rows = sum(each.num_rows for each in scans)
    if num_rows == 0:
        raise DataError(f"source {source.text!r}: expected rows, found none. Use other files")
    columns = {name: _merged(name, scans) for name in scans[0].columns}
    return TableSchema(
        columns={
            name: found if isinstance(found, Unsupported) else column_type_of(found)
            for name, found in columns.items()
        },
        num_rows=num_rows,
        missing={
            name: sum(each.missing.get(name, each.num_rows) for each in scans)
            for name, found in columns.items()
            if not isinstance(found, Unsupported)
        },
    )


def column_names(source: Source) -> tuple[str, ...]:
    """The column names of all files, each once, in the order of their first appearance.

    Only headers and footers are read.
    """
    if source.kind == "sample":
        return tuple(SAMPLES[source.sample]().column_names)
    read = read_names if source.kind == "csv" else lambda file: read_schema(file).names
    return tuple(dict.fromkeys(name for file in source.files for name in read(file)))


def _file_scans(source: Source) -> Iterator[_FileScan]:
    if source.kind == "sample":
        table = SAMPLES[source.sample]()
        yield _typed_scan(f"sample:{source.sample}", table.schema, iter([table]))
    for file in source.files:
        if source.kind == "csv":
            yield _text_scan(file, source.null_values)
        else:
            schema = read_schema(file)
            found = _of_schema(schema)
            readable = [name for name in found if not isinstance(found[name], Unsupported)]
            yield _typed_scan(str(file.path), schema, read_parquet(file, readable))


def _text_scan(file: SourceFile, null_values: tuple[str, ...]) -> _FileScan:
    result = _FileScan(str(file.path), dict.fromkeys(read_names(file), Evidence.NOTHING))
    for table in read_text(file, None, null_values):
        for name, cells in result.count(table).items():
            known = result.columns[name]
            # Once a column is text, no other cell can change it.
            if isinstance(known, Evidence) and family(known) != "string":
                result.columns[name] = known | evidence_of_cells(cells)
    return result


def _typed_scan(where: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> _FileScan:
    result = _FileScan(where, _of_schema(schema))
    unsigned: dict[str, ColumnType] = {
        name: "integer" for name in schema.names if pa.types.is_uint64(schema.field(name).type)
    }
    for table in tables:
        if unsigned:
            conform(table, unsigned, first_row=result.num_rows, where=where)
        result.count(table)
    return result


def _of_schema(schema: pa.Schema) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for column in schema:
        known = column_type(column.type)
        found[column.name] = known if isinstance(known, Unsupported) else evidence_of_type(known)
    return found


def _require_same_columns(scans: list[_FileScan]) -> None:
    first = scans[0]
    for other in scans[1:]:
        lacking = [name for name in first.columns if name not in other.columns]
        added = [name for name in other.columns if name not in first.columns]
        for names, has, lacks in ((lacking, first, other), (added, other, first)):
            if names:
                raise SchemaMismatchError(
                    f"expected the same columns in all files, found {_listed(names)} in "
                    f"{has.where} but not in {lacks.where}. Add the columns to all files or "
                    "remove them from all, or read the files as separate sources"
                )


def _merged(name: str, scans: list[_FileScan]) -> Found:
    """All evidence on one column; files whose kinds of values differ are refused."""
    merged: Found = Evidence.NOTHING
    first = ""
    for each in scans:
        found = each.columns[name]
        if not _kind(found):
            continue
        if first and _kind(found) != _kind(merged):
            raise SchemaMismatchError(
                f"column {name!r}: expected one type in all files, found {_kind(merged)} values "
                f"in {first} and {_kind(found)} values in {each.where}. Write the column in one "
                "type in all files, or exclude the files that differ"
            )
        first = first or each.where
        if isinstance(found, Evidence) and isinstance(merged, Evidence):
            merged |= found
        else:
            merged = found
    return merged


def _kind(found: Found) -> str:
    return str(found) if isinstance(found, Unsupported) else family(found)


def _listed(names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"{'column' if len(names) == 1 else 'columns'} {listed}"
