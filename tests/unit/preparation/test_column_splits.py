"""Splits by time, by group, by a column's values and by files: pure rules, and what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import DataError, SpecError
from batchtrain.preparation.splits import file_splits, group_splits, time_splits
from batchtrain.preparation.survey import DROPPED, Survey, survey
from batchtrain.spec.data import SPLITS, DataSpec, Fractions
from batchtrain.tables import open_source
from tests.support.builders import mixed_table, write_table
from tests.support.engines import ScrambledEngine
from tests.support.sources import write_hugging_face, write_hugging_face_splits

SHARES = st.sampled_from([(0.1, 0.2), (0.0, 0.2), (0.2, 0.0), (0.0, 0.0), (1 / 3, 1 / 3)]).map(
    lambda shares: Fractions(train=1 - sum(shares), valid=shares[0], test=shares[1])
)
WORDS = st.lists(st.integers(0, 12), min_size=1, max_size=80).map(
    lambda groups: np.array(groups, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
)


@given(words=WORDS, fractions=SHARES)
def test_no_group_is_ever_in_two_splits(words: np.ndarray, fractions: Fractions) -> None:
    splits = group_splits(words, fractions)
    assert splits.dtype == np.uint8
    assert splits.shape == words.shape
    for word in np.unique(words):
        assert len(set(splits[words == word].tolist())) == 1
    shares = [fractions.of(split) for split in SPLITS]
    rows = np.bincount(splits, minlength=3)
    assert all(count == 0 for count, share in zip(rows, shares, strict=True) if share == 0)
    groups = np.unique(words, return_counts=True)[1]
    wanted = sum(share > 0 for share in shares)
    if len(groups) >= wanted:
        assert all(count > 0 for count, share in zip(rows, shares, strict=True) if share > 0)
        # A split is off by a group at either end, and by those that fill a poorer one.
        allowed = 3 * groups.max()
        assert all(
            abs(count - share * len(words)) <= allowed
            for count, share in zip(rows, shares, strict=True)
        )
    else:
        assert rows[0] > 0


def test_a_group_keeps_its_split_when_rows_are_put_in_another_order() -> None:
    words = np.random.default_rng(0).integers(0, 2**63, 40, np.uint64)[
        np.random.default_rng(1).integers(0, 40, 500)
    ]
    fractions = Fractions(train=0.6, valid=0.2, test=0.2)
    order = np.random.default_rng(2).permutation(500)
    assert np.array_equal(
        group_splits(words, fractions)[order], group_splits(words[order], fractions)
    )
    shares = np.bincount(group_splits(words, fractions), minlength=3) / 500
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.05)


@given(
    times=st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=60),
    fractions=SHARES,
)
def test_every_training_row_is_before_every_test_row_and_ties_keep_the_order(
    times: list[float], fractions: Fractions
) -> None:
    splits = time_splits(np.array(times, np.float64), fractions)
    ranked = sorted(range(len(times)), key=lambda row: (times[row], row))
    in_time = splits[ranked]
    assert np.array_equal(in_time, np.sort(in_time))


def test_the_split_of_a_file_is_that_of_its_rows() -> None:
    found = file_splits(["train", "train", "test"], [2, 0, 3])
    assert found.tolist() == [0, 0, 2, 2, 2]


# ----------------------------------------------------------------------------------------------
# From a table


def table_of(**columns: Any) -> pa.Table:
    """40 rows that can be learned from, and more columns."""
    return pa.table({"x": list(range(40)), "y": ["a", "b"] * 20, **columns})


def surveyed(folder: Path, table: pa.Table, split: dict[str, Any] | None, **data: Any) -> Survey:
    write_table(folder / "rows.parquet", table)
    return found_in(folder, "rows.parquet", split, **data)


def found_in(folder: Path, source: str, split: dict[str, Any] | None, **data: Any) -> Survey:
    """The survey of both engines, which must agree."""
    section = {"source": source, "target": "y", "split": split, **data}
    spec = DataSpec.model_validate_json(json.dumps(section))
    opened = open_source(source, base=folder, null_values=("",))
    found, other = (
        survey(spec, opened, seed=42, where=lambda key: key, engine=engine)
        for engine in (EmbeddedEngine(), ScrambledEngine(7))
    )
    assert np.array_equal(found.split_of_row, other.split_of_row)
    assert (found.data, found.changes) == (other.data, other.changes)
    return found


def refused(folder: Path, table: pa.Table, split: dict[str, Any], **data: Any) -> str:
    with pytest.raises((SpecError, DataError)) as caught:
        surveyed(folder, table, split, **data)
    return str(caught.value)


def test_a_column_of_names_decides_and_is_no_feature(tmp_path: Path) -> None:
    fold = ["train"] * 25 + ["test"] * 10 + ["valid"] * 5
    found = surveyed(tmp_path, table_of(fold=fold), {"kind": "column", "column": "fold"})
    assert [SPLITS[place] for place in found.split_of_row] == fold
    assert list(found.data.columns) == ["x"]
    (change,) = found.changes
    assert (change.what, change.where, change.count) == ("excluded", "fold", 40)


@pytest.mark.parametrize(
    ("values", "lists"),
    [
        ([0, 1, 2, 3], {"train": [0, 1], "valid": [2], "test": [3]}),
        ([True, True, True, False], {"train": [True], "test": [False]}),
        (["0", "x", "y", "z"], {"train": [0, "x"], "test": ["y", "z"]}),
    ],
)
def test_values_can_be_mapped(
    tmp_path: Path, values: list[object], lists: dict[str, list[object]]
) -> None:
    table = table_of(fold=[values[row // 10] for row in range(40)])
    found = surveyed(tmp_path, table, {"kind": "column", "column": "fold", **lists})
    texts = {str(value): split for split, each in lists.items() for value in each}
    expected = [texts[str(values[row // 10])] for row in range(40)]
    assert [SPLITS[place] for place in found.split_of_row] == expected


def test_a_value_that_no_split_lists_is_an_error_that_names_all_of_them(tmp_path: Path) -> None:
    fold = ["train"] * 20 + ["dev"] * 3 + ["test"] * 8 + ["holdout"] * 2 + [None] + ["valid"] * 6
    table = table_of(fold=fold)
    message = refused(tmp_path, table, {"kind": "column", "column": "fold"})
    fragments = [
        "'dev' (3 rows, the first has row_id 20)",
        "'holdout' (2 rows",
        "no value (1 row, the first has row_id 33)",
        "'train' for train",
    ]
    assert [each for each in fragments if each not in message] == []


def test_a_row_that_is_dropped_needs_no_split(tmp_path: Path) -> None:
    table = table_of(fold=["train"] * 20 + [None] * 2 + ["test"] * 18)
    targets = [None if row in (20, 21) else "ab"[row % 2] for row in range(40)]
    table = table.set_column(1, "y", pa.array(targets))
    rule = {"kind": "column", "column": "fold", "train": ["train"], "test": ["test"]}
    found = surveyed(tmp_path, table, rule)
    assert found.split_of_row[20:22].tolist() == [DROPPED] * 2
    assert found.rows("test") == 18


@pytest.mark.parametrize(
    "when",
    [
        pa.array(np.arange(40)[::-1]),
        pa.array(np.arange(40)[::-1] / 7),
        pa.array([f"2026-11-{30 - row // 2:02d}" for row in range(40)]),
        pa.array((np.arange(40)[::-1] // 2).astype("datetime64[s]")),
        pa.array((np.arange(40)[::-1] // 2).astype("datetime64[D]")),
    ],
    ids=["integers", "numbers", "text", "timestamps", "dates"],
)
def test_the_latest_rows_test_whatever_the_type_of_their_times(
    tmp_path: Path, when: pa.Array
) -> None:
    found = surveyed(tmp_path, table_of(when=when), {"kind": "time", "column": "when"})
    # The rows stand in reverse; ties keep their order.
    ranked = sorted(range(40), key=lambda row: (when[row].as_py(), row))
    assert found.split_of_row[ranked].tolist() == [0] * 28 + [1] * 4 + [2] * 8
    assert list(found.data.columns) == ["x"]


def test_the_column_of_a_time_is_a_feature_where_it_is_declared(tmp_path: Path) -> None:
    table = table_of(year=[2000 + row % 20 for row in range(40)])
    rule = {"kind": "time", "column": "year"}
    found = surveyed(tmp_path, table, rule, columns={"year": {"kind": "numeric"}})
    assert list(found.data.columns) == ["x", "year"]
    excluded = surveyed(tmp_path, table, rule, exclude=["year"])
    assert list(excluded.data.columns) == ["x"]
    assert np.array_equal(found.split_of_row, excluded.split_of_row)


def test_all_rows_of_a_group_are_in_one_split_in_any_order_and_format(tmp_path: Path) -> None:
    users = np.random.default_rng(3).integers(0, 12, 40)
    rule = {"kind": "group", "column": "user"}
    found = surveyed(tmp_path, table_of(user=users), rule)
    split_of_user = {}
    for user, split in zip(users.tolist(), found.split_of_row.tolist(), strict=True):
        assert split_of_user.setdefault(user, split) == split
    assert set(split_of_user.values()) == {0, 1, 2}
    # As text, and the rows in reverse: the same groups in the same splits.
    table = table_of(user=pa.array([str(user) for user in users])).take(np.arange(40)[::-1])
    again = surveyed(tmp_path, table, rule)
    assert np.array_equal(again.split_of_row[::-1], found.split_of_row)
    other = surveyed(tmp_path, table_of(user=users), {**rule, "seed": 7})
    assert not np.array_equal(other.split_of_row, found.split_of_row)


@pytest.mark.parametrize(
    ("values", "rule", "fragments"),
    [
        ([None] + [1] * 39, {"kind": "group"}, ["no value (1 row", "row_id 0"]),
        ([None] + [1] * 39, {"kind": "time"}, ["no value (1 row", "row_id 0"]),
        ([1.5] * 40, {"kind": "group"}, ["fractions"]),
        ([1.5] * 40, {"kind": "column"}, ["fractions"]),
        ([[1]] * 40, {"kind": "group"}, ["list"]),
        ([[1]] * 40, {"kind": "time"}, ["list"]),
        ([True] * 40, {"kind": "time"}, ["true and false"]),
        (["soon"] * 40, {"kind": "time"}, ["'soon'", "2026-11-21"]),
        (["train"] * 40, {"kind": "column"}, ["the valid split", "at least one row"]),
        ([7] * 40, {"kind": "group"}, ["the valid split", "at least one row"]),
    ],
)
def test_a_column_that_cannot_decide_says_why(
    tmp_path: Path, values: list[object], rule: dict[str, Any], fragments: list[str]
) -> None:
    message = refused(tmp_path, table_of(by=values), {**rule, "column": "by"})
    assert [each for each in [*fragments, "expected"] if each not in message] == []


def test_a_column_that_is_not_there_has_a_similar_name(tmp_path: Path) -> None:
    message = refused(tmp_path, table_of(user=[1] * 40), {"kind": "group", "column": "usr"})
    assert "data.split.column" in message
    assert "'user'" in message


def test_a_folder_of_splits_brings_its_own(tmp_path: Path) -> None:
    table = table_of()
    parts = {"train": table.slice(0, 30), "test": table.slice(30)}
    write_hugging_face_splits(tmp_path / "d", parts)
    for split in (None, {"kind": "source"}):
        found = found_in(tmp_path, "hf:./d", split)
        assert found.split_of_row.tolist() == [0] * 30 + [2] * 10
        assert found.data.split is not None
        assert found.data.split.kind == "source"
    with pytest.raises(SpecError, match="splits of its own"):
        found_in(tmp_path, "hf:./d", {"kind": "random"})
    write_hugging_face(tmp_path / "one", [table])
    with pytest.raises(SpecError, match="splits of its own"):
        found_in(tmp_path, "hf:./one", {"kind": "source"})
    assert found_in(tmp_path, "hf:./one", None).data.split is not None


def test_mixed_rows_of_any_split_are_all_used(tmp_path: Path) -> None:
    table = mixed_table(90).append_column("when", pa.array(np.arange(90)[::-1]))
    found = surveyed(tmp_path, table, {"kind": "time", "column": "when"}, target="label")
    assert sum(found.rows(split) for split in SPLITS) == 90
