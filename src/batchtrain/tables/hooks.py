"""Rows that an object of the user's yields, as files that are read like any others.

The object is asked for its rows once. They go block by block to Parquet files in a temporary
folder, and are hashed on the way. So whatever reads them afterwards, as often as it needs, reads
the same rows; random transforms in the object cannot make two passes differ.

An object is a sequence (`__len__` and `__getitem__`), or can be iterated (`__iter__`). What it
yields is a row, a mapping from column to value, or a table of rows (pyarrow or pandas).
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchtrain.errors import BatchtrainError, DataError, SchemaMismatchError, StorageError
from batchtrain.tables.frames import frame_to_table
from batchtrain.tables.row_files import RowFiles, other_columns, rows_of_file
from batchtrain.tables.safety import refuse_unsafe_types
from batchtrain.tables.source import Source, open_source

__all__ = ["written_rows"]


@contextmanager
def written_rows(
    make: Callable[[], Any],
    text: str,
    code_sha256: str,
    *,
    told: Callable[[int], None] = lambda _rows: None,
) -> Iterator[Source]:
    """Write all rows of an object to temporary files; they are gone when the block ends.

    Args:
        make: Makes the object.
        text: The source as it stands in the spec.
        code_sha256: The hash of the code that makes the rows. With the hash of the rows it stands
            for the content of the source: a change of either is another input.
        told: Hears how many rows are written.

    Raises:
        DataError: If the object fails, yields something that is no row, or changes its length.
        SchemaMismatchError: If rows differ in their columns, or in the types of a column.
        StorageError: If the temporary folder has no room.
    """
    where = f"source {text!r}"
    with _temporary_folder(where) as folder:
        with _room_for_rows(where):
            sha256 = _write(_made(make, where), folder, where, told)
        found = open_source(".", base=folder, null_values=())
        yield replace(found, text=text, hashes=(("rows", sha256), ("code", code_sha256)))


@contextmanager
def _temporary_folder(where: str) -> Iterator[Path]:
    with _room_for_rows(where):
        folder = tempfile.TemporaryDirectory(prefix="batchtrain-rows-")
    with folder as name:
        yield Path(name)


@contextmanager
def _room_for_rows(where: str) -> Iterator[None]:
    """Say what is missing; an error of the user's code is another one by now."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{where}: expected room for its rows in {tempfile.gettempdir()}, found: "
            f"{error.strerror or error}. Make room, or name another folder in TMPDIR"
        ) from error


def _write(rows: Any, folder: Path, where: str, told: Callable[[int], None]) -> str:
    """Write the rows and return their hash."""
    files = RowFiles(folder, where)
    for table in _tables(rows, where):
        files.add(table)
        told(files.num_rows)
    files.close()
    if not files.num_rows:
        raise DataError(f"{where}: expected rows, found none. Look at what the class yields")
    return str(files.digest.hexdigest())


# ----------------------------------------------------------------------------------------------
# What the object yields


