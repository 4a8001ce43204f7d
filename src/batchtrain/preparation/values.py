"""Refuse targets and weights that no training can use, as soon as they were read."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.errors import DataError
from batchtrain.preprocessing import FittedTarget, encode_target, row_weights
from batchtrain.spec.data import SPLITS, DataSpec

__all__ = ["refuse_values", "require_squares"]


def refuse_values(
    data: DataSpec,
    split_of_row: npt.NDArray[np.uint8],
    target: pa.ChunkedArray,
    weights: pa.ChunkedArray | None,
) -> None:
    """Hold the targets of a regression, and the weights, against what is done with them later.

    Args:
        data: The section, with its task.
        split_of_row: `[N]`, the place in `SPLITS`; a row that is in none may hold anything.
        target: The whole column.
        weights: The whole column, of numbers; None where rows have none.

    Raises:
        DataError: If a value cannot be used.
    """
    row_id = np.flatnonzero(split_of_row < len(SPLITS))
    used = pa.array(split_of_row < len(SPLITS))
    if data.weight is not None and weights is not None:
        row_weights(data.weight, weights.filter(used), row_id=row_id)
    if data.task == "regression":
        name = data.target
        values = encode_target(FittedTarget(name, "regression"), target.filter(used), row_id=row_id)
        train = values[split_of_row[row_id] == SPLITS.index("train")]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(((train - train.mean()) ** 2).sum())
        require_squares(name, float(train.min()), float(train.max()), squares)


def require_squares(name: str, minimum: float, maximum: float, squares: float) -> None:
    """Refuse a target whose deviation is no number.

    Args:
        name: The column.
        minimum: Its least value.
        maximum: Its greatest.
        squares: The sum of squares about the mean.

    Raises:
        DataError: If they do not fit a float64.
    """
    if minimum < maximum and not math.isfinite(squares):
        raise DataError(
            f"target {name!r}: expected numbers whose squares fit a float64, found "
            f"{minimum:g} to {maximum:g}. Divide the column by a constant"
        )
