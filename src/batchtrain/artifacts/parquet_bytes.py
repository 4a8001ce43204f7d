"""The one Parquet writer and reader for artifacts: equal tables give equal bytes."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from batchtrain.tables.safety import refuse_unsafe_footer, refuse_unsafe_types

__all__ = ["parquet_bytes", "table_from_bytes"]

ROW_GROUP_ROWS = 65_536


def parquet_bytes(table: pa.Table) -> bytes:
    """Write a table; the bytes depend on its values and column types alone.

    Chunks are combined first, and row groups, codec and encodings are fixed: the way in which a
    table happened to be put together must not show.
    """
    sink = pa.BufferOutputStream()
    # A new schema drops what a column remembers of the file that it was read from.
    plain = pa.schema([(field.name, field.type) for field in table.schema])
    pq.write_table(
        table.combine_chunks().cast(plain),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="lz4",
        use_dictionary=False,
        write_statistics=False,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def table_from_bytes(data: bytes, *, where: str) -> pa.Table:
    """Read what `parquet_bytes` wrote.

    Raises:
        UnsafeInputError: If the file holds an Arrow extension type, which could run code.
    """
    # Before Arrow sees the file: merely opening it would call the class of an extension type.
    refuse_unsafe_footer(io.BytesIO(data), where)
    file = pq.ParquetFile(pa.BufferReader(data))
    refuse_unsafe_types(file.schema_arrow, where)
    return file.read()
