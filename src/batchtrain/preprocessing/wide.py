"""Columns that become several features: texts, vectors and images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.preprocessing.fitted import FittedColumn
from batchtrain.preprocessing.fitted_wide import FittedText, FittedVector
from batchtrain.preprocessing.vectors import write_numbers
from batchtrain.preprocessing.words import write_words

__all__ = ["write_features"]


def write_features(
    column: FittedColumn,
    values: pa.ChunkedArray,
    row_id: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Write the features of a column; a row without a value gets zeros.

    Args:
        column: One with `wide`.
        values: The raw values `[n]`, in the canonical type of the kind.
        row_id: int64 `[n]`, the number of each row in the input, for messages.
        out: float32 `[n, W]`; every element is written.

    Raises:
        DataError: If a value cannot be used; it names the column and the row.
    """
    wide = column.wide
    if isinstance(wide, FittedText):
        write_words(values, wide, out)
    elif isinstance(wide, FittedVector):
        write_numbers(values, wide, out, name=column.name, row_id=row_id)
    elif wide is not None:
        # Pillow is for those alone who have images.
        from batchtrain.preprocessing.images import write_pixels

        write_pixels(values, wide, out, name=column.name, row_id=row_id)
