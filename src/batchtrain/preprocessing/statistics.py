"""Statistics of a block of training rows, and how the blocks' statistics are merged.

All sums are float64 and merged by a fixed tree in block order, so that the result does not
depend on which process looked at which block, or when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.errors import DataError
from batchtrain.preprocessing.vectors import pieces_of_vectors
from batchtrain.spec.data import (
    ColumnSpec,
    ImageColumn,
    NumericColumn,
    TextColumn,
    VectorColumn,
)
from batchtrain.tables import other_rows

__all__ = [
    "CategoryStatistics",
    "ColumnStatistics",
    "NumericStatistics",
    "WideStatistics",
    "block_statistics",
    "merge_statistics",
    "merge_tree",
    "numbers",
]

Float64Array = npt.NDArray[np.float64]
Part = TypeVar("Part")


@dataclass(frozen=True)
class NumericStatistics:
    """Of the values that are present in a numeric column.

    Attributes:
        count: Values present.
        mean: Their mean, 0.0 if there are none.
        m2: The sum of squared distances from the mean.
        minimum: inf if there are none.
        maximum: -inf if there are none.
        values: The values themselves, ascending, where an exact quantile or mode was asked for.
    """

    count: int
    mean: float
    m2: float
    minimum: float
    maximum: float
    values: Float64Array | None = None

    def merge(self, other: NumericStatistics) -> NumericStatistics:
        """Statistics of both together (Chan, Golub and LeVeque 1979, the pairwise update)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        values = None
        if self.values is not None and other.values is not None:
            values = np.sort(np.concatenate([self.values, other.values]), kind="stable")
        return NumericStatistics(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            values=values,
        )

    @property
    def deviation(self) -> float:
        """The population standard deviation (divided by n, as scikit-learn's StandardScaler)."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0

    def quantile(self, share: float) -> float:
        """An exact quantile, linear between neighbours (numpy's default)."""
        if self.values is None or not self.count:
            raise DataError("a quantile was asked of a column whose values were not kept")
        return float(np.quantile(self.values, share))

    def mode(self) -> float:
        """The most frequent value; of several the smallest."""
        if self.values is None or not self.count:
            raise DataError("a mode was asked of a column whose values were not kept")
        values, counts = np.unique(self.values, return_counts=True)
        return float(values[np.argmax(counts)])


@dataclass(frozen=True)
class CategoryStatistics:
    """How often each value of a categorical or boolean column occurs."""

    counts: Mapping[str, int]

    def merge(self, other: CategoryStatistics) -> CategoryStatistics:
        """Statistics of both together."""
        counts = dict(self.counts)
        for value, count in other.counts.items():
            counts[value] = counts.get(value, 0) + count
        return CategoryStatistics(counts)

    @property
    def categories(self) -> tuple[str, ...]:
        """The values in UTF-8 order."""
        return tuple(sorted(self.counts, key=lambda value: value.encode()))

    def mode(self) -> str:
        """The most frequent value; of several the first in UTF-8 order."""
        return max(self.categories, key=lambda value: self.counts[value])


@dataclass(frozen=True)
class WideStatistics:
    """Of the values that are present in a column that becomes several features.

    Attributes:
        count: Values present.
        mean: float64 `[W]`, the mean at each place of a vector that is scaled; else empty.
        m2: float64 `[W]`, the sums of squared distances from `mean`.
        minimum: The least number of all vectors; inf if there are none.
        maximum: The greatest; -inf if there are none.
    """

    count: int
    mean: Float64Array
    m2: Float64Array
    minimum: float = math.inf
    maximum: float = -math.inf

    def merge(self, other: WideStatistics) -> WideStatistics:
        """Statistics of both together; see `NumericStatistics.merge`."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        delta = other.mean - self.mean
        return WideStatistics(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    @property
    def deviation(self) -> Float64Array:
        """The population standard deviation at each place: float64 `[W]`."""
        return np.sqrt(self.m2 / max(self.count, 1))


ColumnStatistics = NumericStatistics | CategoryStatistics | WideStatistics


def numbers(column: pa.ChunkedArray) -> Float64Array:
    """A column of numbers or booleans as float64 `[n]`, NaN where a value is missing."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    filled: Float64Array = np.asarray(
        pc.fill_null(column.cast(pa.float64()), math.nan), dtype=np.float64
    )
    return filled


