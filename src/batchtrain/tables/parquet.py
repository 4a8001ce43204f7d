"""Read Parquet files, row group by row group, with every page checked against its checksum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from batchtrain.errors import DataError
from batchtrain.tables.names import check_names, require_columns
from batchtrain.tables.safety import refuse_unsafe_footer, refuse_unsafe_types
from batchtrain.tables.source import SourceFile, opened
from batchtrain.tables.types import is_bytes

__all__ = ["read_parquet", "read_schema", "row_groups"]

BATCH_ROWS = 65_536
WIDE_BATCH_ROWS = 1024
"""A batch of rows with lists or bytes, of which each may be as large as a thousand numbers."""


def read_schema(file: SourceFile) -> pa.Schema:
    """The Arrow schema of a file; it holds plain types only, and names that differ.

    Raises:
        DataError: If this is not a whole, unencrypted Parquet file.
        UnsafeInputError: If a type of the file could run code.
    """
    with _parquet(file) as parquet:
        return parquet.schema_arrow


def row_groups(file: SourceFile) -> list[int]:
    """The rows of each row group of a file.

    Raises:
        DataError: If this is not a whole, unencrypted Parquet file.
        UnsafeInputError: If a type of the file could run code.
    """
    with _parquet(file) as parquet:
        return _group_rows(parquet)


def read_parquet(
    file: SourceFile, columns: Sequence[str], *, first_row: int = 0, stop_row: int | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Yield rows of the named columns, in this order, in tables of at most 65,536 rows.

    Of lists and bytes, which may be large, there are at most 1024 in a table. Tables end where row
    groups end, so that they are the same wherever reading begins.

    Args:
        file: A file of a Parquet source.
        columns: The columns to read.
        first_row: A row of the file; row groups that end before it are skipped.
        stop_row: Row groups that begin at it or after it are not read; None: the end.

    Yields:
        The number in the file of a table's first row, and the table.

    Raises:
        DataError: If the file is damaged, or changes while it is read.
        SchemaMismatchError: If a column is not there.
        UnsafeInputError: If a type of the file could run code.
    """
    with _parquet(file) as parquet:
        require_columns(parquet.schema_arrow.names, columns, str(file.path))
        types = [parquet.schema_arrow.field(name).type for name in columns]
        is_wide = any(pa.types.is_nested(each) or is_bytes(each) for each in types)
        batch_rows = WIDE_BATCH_ROWS if is_wide else BATCH_ROWS
        row = 0
        for group, num_rows in enumerate(_group_rows(parquet)):
            if stop_row is not None and row >= stop_row:
                return
            if row + num_rows <= first_row:
                row += num_rows
                continue
            for batch in parquet.iter_batches(
                batch_rows, row_groups=[group], columns=list(columns)
            ):
                # Arrow reads by the prefix of a path, so that `a` also brings a column `a.b`.
                yield row, pa.Table.from_batches([batch]).select(list(columns))
                row += batch.num_rows


def _group_rows(parquet: pq.ParquetFile) -> list[int]:
    metadata = parquet.metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@contextmanager
def _parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    with opened(file) as handle:
        refuse_unsafe_footer(handle, str(file.path))
        try:
            parquet = pq.ParquetFile(handle, page_checksum_verification=True)
            refuse_unsafe_types(parquet.schema_arrow, str(file.path))
            check_names(parquet.schema_arrow.names, str(file.path))
            yield parquet
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file.path}: expected a whole, unencrypted Parquet file, found damage: "
                f"{str(error).strip()[:300]}. Write the file again, or remove it from the input"
            ) from error
