"""Lists of numbers as features, and the statistics that scale them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.preprocessing.fitted_wide import FittedVector
from batchtrain.tables import other_rows

__all__ = ["check_sizes", "pieces_of_vectors", "write_numbers"]

PIECE_NUMBERS = 1 << 20
"""So many numbers are float64 at once."""

Matrix = npt.NDArray[np.float32]
RowIds = npt.NDArray[np.int64]


def check_sizes(values: pa.ChunkedArray, size: int, *, name: str, row_id: RowIds) -> None:
    """Make sure that all lists that are there have one length.

    Args:
        values: Lists `[n]`.
        size: The length.
        name: The column, for messages.
        row_id: int64 `[n]`, the number of each row in the input, for messages.

    Raises:
        SchemaMismatchError: If one has another.
    """
    lengths = np.asarray(pc.fill_null(pc.list_value_length(values), size))
    wrong = lengths != size
    if wrong.any():
        row = int(np.argmax(wrong))
        raise SchemaMismatchError(
            f"column {name!r}: expected lists of {size} numbers (its `size`), found {lengths[row]} "
            f"in row {row_id[row]}{other_rows(wrong)}. Correct the row, or train with "
            "another `size`"
        )


def pieces_of_vectors(
    values: pa.ChunkedArray, size: int, *, name: str, row_id: RowIds
) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
    """Yield the lists that are there, some at a time: their places `[m]` and numbers `[m, size]`.

    Raises:
        SchemaMismatchError: If a list has another length.
    """
    check_sizes(values, size, name=name, row_id=row_id)
    rows = max(1, PIECE_NUMBERS // size)
    for start in range(0, len(values), rows):
        piece = values.slice(start, rows).combine_chunks()
        places = start + np.flatnonzero(np.asarray(piece.is_valid()))
        yield places, np.asarray(piece.flatten()).reshape(-1, size)


def write_numbers(
    values: pa.ChunkedArray, fitted: FittedVector, out: Matrix, *, name: str, row_id: RowIds
) -> None:
    """Write the features of lists: their numbers, scaled where that was asked for.

    Args:
        values: large_list<float32> `[n]`.
        fitted: The length, and the scales of the training rows.
        out: float32 `[n, size]`; zeros where a list is missing.
        name: The column, for messages.
        row_id: int64 `[n]`, the number of each row in the input, for messages.

    Raises:
        SchemaMismatchError: If a list has another length.
        DataError: If a scaled number is beyond float32.
    """
    out[:] = 0
    offsets, divisors = np.array(fitted.offsets), np.array(fitted.divisors)
    for places, numbers in pieces_of_vectors(values, fitted.size, name=name, row_id=row_id):
        if not len(offsets):
            out[places] = numbers
            continue
        with np.errstate(over="ignore"):
            scaled = ((numbers - offsets) / divisors).astype(np.float32)
        bad = ~np.isfinite(scaled)
        if bad.any():
            row, place = (int(found[0]) for found in np.nonzero(bad))
            raise DataError(
                f"column {name!r}: expected numbers that are within float32 when they are scaled, "
                f"found {numbers[row, place]} at place {place} in row {row_id[places[row]]}, "
                f"{math.inf} after scaling. Correct the row, or train with `scale: none`"
            )
        out[places] = scaled
