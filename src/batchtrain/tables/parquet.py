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

__all__ = ["read_parquet", "read_schema"]

BATCH_ROWS = 65_536


def read_schema(file: SourceFile) -> pa.Schema:
    """The Arrow schema of a file; it holds plain types only, and names that differ.

    Raises:
        DataError: If this is not a whole, unencrypted Parquet file.
        UnsafeInputError: If a type of the file could run code.
    """
    with _parquet(file) as parquet:
        return parquet.schema_arrow


def read_parquet(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of the named columns, in this order, in tables of at most 65,536 rows.

    Raises:
        DataError: If the file is damaged, or changes while it is read.
        SchemaMismatchError: If a column is not there.
        UnsafeInputError: If a type of the file could run code.
    """
    with _parquet(file) as parquet:
        require_columns(parquet.schema_arrow.names, columns, str(file.path))
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
            # Arrow reads by the prefix of a path, so that `a` also brings a column `a.b`.
            yield pa.Table.from_batches([batch]).select(list(columns))


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
