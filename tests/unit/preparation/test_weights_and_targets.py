"""A column of weights on its way into the shards, and what is learned of the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.errors import ArtifactDamagedError, DataError, SpecError
from batchtrain.preparation import shards as writing
from batchtrain.preparation.shards import packed_row_bytes
from batchtrain.spec.data import SPLITS
from tests.support.builders import mixed_table, prepared_for, quantity_table, spec_for

WEIGHTED = {"weight": "w"}
HALVES = {"kind": "ordered", "fractions": {"train": 0.5, "valid": 0.25, "test": 0.25}}


def weighted(table: pa.Table, weights: Any = None) -> pa.Table:
    values = np.arange(table.num_rows) / 4 if weights is None else weights
    return table.append_column("w", pa.array(values))


def prepared_of(folder: Path, table: pa.Table, target: str, **data: Any) -> PreparedData:
    folder.mkdir(exist_ok=True)
    return prepared_for(spec_for(folder, table, target=target, data=data))


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_each_row_keeps_its_weight_as_float32(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_ROWS", 7)
    loaded = spec_for(tmp_path, weighted(mixed_table(90)), file=file, data=WEIGHTED)
    prepared = prepared_for(loaded)
    assert prepared.has_weights
    for split in SPLITS:
        rows = prepared.load(split)
        assert rows.weight is not None
        assert rows.weight.dtype == np.float32
        assert np.array_equal(rows.weight, (rows.row_id / 4).astype(np.float32))


def test_integers_are_weights_too(tmp_path: Path) -> None:
    table = weighted(quantity_table(40), np.arange(40) % 3)
    rows = prepared_of(tmp_path, table, "y", **WEIGHTED).load("train")
    assert rows.weight is not None
    assert np.array_equal(rows.weight, rows.row_id % 3)


def test_a_weight_is_no_feature_and_no_prediction_needs_it(tmp_path: Path) -> None:
    with_weights = prepared_of(tmp_path / "with", weighted(mixed_table(90)), "label", **WEIGHTED)
    without = prepared_of(tmp_path / "without", mixed_table(90), "label")
    assert not without.has_weights
    assert without.load("train").weight is None
    assert with_weights.preprocessing_state() == without.preprocessing_state()
    golden, numbers = with_weights.golden_rows()
    assert golden.equals(without.golden_rows()[0])
    assert np.array_equal(numbers, without.golden_rows()[1])
    for split in SPLITS:
        ours, theirs = with_weights.load(split), without.load(split)
        assert np.array_equal(ours.numeric, theirs.numeric)
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.array_equal(ours.target, theirs.target)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (None, "no value"),
        (float("nan"), "no value"),
        (-0.5, "-0.5"),
        (float("inf"), "inf"),
        (1e39, "1e+39"),
        (1e-60, "1e-60"),
    ],
)
def test_a_weight_that_is_none_names_its_row(tmp_path: Path, bad: Any, found: str) -> None:
    weights = [1.0] * 60
    weights[37] = bad
    with pytest.raises(DataError) as caught:
        prepared_of(tmp_path, weighted(quantity_table(60), weights), "y", **WEIGHTED)
    message = str(caught.value)
    assert "column of weights 'w': expected 0 or a finite number above it" in message
    assert f"found {found} in row 37. Give" in message


def test_a_row_that_is_dropped_needs_no_weight(tmp_path: Path) -> None:
    table = weighted(quantity_table(60), [1.0] * 37 + [None] + [2.0] * 22)
    gone = pa.array([None if row == 37 else 0.5 * row for row in range(60)])
    table = table.set_column(table.column_names.index("y"), "y", gone)
    prepared = prepared_of(tmp_path, table, "y", **WEIGHTED)
    assert 37 not in np.concatenate([prepared.load(split).row_id for split in SPLITS])


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_in_which_no_row_weighs_anything_is_refused(tmp_path: Path, split: str) -> None:
    weights = np.ones(40)
    weights[slice(0, 20) if split == "train" else slice(20, 30)] = 0
    with pytest.raises(DataError, match=rf"'w': expected a row of the {split} split that weighs"):
        prepared_of(tmp_path, weighted(quantity_table(40), weights), "y", weight="w", split=HALVES)


def test_a_test_split_may_weigh_nothing(tmp_path: Path) -> None:
    weights = np.concatenate([np.ones(30), np.zeros(10)])
    table = weighted(quantity_table(40), weights)
    prepared = prepared_of(tmp_path, table, "y", weight="w", split=HALVES)
    assert not prepared.load("test").weight.any()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array(["heavy"] * 40), "found text"),
        (pa.array([True, False] * 20), "found true and false"),
        (None, "the table has no column 'w'"),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused(
    tmp_path: Path, column: pa.Array | None, words: str
) -> None:
    table = quantity_table(40)
    if column is not None:
        table = table.append_column("w", column)
    with pytest.raises(SpecError, match=words) as caught:
        prepared_of(tmp_path, table, "y", **WEIGHTED)
    assert "data.weight" in str(caught.value)


def test_a_shard_that_lost_its_weights_is_damaged(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, weighted(quantity_table(40)), "y", **WEIGHTED)
    rows = prepared.load("valid")
    bare = SplitRows(rows.numeric, rows.codes, rows.target, rows.row_id)
    with pytest.raises(ArtifactDamagedError, match="expected weights of the rows"):
        prepared.check_shard("valid", 0, bare)


def test_a_weight_counts_into_the_size_of_a_row() -> None:
    assert packed_row_bytes(3, 2, has_weight=True) == packed_row_bytes(3, 2) + 4


def test_the_classes_and_their_training_rows_are_in_the_manifest(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, mixed_table(90), "label")
    assert prepared.classes == ("a", "b", "c")
    assert list(prepared.class_rows) == np.bincount(prepared.load("train").target).tolist()
    assert prepared.target_statistics is None


def test_the_scale_of_a_target_is_that_of_the_training_rows(tmp_path: Path) -> None:
    table = quantity_table(90)
    prepared = prepared_of(tmp_path / "one", table, "y")
    target = prepared.load("train").target
    assert prepared.target_statistics == pytest.approx((target.mean(), target.std()), rel=1e-14)
    assert prepared.classes == prepared.class_rows == ()

    held_out = np.concatenate([prepared.load(split).row_id for split in ("valid", "test")])
    changed = table["y"].to_numpy().copy()
    changed[held_out] += 1e6
    other = table.set_column(table.column_names.index("y"), "y", pa.array(changed))
    assert prepared_of(tmp_path / "two", other, "y").target_statistics == (
        prepared.target_statistics
    )


def test_a_target_that_is_the_same_in_all_training_rows_has_a_deviation_of_one(
    tmp_path: Path,
) -> None:
    table = quantity_table(40)
    constant = np.where(np.arange(40) < 20, 0.1, np.arange(40))
    table = table.set_column(table.column_names.index("y"), "y", pa.array(constant))
    assert prepared_of(tmp_path, table, "y", split=HALVES).target_statistics == (0.1, 1.0)


def test_a_target_whose_squares_are_too_large_is_refused(tmp_path: Path) -> None:
    table = quantity_table(40)
    huge = np.where(np.arange(40) == 3, 1e200, 1.0)
    table = table.set_column(table.column_names.index("y"), "y", pa.array(huge))
    with pytest.raises(DataError, match=r"'y': expected numbers whose squares fit"):
        prepared_of(tmp_path, table, "y", split=HALVES)


def test_a_target_that_is_not_finite_is_refused_as_a_target(tmp_path: Path) -> None:
    table = quantity_table(40)
    infinite = np.where(np.arange(40) == 3, np.inf, 1.0)
    table = table.set_column(table.column_names.index("y"), "y", pa.array(infinite))
    with pytest.raises(DataError, match=r"target 'y': expected finite numbers, found inf in row 3"):
        prepared_of(tmp_path, table, "y", split=HALVES)


@pytest.mark.parametrize("section", ["balanced", {"a": 1.0, "b": 2.0, "d": 1.0}])
def test_class_weights_are_held_against_the_classes_when_rows_are_prepared(
    tmp_path: Path, section: Any
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), training={"epochs": 1, "class_weights": section})
    if section == "balanced":
        prepared_for(loaded)
        return
    with pytest.raises(SpecError) as caught:
        prepared_for(loaded)
    assert "no class of the training rows: 'd'" in str(caught.value)
    assert "no weight for 'c'" in str(caught.value)
    assert "spec.yaml:1" in str(caught.value)
