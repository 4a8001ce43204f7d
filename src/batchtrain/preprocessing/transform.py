"""Apply a fitted preprocessor to a block of raw rows; the same for training and prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.errors import DataError
from batchtrain.preprocessing.fitted import FittedColumn, FittedPreprocessor, FittedTarget
from batchtrain.preprocessing.statistics import numbers
from batchtrain.preprocessing.wide import write_features
from batchtrain.tables import other_rows

RowIds = npt.NDArray[np.int64]

__all__ = [
    "Features",
    "class_names",
    "encode_target",
    "missing_rows",
    "row_weights",
    "transform",
]


@dataclass(frozen=True)
class Features:
    """The model's inputs for a block of n rows.

    Attributes:
        numeric: float32 `[n, F]`, finite.
        codes: int64 `[n, C]`; 0 is unknown.
        usable: bool `[n]`; False where a value is missing whose policy is `drop`.
        filled: Column to the number of missing values that were replaced.
        unseen: Column to the number of values that the training rows do not have.
    """

    numeric: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    usable: npt.NDArray[np.bool_]
    filled: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)


def transform(fitted: FittedPreprocessor, table: pa.Table, *, row_id: RowIds) -> Features:
    """Turn raw rows into the model's inputs; each row depends on that row alone.

    Args:
        fitted: What the training rows taught.
        table: The columns of `fitted.input_types`, in canonical types.
        row_id: int64 `[n]`, the number of each row in the input, for messages.

    Raises:
        DataError: If a number is infinite or too large for float32, or a value is missing whose
            policy is `error`.
    """
    rows = table.num_rows
    numeric = np.empty((rows, fitted.num_numeric), dtype=np.float32)
    codes = np.empty((rows, len(fitted.cardinalities)), dtype=np.int64)
    usable = np.ones(rows, dtype=np.bool_)
    filled: dict[str, int] = {}
    unseen: dict[str, int] = {}
    next_numeric = next_code = 0
    for column in fitted.columns:
        values = table[column.name]
        missing = missing_rows(values)
        if column.missing == "drop":
            usable &= ~missing
        elif missing.any():
            _refuse_missing(column, missing, row_id)
            filled[column.name] = int(missing.sum())
        if column.wide is not None:
            end = next_numeric + column.num_numeric
            write_features(column, values, row_id, numeric[:, next_numeric:end])
            next_numeric = end
        elif column.kind == "categorical":
            codes[:, next_code] = _encode(column, values)
            strange = int(np.count_nonzero((codes[:, next_code] == 0) & ~missing))
            if strange:
                unseen[column.name] = strange
            next_code += 1
        else:
            numeric[:, next_numeric] = _scaled(column, values, missing, row_id)
            next_numeric += 1
        if column.indicator:
            numeric[:, next_numeric] = missing
            next_numeric += 1
    return Features(numeric=numeric, codes=codes, usable=usable, filled=filled, unseen=unseen)


def encode_target(
    target: FittedTarget, column: pa.ChunkedArray, *, row_id: RowIds
) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """The target of a block: class codes int64 `[n]`, or values float64 `[n]`.

    Raises:
        DataError: If a class is not among the training rows' classes, or a value is not finite.
    """
    if target.task == "regression":
        values = numbers(column)
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                f"target {target.name!r}: expected finite numbers, found "
                f"{values[bad][0]} in row {row_id[np.argmax(bad)]}. Clean that row"
            )
        return values
    codes = _positions(class_names(column), target.classes)
    unknown = codes < 0
    if unknown.any():
        row = int(np.argmax(unknown))
        raise DataError(
            f"target {target.name!r}: expected one of the classes of the training rows "
            f"{list(target.classes)[:10]}, found {column[row].as_py()!r} in row "
            f"{row_id[row]}. Use `data.split: {{kind: stratified}}`, which puts every class "
            "with at least 3 rows into every split, or remove that class"
        )
    return codes


def row_weights(name: str, column: pa.ChunkedArray, *, row_id: RowIds) -> npt.NDArray[np.float32]:
    """What the rows of a block weigh: float32 `[n]`.

    Raises:
        DataError: If a weight is missing, negative, not finite, or not within float32.
    """
    values = numbers(column)
    with np.errstate(over="ignore", under="ignore"):
        weights = values.astype(np.float32)
    # Below the normal numbers of float32 a weight would lose its digits, and its effect.
    is_lost = (values > 0) & (weights < np.finfo(np.float32).tiny)
    bad = ~np.isfinite(weights) | (values < 0) | is_lost
    if bad.any():
        row = int(np.argmax(bad))
        found = "no value" if np.isnan(values[row]) else f"{values[row]}"
        raise DataError(
            f"column of weights {name!r}: expected 0 or a finite number above it, within float32, "
            f"found {found} in row {row_id[row]}{other_rows(bad)}. "
            "Give each row a weight; 0 leaves it out of the losses"
        )
    return weights


def class_names(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A target of whole numbers, names, or true and false as text: its class names."""
    return column.cast(pa.string())


def missing_rows(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Which values are missing: bool `[n]`."""
    return np.asarray(pc.is_null(column, nan_is_null=True), dtype=np.bool_)


def _refuse_missing(column: FittedColumn, missing: npt.NDArray[np.bool_], row_id: RowIds) -> None:
    if column.missing == "error":
        raise DataError(
            f"column {column.name!r}: expected a value in every row (its policy is "
            f"`missing: error`), found none in row {row_id[np.argmax(missing)]}"
            f"{other_rows(missing)}. Fill it, or train with another policy"
        )


def _scaled(
    column: FittedColumn, values: pa.ChunkedArray, missing: npt.NDArray[np.bool_], row_id: RowIds
) -> npt.NDArray[np.float32]:
    raw = numbers(values)
    if missing.any():
        # A row that is dropped keeps a finite number, so that the check below is for real values.
        raw = np.where(missing, column.offset if column.fill is None else column.fill, raw)
    with np.errstate(over="ignore"):
        scaled = ((raw - column.offset) / column.divisor).astype(np.float32)
    bad = ~np.isfinite(scaled)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"column {column.name!r}: expected finite numbers within float32, found {raw[row]} "
            f"in row {row_id[row]}{other_rows(bad)}. Correct the value, or make it a missing one"
        )
    return scaled


def _encode(column: FittedColumn, values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    if column.fill is not None:
        values = pc.fill_null(values, str(column.fill))
    return _positions(values, column.categories) + 1


def _positions(column: pa.ChunkedArray, known: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The place of each value in `known`, -1 where it is missing or not there; int64 `[n]`."""
    # `skip_nulls` keeps a missing value from matching anything.
    places = pc.index_in(column, value_set=pa.array(known, type=pa.string()), skip_nulls=True)
    return np.asarray(pc.fill_null(places, -1), dtype=np.int64)