def _made(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except Exception as error:
        raise _failed(where, "the class to make an object", error) from error


def _tables(rows: Any, where: str) -> Iterator[pa.Table]:
    """What the object yields, as tables; rows that come one by one are gathered."""
    gathered = _Gathered(where)
    for item in _items(rows, where):
        if isinstance(item, Mapping):
            gathered.add(item)
            if gathered.is_full:
                yield gathered.take()
            continue
        if gathered.num_rows:
            yield gathered.take()
        table = _table(item, where, gathered.seen)
        gathered.seen += table.num_rows
        yield table
    if gathered.num_rows:
        yield gathered.take()


def _items(rows: Any, where: str) -> Iterator[Any]:
    """Every item, once; a length that the object tells of must be right before and after."""
    kind = type(rows)
    is_sequence = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    if not hasattr(kind, "__iter__") and not is_sequence:
        raise DataError(
            f"{where}: expected an object with `__iter__`, or with `__len__` and `__getitem__`, "
            f"found a {kind.__name__} without. Define one of them"
        )
    length = _length(rows, where)
    # A torch Dataset that is to be iterated has a __getitem__ that only raises.
    by_place = not hasattr(kind, "__iter__")
    count = 0
    items = (rows[place] for place in range(length or 0)) if by_place else _iterated(rows, where)
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except BatchtrainError:
            raise
        except Exception as error:
            raise _failed(where, f"item {count}", error) from error
        yield item
        count += 1
    after = _length(rows, where)
    if length is not None and (count, after) != (length, length):
        found = f"{count} items" if count != length else f"a length of {after} after the last"
        raise DataError(
            f"{where}: expected {length} items, which `__len__` tells, found {found}. The length "
            "must be that of what is yielded, and must not change"
        )


def _iterated(rows: Any, where: str) -> Iterator[Any]:
    try:
        return iter(rows)
    except Exception as error:
        raise _failed(where, "`__iter__` to begin", error) from error


def _length(rows: Any, where: str) -> int | None:
    if not hasattr(type(rows), "__len__"):
        return None
    try:
        return len(rows)
    except Exception as error:
        raise _failed(where, "`__len__` to give a length", error) from error


@dataclass
class _Gathered:
    """Rows that came one by one, column by column.

    Attributes:
        where: For messages.
        seen: Rows of the object so far, these included.
        num_rows: How many are waiting.
        values: Column to the values of those.
    """

    where: str
    seen: int = 0
    num_rows: int = 0
    values: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether these are as many as a file has."""
        return self.num_rows >= rows_of_file(len(self.values))

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row; all rows have the columns of the first one."""
        if not self.values:
            # Names are checked where rows are a table.
            _table({name: [None] for name in row}, self.where, self.seen)
            self.values = {name: [] for name in row}
        if row.keys() != self.values.keys():
            raise other_columns(self.where, self.seen, list(self.values), list(row))
        for name, values in self.values.items():
            values.append(row[name])
        self.num_rows += 1
        self.seen += 1

    def take(self) -> pa.Table:
        """The rows as a table; the columns stay known."""
        first = self.seen - self.num_rows
        arrays = {name: _array(values) for name, values in self.values.items()}
        mixed = {name: self.values[name] for name, array in arrays.items() if array is None}
        # Whoever reads rows from memory says what is wrong with these.
        table = _table(mixed, self.where, first) if mixed else pa.table(arrays)
        self.values = {name: [] for name in self.values}
        self.num_rows = 0
        return table


def _array(values: list[Any]) -> pa.Array | None:
    """Values as Arrow has them, tensors without dimensions as numbers; None if types are mixed."""
    for has_tensors in (False, True):
        try:
            known = [_plain(value) for value in values] if has_tensors else values
            return pa.array(known, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    return None


def _plain(value: Any) -> Any:
    """A value, or a tensor as a number or an array."""
    if not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else array


def _table(rows: Any, where: str, first_row: int) -> pa.Table:
    """Rows as a table, or an error that says what was found in their place."""
    is_table = isinstance(rows, pa.Table | Mapping) or hasattr(rows, "iloc")
    if isinstance(rows, pa.RecordBatch):
        rows, is_table = pa.Table.from_batches([rows]), True
    if not is_table:
        raise SchemaMismatchError(
            f"{where}, row {first_row}: expected a mapping from column to value, or a table of "
            f"pyarrow or pandas, found a {type(rows).__name__}. Give each value the name of its "
            "column, such as {'x': 1.5, 'y': 'a'}"
        )
    try:
        table = frame_to_table(rows)
    except BatchtrainError as error:
        raise type(error)(f"{where}, from row {first_row} on: {error}") from error
    refuse_unsafe_types(table.schema, where)
    return table


def _failed(where: str, wanted: str, error: Exception) -> DataError:
    """The error for an object that fails; it says where in the user's code."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return DataError(
        f"{where}: expected {wanted}, found {type(error).__name__}: {error}{place}. "
        "Correct the class"
    )
