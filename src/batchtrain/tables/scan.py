"""Read every row of a source once, to learn its columns, their types and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import pyarrow as pa

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables.arrow_files import read_arrow, read_arrow_schema
from batchtrain.tables.conform import conform, plain_values
from batchtrain.tables.delimited import read_names, read_text
from batchtrain.tables.infer import (
    Evidence,
    column_type_of,
    evidence_of_cells,
    evidence_of_integers,
    evidence_of_type,
    family,
)
from batchtrain.tables.json_lines import read_keys, scan_json_lines
from batchtrain.tables.parquet import read_parquet, read_schema, row_groups
from batchtrain.tables.samples import SAMPLES
from batchtrain.tables.source import Source, SourceFile, no_rows, num_files, where_of
from batchtrain.tables.types import ColumnType, TableSchema, Unsupported, column_type

__all__ = ["ScanItem", "column_names", "merge_scans", "scan", "scan_item", "scan_items"]

Found: TypeAlias = Evidence | Unsupported

SCAN_BYTES = 256 << 20
"""A Parquet file that is larger is looked at in parts of about this size."""


@dataclass(frozen=True)
class ScanItem:
    """Rows that are looked at in one go: a file, or some row groups of a large one.

    Attributes:
        place: The file's place in the source.
        first_row: The number in the file of the first row.
        stop_row: The row after the last; None: the end of the file.
    """

    place: int
    first_row: int = 0
    stop_row: int | None = None


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

    def add(self, other: _FileScan) -> None:
        """Add what another part of the same file holds."""
        self.num_rows += other.num_rows
        for name, missing in other.missing.items():
            self.missing[name] = self.missing.get(name, 0) + missing


def scan(source: Source) -> TableSchema:
    """Learn the columns and types from all rows of all files, in this process.

    In CSV files a column is "integer" if every cell is an int64, "number" if every cell is a
    number (`inf` included), "boolean" if every cell is true or false, else "string". Digits that
    are no int64 (leading zeros, too many), and whole numbers beyond 2**53 between fractions,
    make the column "string": identifiers stay exact. A `nan` that is not a null value is text.
    So it is in files of JSON lines, where one text (in quotes) makes its column "string".

    Files may differ in the order of columns, in integers against floats ("number" holds both),
    and in columns without any value.

    Raises:
        DataError: If a file cannot be read, or there is no row.
        SchemaMismatchError: If files differ in their columns, or in the types of a column.
        UnsafeInputError: If a type of a file could run code.
    """
    items = scan_items(source)
    return merge_scans(source, items, (scan_item(source, item) for item in items))


def scan_items(source: Source) -> list[ScanItem]:
    """What to look at, in the order of the rows; of large Parquet files the footers are read."""
    items: list[ScanItem] = []
    for place in range(num_files(source)):
        items.extend(_items_of_file(source, place))
    return items


def scan_item(source: Source, item: ScanItem) -> tuple[pa.Table, pa.Table]:
    """Look at all rows of an item, in bounded memory.

    Returns:
        For `merge_scans`: one row on the item, and one row for each column.

    Raises:
        DataError: If the file cannot be read.
        UnsafeInputError: If a type of the file could run code.
    """
    found = _scanned(source, item)
    about = pa.table({"rows": pa.array([found.num_rows], pa.int64())})
    names = list(found.columns)
    unsupported = [
        each.arrow_type if isinstance(each, Unsupported) else None
        for each in found.columns.values()
    ]
    evidence = [
        int(each) if isinstance(each, Evidence) else None for each in found.columns.values()
    ]
    columns = {
        "name": pa.array(names, pa.string()),
        "evidence": pa.array(evidence, pa.int64()),
        "unsupported": pa.array(unsupported, pa.string()),
        "missing": pa.array([found.missing.get(name) for name in names], pa.int64()),
    }
    return about, pa.table(columns)


def merge_scans(
    source: Source, items: Sequence[ScanItem], parts: Iterable[tuple[pa.Table, ...]]
) -> TableSchema:
    """Decide on columns and types from what `scan_item` found, in the order of the items.

    Raises:
        DataError: If there is no row.
        SchemaMismatchError: If files differ in their columns, or in the types of a column.
    """
    scans: list[_FileScan] = []
    for item, (about, columns) in zip(items, parts, strict=True):
        found = _file_scan(where_of(source, item.place), about, columns)
        if item.first_row:
            scans[-1].add(found)
        else:
            scans.append(found)
    _require_same_columns(scans)
    num_rows = sum(each.num_rows for each in scans)
    if num_rows == 0:
        raise no_rows(source)
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
        rows_of_files=tuple(each.num_rows for each in scans),
        wide=frozenset(
            name
            for name, found in columns.items()
            if isinstance(found, Evidence)
            and found & Evidence.WIDE
            and column_type_of(found) == "integer"
        ),
    )


def column_names(source: Source) -> tuple[str, ...]:
    """The column names of all files, each once, in the order of their first appearance.

    Only headers and footers are read; files of JSON lines, which have none, are read whole.
    """
    if source.kind == "sample":
        return tuple(SAMPLES[source.sample]().column_names)
    read = NAMES_OF[source.kind]
    return tuple(dict.fromkeys(name for file in source.files for name in read(file)))


NAMES_OF: Mapping[str, Callable[[SourceFile], Sequence[str]]] = {
    "csv": read_names,
    "jsonl": read_keys,
    "parquet": lambda file: read_schema(file).names,
    "arrow": lambda file: read_arrow_schema(file).names,
}


def _items_of_file(source: Source, place: int) -> Iterator[ScanItem]:
    """One item, or several for a large Parquet file."""
    groups: list[int] = []
    if source.kind == "parquet" and source.files[place].size > SCAN_BYTES:
        # Whoever looks at the rows says what is wrong with a footer that cannot be read.
        with suppress(DataError):
            groups = row_groups(source.files[place])
    if not groups:
        yield ScanItem(place)
        return
    at_most = sum(groups) * SCAN_BYTES // source.files[place].size
    first = row = 0
    for num_rows in groups:
        if row > first and row + num_rows - first > at_most:
            yield ScanItem(place, first, row)
            first = row
        row += num_rows
    yield ScanItem(place, first, None)


def _scanned(source: Source, item: ScanItem) -> _FileScan:
    where = where_of(source, item.place)
    if source.kind == "sample":
        table = SAMPLES[source.sample]()
        return _typed_scan(where, table.schema, iter([(0, table)]))
    file = source.files[item.place]
    if source.kind == "csv":
        return _text_scan(file, source.null_values)
    if source.kind == "jsonl":
        return _json_scan(file, source.null_values)
    is_arrow = source.kind == "arrow"
    schema = read_arrow_schema(file) if is_arrow else read_schema(file)
    found = _of_schema(schema)
    readable = [name for name in found if not isinstance(found[name], Unsupported)]
    if is_arrow:
        return _typed_scan(where, schema, read_arrow(file, readable))
    tables = read_parquet(file, readable, first_row=item.first_row, stop_row=item.stop_row)
    return _typed_scan(where, schema, tables)


def _file_scan(where: str, about: pa.Table, columns: pa.Table) -> _FileScan:
    """Read what `scan_item` made."""
    found: dict[str, Found] = {}
    missing = {}
    for row in columns.to_pylist():
        evidence = row["evidence"]
        found[row["name"]] = (
            Unsupported(row["unsupported"]) if evidence is None else Evidence(evidence)
        )
        if row["missing"] is not None:
            missing[row["name"]] = row["missing"]
    return _FileScan(where, found, about["rows"][0].as_py(), missing)


def _text_scan(file: SourceFile, null_values: tuple[str, ...]) -> _FileScan:
    result = _FileScan(str(file.path), dict.fromkeys(read_names(file), Evidence.NOTHING))
    for table in read_text(file, None, null_values):
        for name, cells in result.count(table).items():
            known = result.columns[name]
            # Once a column is text, no other cell can change it.
            if isinstance(known, Evidence) and family(known) != "string":
                result.columns[name] = known | evidence_of_cells(cells)
    return result


def _json_scan(file: SourceFile, null_values: tuple[str, ...]) -> _FileScan:
    result = _FileScan(str(file.path), {})
    for num_rows, columns in scan_json_lines(file, null_values):
        for name, column in columns.items():
            # A key that comes late was missing in all rows before.
            before = result.missing.get(name, result.num_rows)
            result.missing[name] = before + column.missing
            known = result.columns.get(name, Evidence.NOTHING)
            if isinstance(known, Evidence) and isinstance(column.found, Evidence):
                result.columns[name] = known | column.found
            elif isinstance(known, Evidence):
                result.columns[name] = column.found
        result.num_rows += num_rows
    return result


def _typed_scan(where: str, schema: pa.Schema, tables: Iterator[tuple[int, pa.Table]]) -> _FileScan:
    result = _FileScan(where, _of_schema(schema))
    unsigned: dict[str, ColumnType] = {
        name: "integer" for name in schema.names if pa.types.is_uint64(schema.field(name).type)
    }
    for row, table in tables:
        if unsigned:
            conform(table, unsigned, first_row=row, where=where)
        for name, values in result.count(table).items():
            known = result.columns[name]
            if known == Evidence.INTEGER and pa.types.is_int64(values.type):
                result.columns[name] = evidence_of_integers(values)
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
