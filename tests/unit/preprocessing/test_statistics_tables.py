"""Statistics that travel as tables come back to the last bit, and few are held at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.preprocessing.statistics import (
    CategoryStatistics,
    NumericStatistics,
    block_statistics,
    merge_tree,
)
from batchtrain.preprocessing.statistics_tables import (
    statistics_from_tables,
    statistics_to_tables,
)
from batchtrain.spec.data import BooleanColumn, CategoricalColumn, ColumnSpec, NumericColumn

COLUMNS: dict[str, ColumnSpec] = {
    "plain": NumericColumn(kind="numeric"),
    "kept": NumericColumn(kind="numeric", scale="robust"),
    "none": NumericColumn(kind="numeric"),
    "none kept": NumericColumn(kind="numeric", missing="median"),
    "text": CategoricalColumn(kind="categorical"),
    "no text": CategoricalColumn(kind="categorical"),
    "flag": BooleanColumn(kind="boolean"),
}


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_every_bit_comes_back(num_rows: int) -> None:
    random = np.random.default_rng(num_rows)
    numbers = random.normal(0.1, 1e200, num_rows) * 10.0 ** random.integers(-90, -50, num_rows)
    table = pa.table(
        {
            "plain": numbers,
            "kept": pa.array(numbers[::-1].copy()),
            "none": pa.nulls(num_rows, pa.float64()),
            "none kept": pa.nulls(num_rows, pa.float64()),
            "text": pa.array(["é", "", "z", "a", "z", None, "\U0001f600"][:num_rows], pa.string()),
            "no text": pa.nulls(num_rows, pa.string()),
            "flag": pa.array([True, None, False, True, True, True, True][:num_rows], pa.bool_()),
        }
    )
    statistics = block_statistics(table, COLUMNS, row_id=np.arange(num_rows))
    found = statistics_from_tables(*statistics_to_tables(statistics), COLUMNS)
    assert list(found) == list(COLUMNS)
    for name, expected in statistics.items():
        back = found[name]
        if isinstance(expected, CategoryStatistics):
            assert back == expected
        else:
            assert isinstance(back, NumericStatistics)
            assert _without_values(back) == _without_values(expected)
            assert (back.values is None) == (expected.values is None)
            if back.values is not None and expected.values is not None:
                assert back.values.tobytes() == expected.values.tobytes()


def _without_values(found: NumericStatistics) -> Any:
    return found.count, found.mean, found.m2, found.minimum, found.maximum


def level_by_level(parts: list[str]) -> str:
    """The tree as one draws it: neighbours, then neighbours of those."""
    while len(parts) > 1:
        pairs = [f"({parts[i]}{parts[i + 1]})" for i in range(0, len(parts) - 1, 2)]
        parts = pairs if len(parts) % 2 == 0 else [*pairs, parts[-1]]
    return parts[0]


@pytest.mark.parametrize("count", range(1, 70))
def test_the_merge_tree_is_that_of_neighbours_though_parts_are_merged_as_they_come(
    count: int,
) -> None:
    parts = [chr(ord("0") + place) for place in range(count)]
    merged = merge_tree(iter(parts), lambda left, right: f"({left}{right})")
    assert merged == level_by_level(parts)


def test_of_many_parts_few_are_held() -> None:
    held = most = 0

    def parts() -> Any:
        nonlocal held, most
        for _ in range(1000):
            held += 1
            most = max(most, held)
            yield 1

    def merge(left: int, right: int) -> int:
        nonlocal held
        held -= 1
        return left + right

    assert merge_tree(parts(), merge) == 1000
    assert most <= 11


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        merge_tree([], max)
