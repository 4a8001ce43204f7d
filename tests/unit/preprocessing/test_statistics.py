"""Statistics of blocks: merged they are those of all rows, and scikit-learn agrees."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from batchtrain.errors import DataError
from batchtrain.preprocessing.fit import fit_preprocessor
from batchtrain.preprocessing.fitted import FittedColumn, FittedTarget
from batchtrain.preprocessing.statistics import (
    CategoryStatistics,
    ColumnStatistics,
    block_statistics,
    merge_statistics,
    merge_tree,
)
from batchtrain.spec.data import BooleanColumn, CategoricalColumn, ColumnSpec, NumericColumn
from tests.support.builders import slices

NUMBERS = hnp.arrays(
    np.float64,
    st.integers(1, 120),
    elements=st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6)) | st.just(math.nan),
)
SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=5)
TARGET = FittedTarget("y", "regression")


def statistics_of(
    column: pa.Array, spec: ColumnSpec, sizes: list[int] | None = None
) -> ColumnStatistics:
    table = pa.table({"x": column})
    parts = []
    first = 0
    for block in slices(table, sizes or [len(column)]):
        row_id = np.arange(first, first + block.num_rows)
        parts.append(block_statistics(block, {"x": spec}, row_id=row_id))
        first += block.num_rows
    return merge_tree(parts, merge_statistics)["x"]


def fitted_of(column: pa.Array, spec: ColumnSpec, sizes: list[int] | None = None) -> FittedColumn:
    found = statistics_of(column, spec, sizes)
    return fit_preprocessor({"x": spec}, {"x": found}, TARGET).columns[0]


def numeric(**settings: object) -> NumericColumn:
    return NumericColumn(kind="numeric", **settings)


def close(found: float, expected: float, scale: float) -> bool:
    """Within 1e-12 of the size of the numbers that went in."""
    return abs(found - expected) <= 1e-12 * max(scale, 1e-300)


@settings(max_examples=40)
@given(values=NUMBERS, sizes=SIZES)
def test_count_mean_deviation_and_range_are_those_of_all_values(
    values: np.ndarray, sizes: list[int]
) -> None:
    present = values[~np.isnan(values)]
    assume(len(present))
    found = statistics_of(pa.array(values), numeric(), sizes)
    scale = np.abs(present).max()
    assert found.count == len(present)
    assert close(found.mean, math.fsum(present) / len(present), scale)
    assert close(found.deviation, present.std(), scale)
    assert (found.minimum, found.maximum) == (present.min(), present.max())
    assert found.values is None


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e8])
def test_a_large_offset_does_not_cancel_the_deviation(offset: float) -> None:
    values = np.random.default_rng(0).normal(size=5000) + offset
    found = statistics_of(pa.array(values), numeric(), [700])
    assert found.deviation == pytest.approx((values - offset).std(), rel=1e-8 + abs(offset) * 1e-16)


@settings(max_examples=40)
@given(values=NUMBERS, sizes=SIZES)
def test_scales_are_those_of_scikit_learn(values: np.ndarray, sizes: list[int]) -> None:
    present = values[~np.isnan(values)]
    assume(len(present))
    scale = max(np.abs(present).max(), 1.0)
    # Where nearly nothing varies, scikit-learn calls a column constant by a bound of its own.
    assume(present.min() == present.max() or present.std() > 1e-6 * scale)
    column = present[:, None]
    standard = StandardScaler().fit(column)
    minmax = MinMaxScaler().fit(column)
    robust = RobustScaler().fit(column)
    wanted = {
        "standard": (standard.mean_[0], standard.scale_[0]),
        "minmax": (minmax.data_min_[0], 1 / minmax.scale_[0]),
        "robust": (robust.center_[0], robust.scale_[0]),
        "none": (0.0, 1.0),
    }
    for name, (offset, divisor) in wanted.items():
        found = fitted_of(pa.array(values), numeric(scale=name), sizes)
        assert close(found.offset, offset, scale), name
        # 10 eps: scikit-learn's scale of min-max is the inverse of ours.
        assert close(found.divisor, divisor, 10 * scale), name


@pytest.mark.parametrize("value", [0.1, 0.3, 1e-9, 1e9 + 0.1, -7.7])
@pytest.mark.parametrize("rows", [1, 7, 70, 1000])
@pytest.mark.parametrize("scale", ["standard", "minmax", "robust"])
def test_d07_a_constant_column_is_only_shifted(value: float, rows: int, scale: str) -> None:
    found = fitted_of(pa.array(np.full(rows, value)), numeric(scale=scale), [13])
    assert found.divisor == 1.0
    assert found.offset == pytest.approx(value, rel=1e-15)


@settings(max_examples=40)
@given(values=NUMBERS, sizes=SIZES)
def test_fill_values_are_those_of_scikit_learn(values: np.ndarray, sizes: list[int]) -> None:
    present = values[~np.isnan(values)]
    assume(len(present))
    for policy in ("mean", "median", "most_frequent"):
        oracle = SimpleImputer(strategy=policy).fit(values[:, None]).statistics_[0]
        found = fitted_of(pa.array(values), numeric(missing=policy), sizes)
        assert close(found.fill, oracle, np.abs(present).max()), policy
    assert fitted_of(pa.array(values), numeric(missing="constant", fill_value=-1.5)).fill == -1.5
    for policy in ("drop", "error"):
        assert fitted_of(pa.array(values), numeric(missing=policy)).fill is None


@given(
    values=st.lists(
        st.sampled_from(["b", "a", "\u00e9", "\U0001f600", "\uffff", None]), min_size=1
    ),
    sizes=SIZES,
)
def test_categories_are_in_utf8_order_and_the_mode_is_scikit_learns(
    values: list[str | None], sizes: list[int]
) -> None:
    present = [value for value in values if value is not None]
    assume(present)
    spec = CategoricalColumn(kind="categorical", missing="most_frequent")
    found = fitted_of(pa.array(values, pa.string()), spec, sizes)
    assert list(found.categories) == sorted(set(present), key=str.encode)
    oracle = SimpleImputer(strategy="most_frequent", missing_values=None)
    assert found.fill == oracle.fit(np.array(values, dtype=object)[:, None]).statistics_[0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_the_merge_tree_is_one_of_neighbours_whose_shape_depends_on_the_number_alone(
    parts: list[int],
) -> None:
    def join(left: str, right: str) -> str:
        return f"({left}{right})"

    merged = merge_tree([str(part) for part in parts], join)
    assert merged.replace("(", "").replace(")", "") == "".join(map(str, parts))
    shape = merge_tree(["x"] * len(parts), join)
    assert "".join("x" if each.isdigit() else each for each in merged) == shape
    # Balanced: no part takes part in more merges than the tree is high.
    assert max(_depths(merged)) == math.ceil(math.log2(len(parts)))


def _depths(text: str) -> list[int]:
    depth, depths = 0, []
    for each in text:
        depth += (each == "(") - (each == ")")
        if each not in "()":
            depths.append(depth)
    return depths


def test_d24_the_merged_bits_are_the_same_for_the_same_blocks_whoever_made_them() -> None:
    values = pa.array(np.random.default_rng(3).normal(5, 100, 1000))
    spec = numeric(missing="median", scale="robust")
    blocks = list(slices(pa.table({"x": values}), [64]))
    parts = [block_statistics(block, {"x": spec}, row_id=np.arange(len(block))) for block in blocks]
    shuffled = [blocks[place] for place in (3, 1, 2)]
    again = [
        block_statistics(block, {"x": spec}, row_id=np.arange(len(block))) for block in shuffled
    ]
    assert [parts[3]["x"].mean, parts[1]["x"].m2] == [again[0]["x"].mean, again[1]["x"].m2]
    one, two = (merge_tree(parts, merge_statistics)["x"] for _ in range(2))
    assert (one.mean, one.m2) == (two.mean, two.m2)


@pytest.mark.parametrize("place", ["left", "right"])
def test_a_block_without_training_rows_changes_nothing(place: str) -> None:
    empty = statistics_of(pa.array([None, None], pa.float64()), numeric(scale="robust"))
    for seed in range(50):
        values = np.random.default_rng(seed).normal(3, 7, 101)
        whole = statistics_of(pa.array(values), numeric(scale="robust"))
        merged = whole.merge(empty) if place == "right" else empty.merge(whole)
        for name in ("count", "mean", "m2", "minimum", "maximum"):
            assert getattr(merged, name) == getattr(whole, name), name
        assert np.array_equal(merged.values, whole.values)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_d14_an_infinite_training_value_is_refused_with_column_and_row(value: float) -> None:
    table = pa.table({"x": [1.0, None, value, 2.0]})
    with pytest.raises(DataError, match=r"'x'.*inf.* row 17\b"):
        block_statistics(table, {"x": numeric()}, row_id=np.array([3, 9, 17, 18]))


@pytest.mark.parametrize("size", [1e155, 1e200, 1.7e308])
def test_d14_values_whose_squares_overflow_are_refused_by_column(size: float) -> None:
    with pytest.raises(DataError, match="'x'"):
        fitted_of(pa.array([size, -size, size / 2, size] * 5), numeric())


@pytest.mark.parametrize(
    ("spec", "column"),
    [
        (numeric(), pa.array([None, None], pa.float64())),
        (numeric(missing="constant", fill_value=0.0), pa.array([None], pa.float64())),
        (CategoricalColumn(kind="categorical"), pa.array([None, None], pa.string())),
        (BooleanColumn(kind="boolean"), pa.array([None, None], pa.bool_())),
    ],
)
def test_d07_a_column_without_a_training_value_is_refused_by_name(
    spec: ColumnSpec, column: pa.Array
) -> None:
    with pytest.raises(DataError, match=r"column 'x'.*data\.exclude"):
        fitted_of(column, spec)


def test_a_flag_is_filled_with_the_more_frequent_value() -> None:
    spec = BooleanColumn(kind="boolean")
    assert fitted_of(pa.array([True, None, True, False]), spec, [2]).fill is True
    assert fitted_of(pa.array([True, False]), spec).fill is False
    assert statistics_of(pa.array([True, None, False, True]), spec, [1]) == CategoryStatistics(
        {"true": 2, "false": 1}
    )


def test_a_constant_category_is_known_even_where_no_training_row_lacks_a_value() -> None:
    spec = CategoricalColumn(kind="categorical", missing="constant", fill_value="none")
    assert fitted_of(pa.array(["b", "a"]), spec).categories == ("a", "b", "none")
