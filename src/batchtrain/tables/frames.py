"""In-memory rows (pandas, Arrow, plain mappings) as an Arrow table with plain types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables.names import check_names
from batchtrain.tables.safety import refuse_unsafe_types

__all__ = ["Rows", "frame_to_table"]

Rows: TypeAlias = Any
"""A pandas DataFrame, a `pyarrow.Table`, or a mapping from column name to a sequence of values."""

WHERE = "the given rows"


def frame_to_table(frame: Rows) -> pa.Table:
    """Take rows from memory; the index of a frame is left out, missing values become null.

    Nothing is coerced: a column whose values are of several types is refused. Use `conform` to
    bring the result to the types that are needed.

    Args:
        frame: A pandas DataFrame (plain, nullable, categorical or Arrow columns), a
            `pyarrow.Table`, or a mapping from name to a sequence, all of one length.

    Raises:
        SchemaMismatchError: If a column mixes types, or this is no table at all.
        DataError: If names repeat or are empty, or columns differ in length.
        UnsafeInputError: If a column has an Arrow extension type.
    """
    if isinstance(frame, pa.Table):
        names, arrays = frame.column_names, frame.columns
    elif isinstance(frame, Mapping):
        names = list(frame)
        arrays = [_array(name, values) for name, values in frame.items()]
    elif hasattr(frame, "columns") and hasattr(frame, "iloc"):  # pandas, without importing it
        names = list(frame.columns)
        arrays = [_array(name, frame.iloc[:, place]) for place, name in enumerate(names)]
    else:
        raise SchemaMismatchError(
            f"{WHERE}: expected a pandas DataFrame, a pyarrow Table or a mapping from column name "
            f"to values, found {type(frame).__name__}. Give the rows as one of these"
        )
    _check(names, arrays)
    if isinstance(frame, pa.Table):
        refuse_unsafe_types(frame.schema, WHERE)
        return frame
    table = pa.table(arrays, names=names)
    refuse_unsafe_types(table.schema, WHERE)
    return table


def _check(names: Sequence[Any], arrays: Sequence[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise SchemaMismatchError(
                f"{WHERE}: expected text for every column name, found {name!r} of type "
                f"{type(name).__name__}. Rename the column"
            )
    check_names(list(names), WHERE)
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{WHERE}: expected columns of one length, found {lengths}. "
            "Give every column a value for every row"
        )


def _array(name: object, values: Any) -> Any:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise SchemaMismatchError(
            f"column {name!r} of {WHERE}: expected a sequence of values, found {values!r}. "
            "Write [value] for a single row"
        )
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in list(values)[:10_000]})
        raise SchemaMismatchError(
            f"column {name!r} of {WHERE}: expected values of one type, found "
            f"{', '.join(kinds)} ({str(error)[:200]}). Convert the column to one type"
        ) from error
