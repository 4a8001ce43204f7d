"""From the statistics of the training rows to the fitted preprocessor."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from batchtrain.errors import DataError
from batchtrain.preprocessing.fitted import FittedColumn, FittedPreprocessor, FittedTarget
from batchtrain.preprocessing.fitted_wide import (
    FittedImage,
    FittedText,
    FittedVector,
    FittedWide,
)
from batchtrain.preprocessing.statistics import (
    CategoryStatistics,
    ColumnStatistics,
    NumericStatistics,
    WideStatistics,
)
from batchtrain.spec.data import (
    BooleanColumn,
    CategoricalColumn,
    ColumnSpec,
    ImageColumn,
    NumericColumn,
    TextColumn,
    VectorColumn,
)

__all__ = ["fit_preprocessor"]


def fit_preprocessor(
    columns: Mapping[str, ColumnSpec],
    statistics: Mapping[str, ColumnStatistics],
    target: FittedTarget,
) -> FittedPreprocessor:
    """Decide fill values, scales and codes; a pure function of the merged statistics.

    Scales are those of the values that are present: a filled value does not narrow them.

    Raises:
        DataError: If a column has no value at all in the training rows.
    """
    fitted = []
    for name, spec in columns.items():
        found = statistics[name]
        if isinstance(spec, NumericColumn) and isinstance(found, NumericStatistics):
            fitted.append(_fit_numeric(name, spec, found))
        elif isinstance(spec, CategoricalColumn) and isinstance(found, CategoryStatistics):
            fitted.append(_fit_categorical(name, spec, found))
        elif isinstance(spec, BooleanColumn) and isinstance(found, CategoryStatistics):
            fitted.append(_fit_boolean(name, spec, found))
        elif isinstance(spec, TextColumn | VectorColumn | ImageColumn) and isinstance(
            found, WideStatistics
        ):
            fitted.append(_fit_wide(name, spec, found))
        else:
            raise TypeError(f"column {name!r}: {type(found).__name__} does not suit {spec.kind}")
    return FittedPreprocessor(columns=tuple(fitted), target=target)


def _fit_numeric(name: str, spec: NumericColumn, found: NumericStatistics) -> FittedColumn:
    _require_values(name, found.count)
    if not math.isfinite(found.m2):
        raise DataError(
            f"column {name!r}: expected numbers whose squares fit a float64, found "
            f"{found.minimum:g} to {found.maximum:g}. Divide the column by a constant, or list it "
            "under data.exclude"
        )
    fill: float | None = None
    if spec.missing == "mean":
        fill = found.mean
    elif spec.missing == "median":
        fill = found.quantile(0.5)
    elif spec.missing == "most_frequent":
        fill = found.mode()
    elif spec.missing == "constant":
        fill = spec.fill_value
    offset, divisor = _scale(spec, found)
    return FittedColumn(
        name=name,
        kind="numeric",
        missing=spec.missing,
        fill=fill,
        indicator=spec.indicator,
        offset=offset,
        divisor=divisor,
    )


def _scale(spec: NumericColumn, found: NumericStatistics) -> tuple[float, float]:
    """Offset and divisor; a constant column is only shifted (as scikit-learn's scalers do)."""
    if found.minimum == found.maximum and spec.scale != "none":
        # The deviation of equal values is rarely exactly 0: their mean is rounded.
        return found.minimum, 1.0
    if spec.scale == "standard":
        return found.mean, found.deviation or 1.0
    if spec.scale == "minmax":
        return found.minimum, found.maximum - found.minimum
    if spec.scale == "robust":
        spread = found.quantile(0.75) - found.quantile(0.25)
        return found.quantile(0.5), spread or 1.0
    return 0.0, 1.0


def _fit_categorical(name: str, spec: CategoricalColumn, found: CategoryStatistics) -> FittedColumn:
    _require_values(name, len(found.counts))
    fill: str | None = None
    if spec.missing == "most_frequent":
        fill = found.mode()
    elif spec.missing == "constant":
        fill = spec.fill_value
    categories = set(found.categories)
    if fill is not None:
        # A constant is a category of its own even where no training row is missing.
        categories.add(fill)
    return FittedColumn(
        name=name,
        kind="categorical",
        missing=spec.missing,
        fill=fill,
        indicator=spec.indicator,
        categories=tuple(sorted(categories, key=str.encode)),
    )


def _fit_boolean(name: str, spec: BooleanColumn, found: CategoryStatistics) -> FittedColumn:
    _require_values(name, len(found.counts))
    fill: bool | None = None
    if spec.missing == "most_frequent":
        fill = found.mode() == "true"
    elif spec.missing == "constant":
        fill = spec.fill_value
    return FittedColumn(
        name=name, kind="boolean", missing=spec.missing, fill=fill, indicator=spec.indicator
    )


def _fit_wide(
    name: str, spec: TextColumn | VectorColumn | ImageColumn, found: WideStatistics
) -> FittedColumn:
    _require_values(name, found.count)
    wide: FittedWide
    if isinstance(spec, TextColumn):
        wide = FittedText(spec.features, spec.words, spec.lowercase)
    elif isinstance(spec, ImageColumn):
        wide = FittedImage(spec.channels, spec.height, spec.width)
    elif spec.scale == "none":
        wide = FittedVector(spec.size)
    else:
        # Sums of equal float32 values are exact in float64, so that the deviation of a place that
        # never changes is exactly 0; it is only shifted then.
        divisors = np.where(found.m2 > 0, found.deviation, 1.0)
        wide = FittedVector(spec.size, tuple(found.mean.tolist()), tuple(divisors.tolist()))
    return FittedColumn(name=name, kind=spec.kind, missing=spec.missing, wide=wide)


def _require_values(name: str, count: int) -> None:
    if count == 0:
        raise DataError(
            f"column {name!r}: expected at least one value in the training rows, found none. "
            "List the column under data.exclude"
        )
