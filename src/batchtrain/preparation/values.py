"""Refuse targets and weights that no training can use, as soon as they were read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchtrain.errors import DataError
from batchtrain.preprocessing import FittedTarget, encode_target, row_weights
from batchtrain.spec.data import SPLITS

if TYPE_CHECKING:
    from batchtrain.preparation.survey import Survey

__all__ = ["refuse_values", "require_squares"]


def refuse_values(found: Survey, target: pa.ChunkedArray, weights: pa.ChunkedArray | None) -> None:
    """Hold the targets of a regression, and the weights, against what is done with them later.

    Args:
        found: What was decided about the rows; a row that is dropped may hold anything.
        target: The whole column.
        weights: The whole column, of numbers; None where rows have none.

    Raises:
        DataError: If a value cannot be used.
    """
    row_id = np.flatnonzero(found.split_of_row < len(SPLITS))
    used = pa.array(found.split_of_row < len(SPLITS))
    if found.data.weight is not None and weights is not None:
        row_weights(found.data.weight, weights.filter(used), row_id=row_id)
    if found.task == "regression":
        name = found.data.target
        values = encode_target(FittedTarget(name, "regression"), target.filter(used), row_id=row_id)
        train = values[found.split_of_row[row_id] == SPLITS.index("train")]
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
