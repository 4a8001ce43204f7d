"""Statistics of columns as Arrow tables, in which they travel between processes without loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from batchtrain.preprocessing.statistics import (
    CategoryStatistics,
    ColumnStatistics,
    NumericStatistics,
    WideStatistics,
)
from batchtrain.spec.data import (
    ColumnSpec,
    ImageColumn,
    NumericColumn,
    TextColumn,
    VectorColumn,
)

__all__ = ["statistics_from_tables", "statistics_to_tables"]

NUMERIC = pa.schema(
    [
        ("name", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.float64()),
        ("m2", pa.float64()),
        ("minimum", pa.float64()),
        ("maximum", pa.float64()),
        ("values", pa.large_list(pa.float64())),
    ]
)
WIDE = pa.schema(
    [
        ("name", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.large_list(pa.float64())),
        ("m2", pa.large_list(pa.float64())),
        ("minimum", pa.float64()),
        ("maximum", pa.float64()),
    ]
)
CATEGORIES = pa.schema([("name", pa.string()), ("value", pa.large_string()), ("count", pa.int64())])


def statistics_to_tables(
    statistics: Mapping[str, ColumnStatistics],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """One row for each numeric and wide column, and one for each value of each other column."""
    wide: list[dict[str, Any]] = []
    numeric: list[dict[str, Any]] = []
    categories: list[pa.Table] = []
    for name, found in statistics.items():
        if isinstance(found, NumericStatistics):
            row = {field.name: getattr(found, field.name, None) for field in NUMERIC}
            numeric.append({**row, "name": name})
        elif isinstance(found, WideStatistics):
            row = {field.name: getattr(found, field.name, None) for field in WIDE}
            wide.append({**row, "name": name})
        else:
            values, counts = list(found.counts), list(found.counts.values())
            columns = [[name] * len(values), values, counts]
            categories.append(pa.table(columns, schema=CATEGORIES))
    return (
        pa.Table.from_pylist(numeric, schema=NUMERIC),
        pa.concat_tables([CATEGORIES.empty_table(), *categories]),
        pa.Table.from_pylist(wide, schema=WIDE),
    )


def statistics_from_tables(
    numeric: pa.Table, categories: pa.Table, wide: pa.Table, columns: Mapping[str, ColumnSpec]
) -> dict[str, ColumnStatistics]:
    """Read what `statistics_to_tables` made of these columns."""
    rows = {
        name: place
        for table in (numeric, wide)
        for place, name in enumerate(table["name"].to_pylist())
    }
    counts: dict[str, dict[str, int]] = {}
    for name, value, count in zip(*(each.to_pylist() for each in categories.columns), strict=True):
        counts.setdefault(name, {})[value] = count
    return {
        name: (
            _numeric(numeric, rows[name])
            if isinstance(spec, NumericColumn)
            else _wide(wide, rows[name])
            if isinstance(spec, TextColumn | VectorColumn | ImageColumn)
            else CategoryStatistics(counts.get(name, {}))
        )
        for name, spec in columns.items()
    }


def _numeric(table: pa.Table, row: int) -> NumericStatistics:
    plain = {
        name: table[name][row].as_py() for name in ("count", "mean", "m2", "minimum", "maximum")
    }
    kept = table["values"][row]
    values = np.array(kept.values.to_numpy()) if kept.is_valid else None
    return NumericStatistics(**plain, values=values)


def _wide(table: pa.Table, row: int) -> WideStatistics:
    mean, m2 = (np.array(table[name][row].values.to_numpy()) for name in ("mean", "m2"))
    plain = {name: table[name][row].as_py() for name in ("count", "minimum", "maximum")}
    return WideStatistics(**plain, mean=mean, m2=m2)
