"""Read Arrow IPC files and streams, record batch by record batch, each one validated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader

import pyarrow as pa

from batchtrain.errors import DataError
from batchtrain.tables.ipc_safety import IpcLayout, refuse_unsafe_ipc
from batchtrain.tables.names import check_names, require_columns
from batchtrain.tables.safety import refuse_unsafe_types
from batchtrain.tables.source import SourceFile, opened

__all__ = ["read_arrow", "read_arrow_schema"]

PIECE_ROWS = 65_536


@dataclass(frozen=True)
class _Ipc:
    """An open file.

    Attributes:
        schema: Of all its columns.
        handle: At its beginning.
        layout: File or stream.
    """

    schema: pa.Schema
    handle: BufferedReader
    layout: IpcLayout


def read_arrow_schema(file: SourceFile) -> pa.Schema:
    """The schema of a file; it holds plain types only, and names that differ.

    Raises:
        DataError: If this is not a whole Arrow IPC file or stream.
        UnsafeInputError: If a type of the file could run code.
    """
    with _ipc(file) as ipc:
        return ipc.schema


def read_arrow(file: SourceFile, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield rows of the named columns, in this order, in tables of at most 65,536 rows.

    One record batch is in memory at a time; how large it is was decided when it was written.
    Arrow trusts what it reads, so that a damaged file could make it read beyond its buffers:
    every batch is checked in full before a value of it is used.

    Args:
        file: An Arrow IPC file (also Feather version 2) or stream, by its content.
        columns: The columns to read.

    Yields:
        The number in the file of a table's first row, and the table.

    Raises:
        DataError: If the file is damaged or cut off, or changes while it is read.
        SchemaMismatchError: If a column is not there.
        UnsafeInputError: If a type of the file could run code.
    """
    with _ipc(file) as ipc:
        require_columns(ipc.schema.names, columns, str(file.path))
        places = sorted(ipc.schema.get_field_index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(included_fields=places)
        row = 0
        for batch in _batches(file, ipc, options):
            batch.validate(full=True)
            table = pa.Table.from_batches([batch]).select(list(columns))
            for start in range(0, table.num_rows, PIECE_ROWS):
                yield row + start, table.slice(start, PIECE_ROWS)
            row += table.num_rows


def _batches(
    file: SourceFile, ipc: _Ipc, options: pa.ipc.IpcReadOptions
) -> Iterator[pa.RecordBatch]:
    ipc.handle.seek(0)
    if ipc.layout == "file":
        with pa.ipc.open_file(ipc.handle, options=options) as reader:
            for place in range(reader.num_record_batches):
                yield reader.get_batch(place)
        return
    with pa.ipc.open_stream(ipc.handle, options=options) as reader:
        yield from reader
        # A stream that is cut between two batches would end like a whole one.
        end = ipc.handle.tell()
    if end != file.size:
        raise DataError(
            f"{file.path}: expected one Arrow stream, found {file.size - end} more bytes behind "
            f"its end at byte {end}. Write the file again as one stream"
        )


@contextmanager
def _ipc(file: SourceFile) -> Iterator[_Ipc]:
    with opened(file) as handle:
        layout = refuse_unsafe_ipc(handle, str(file.path))
        try:
            opening = pa.ipc.open_file if layout == "file" else pa.ipc.open_stream
            with opening(handle) as reader:
                schema = reader.schema
            refuse_unsafe_types(schema, str(file.path))
            check_names(schema.names, str(file.path))
            yield _Ipc(schema, handle, layout)
        except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
            # A length that is damaged asks for more memory than there is.
            what = str(error).strip()[:300] or type(error).__name__
            raise DataError(
                f"{file.path}: expected a whole Arrow IPC {layout}, found damage: {what}. "
                "Write the file again, or remove it from the input"
            ) from error