def block_statistics(
    table: pa.Table, columns: Mapping[str, ColumnSpec], *, row_id: npt.NDArray[np.int64]
) -> dict[str, ColumnStatistics]:
    """Statistics of every declared column in one block of training rows.

    Args:
        table: Training rows only, in canonical types.
        columns: What each column is.
        row_id: int64 `[n]`, the number of each row in the input, for messages.

    Raises:
        DataError: If a number is infinite: no mean or scale can be made of it; or if a list has
            another length than its column.
    """
    found: dict[str, ColumnStatistics] = {}
    for name, spec in columns.items():
        values = table[name]
        if isinstance(spec, NumericColumn):
            found[name] = _numeric(numbers(values), spec, name=name, row_id=row_id)
        elif isinstance(spec, VectorColumn):
            found[name] = _vectors(values, spec, name=name, row_id=row_id)
        elif isinstance(spec, TextColumn | ImageColumn):
            present = len(values) - values.null_count
            found[name] = WideStatistics(present, np.empty(0), np.empty(0))
        else:
            found[name] = _categories(values)
    return found


def merge_statistics(
    left: Mapping[str, ColumnStatistics], right: Mapping[str, ColumnStatistics]
) -> dict[str, ColumnStatistics]:
    """Statistics of two neighbouring blocks, or of two merged runs of blocks."""
    return {name: left[name].merge(right[name]) for name in left}  # type: ignore[arg-type]


def merge_tree(parts: Iterable[Part], merge: Callable[[Part, Part], Part]) -> Part:
    """Merge neighbours, then neighbours of those, and so on, until one is left.

    The shape of the tree depends on the number of parts alone. Parts are merged as they come, so
    that of n parts only about log2(n) are held.

    Raises:
        ValueError: If there is no part.
    """
    # Each is the merge of 2**level parts; levels fall from left to right, as the digits of n.
    waiting: list[tuple[int, Part]] = []
    for part in parts:
        level, merged = 0, part
        while waiting and waiting[-1][0] == level:
            merged = merge(waiting.pop()[1], merged)
            level += 1
        waiting.append((level, merged))
    if not waiting:
        raise ValueError("expected at least one part to merge, found none")
    _level, merged = waiting.pop()
    while waiting:
        merged = merge(waiting.pop()[1], merged)
    return merged


def _numeric(
    values: Float64Array, spec: NumericColumn, *, name: str, row_id: npt.NDArray[np.int64]
) -> NumericStatistics:
    infinite = np.isinf(values)
    if infinite.any():
        raise DataError(
            f"column {name!r}: expected finite numbers, found {values[infinite][0]} in row "
            f"{row_id[np.argmax(infinite)]}{other_rows(infinite)}. Clean the column, or list it "
            "under data.exclude"
        )
    present = values[~np.isnan(values)]
    if not len(present):
        kept = np.empty(0) if _keeps_values(spec) else None
        return NumericStatistics(0, 0.0, 0.0, math.inf, -math.inf, kept)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(present.mean())
        m2 = float(np.square(present - mean).sum())
    if not math.isfinite(m2):
        largest = float(np.abs(present).max())
        raise DataError(
            f"column {name!r}: expected numbers whose squares fit a float64, found {largest:g}. "
            "Divide the column by a constant, or list it under data.exclude"
        )
    return NumericStatistics(
        count=len(present),
        mean=mean,
        m2=m2,
        minimum=float(present.min()),
        maximum=float(present.max()),
        values=np.sort(present, kind="stable") if _keeps_values(spec) else None,
    )


def _vectors(
    values: pa.ChunkedArray, spec: VectorColumn, *, name: str, row_id: npt.NDArray[np.int64]
) -> WideStatistics:
    """Statistics of lists; the pieces of a block are merged one after the other."""
    width = spec.size if spec.scale == "standard" else 0
    merged = WideStatistics(0, np.zeros(width), np.zeros(width))
    for places, found in pieces_of_vectors(values, spec.size, name=name, row_id=row_id):
        if not len(places):
            continue
        scaled = found[:, :width].astype(np.float64)
        mean = scaled.mean(axis=0)
        piece = WideStatistics(
            count=len(places),
            mean=mean,
            m2=np.square(scaled - mean).sum(axis=0),
            minimum=float(found.min()),
            maximum=float(found.max()),
        )
        merged = merged.merge(piece)
    return merged


def _keeps_values(spec: NumericColumn) -> bool:
    return spec.scale == "robust" or spec.missing in {"median", "most_frequent"}


def _categories(column: pa.ChunkedArray) -> CategoryStatistics:
    counted = pc.value_counts(column.combine_chunks())
    pairs = zip(
        counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True
    )
    texts = ((_text(value), count) for value, count in pairs if value is not None)
    return CategoryStatistics(dict(texts))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
