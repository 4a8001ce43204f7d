"""Columns of number lists: each place a feature, scaled by the training rows alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import DataError, SchemaMismatchError, SpecError
from batchtrain.prediction.loaded import LoadedBundle, load_bundle
from batchtrain.prediction.predict import predict_file
from batchtrain.preparation.stage import prepare
from batchtrain.preprocessing import (
    FittedColumn,
    FittedPreprocessor,
    FittedTarget,
    fitted_wide,
    transform,
    vectors,
)
from batchtrain.preprocessing.fitted_wide import FittedVector
from batchtrain.preprocessing.statistics import (
    WideStatistics,
    block_statistics,
    merge_statistics,
    merge_tree,
)
from batchtrain.preprocessing.statistics_tables import (
    statistics_from_tables,
    statistics_to_tables,
)
from batchtrain.progress import Progress
from batchtrain.spec.data import SPLITS, ColumnSpec, VectorColumn
from batchtrain.tables import conform, open_source
from batchtrain.tables.parquet import read_parquet
from batchtrain.tables.types import ARROW_TYPES
from tests.support.builders import prepared_for, run, spec_for, storage_of
from tests.support.sources import write_arrow, write_hugging_face, write_json_lines

LABEL = FittedTarget("label", "classification", ("a", "b"))
SCALED: dict[str, ColumnSpec] = {"v": VectorColumn(kind="vector", size=3, scale="standard")}


def read(values: pa.Array | list[Any], *, first_row: int = 0) -> pa.Array:
    """A column as every block has it."""
    table = pa.table({"v": values})
    found = conform(table, {"v": "vector"}, first_row=first_row, where="t.parquet")
    assert found.schema.field("v").type == ARROW_TYPES["vector"]
    return found["v"].combine_chunks()


# ----------------------------------------------------------------------------------------------
# Reading


ROWS = [[1, 2, 3, 4], None, [5, 6, 7, 8], [0, 0, 0, 255]]
NESTED = [None if row is None else [row[:2], row[2:]] for row in ROWS]


@pytest.mark.parametrize(
    "arrow_type",
    [
        pa.list_(pa.uint8()),
        pa.large_list(pa.int64()),
        pa.list_(pa.float16(), 4),
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
        pa.list_(pa.uint64(), 4),
    ],
    ids=str,
)
def test_every_list_of_numbers_is_read_sliced_or_not(arrow_type: pa.DataType) -> None:
    values = pa.array(ROWS, arrow_type)
    assert read(values).to_pylist() == ROWS
    assert read(values.slice(1, 2)).to_pylist() == ROWS[1:3]


@pytest.mark.parametrize(
    "arrow_type",
    [
        pa.list_(pa.list_(pa.uint8())),
        pa.large_list(pa.list_(pa.float64(), 2)),
        pa.list_(pa.list_(pa.int16(), 2), 2),
    ],
    ids=str,
)
def test_inner_lists_follow_one_another(arrow_type: pa.DataType) -> None:
    values = pa.array(NESTED, arrow_type)
    assert read(values).to_pylist() == ROWS
    assert read(values.slice(1)).to_pylist() == ROWS[1:]


def test_images_as_lists_of_channels_are_flattened_row_by_row() -> None:
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert read(images.tolist()).to_pylist() == images.reshape(2, -1).tolist()


def test_float64_is_rounded_to_float32() -> None:
    numbers = [0.1, 1 / 3, 1e-45, -2.5e38, 16777217.0]
    expected = np.array(numbers).astype(np.float32).tolist()
    assert read([numbers]).to_pylist() == [expected]


BAD_CELLS: dict[str, tuple[pa.Array, str]] = {
    "null": (pa.array([[1.0], [2.0, None]]), r"1: .*a number at every place, found none"),
    "nan": (pa.array([[1.0, math.nan]]), r"0: .*finite.*found 'nan' at place 1"),
    "inf": (pa.array([[1.0], [-math.inf]]), r"1: .*found '-inf' at place 0"),
    "too large": (pa.array([[1e39], [4e38]]), r"found '1e\+39' at place 0 .*1 more row\)"),
    "uneven": (pa.array([[[1], [2, 3]]]), r"0: .*inner lists of one length"),
    "no inner list": (pa.array([[[1], None]]), r"0: .*inner lists of one length"),
    "number": (pa.array([7]), r"0: .*a list of numbers, found '7' of type int64"),
    "text": (pa.array(["[1]"]), r"a list of numbers, found '\[1\]' of type string"),
    "flags": (pa.array([[True]]), r"found 'True' at place 0"),
    "words": (pa.array([["x"]]), r"found 'x' at place 0"),
    "bytes": (pa.array([b"\x01"]), r"a list of numbers"),
}


@pytest.mark.parametrize(("values", "message"), BAD_CELLS.values(), ids=BAD_CELLS.keys())
def test_a_bad_cell_is_named_with_its_row(values: pa.Array, message: str) -> None:
    with pytest.raises(SchemaMismatchError, match=rf"column 'v' of t.parquet, row_id 1.*{message}"):
        read(values, first_row=10)


# ----------------------------------------------------------------------------------------------
# Fitting and applying


def numbers(rows: int, *, seed: int = 0) -> list[list[float] | None]:
    random = np.random.default_rng(seed)
    found = random.normal([5.0, -1.0, 0.0], [3.0, 0.1, 0.0], (rows, 3)).tolist()
    return [None if place % 5 == 3 else row for place, row in enumerate(found)]


def fitted_on(rows: list[list[float] | None]) -> WideStatistics:
    table = pa.table({"v": read(rows)})
    found = block_statistics(table, SCALED, row_id=np.arange(len(rows)))["v"]
    assert isinstance(found, WideStatistics)
    return found


def test_statistics_are_those_of_numpy_at_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PIECE_NUMBERS", 20)
    rows = numbers(31)
    present = np.array([row for row in rows if row is not None], dtype=np.float32)
    present = present.astype(np.float64)
    found = fitted_on(rows)
    assert found.count == len(present)
    np.testing.assert_allclose(found.mean, present.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, present.std(axis=0), rtol=1e-12)
    assert (found.minimum, found.maximum) == (present.min(), present.max())
    assert found.m2[2] == 0.0


def test_merged_blocks_are_one_block() -> None:
    rows = numbers(40)
    parts = [{"v": fitted_on(rows[start : start + 7])} for start in range(0, 40, 7)]
    parts.insert(2, {"v": fitted_on([None])})
    merged = merge_tree(parts, merge_statistics)["v"]
    whole = fitted_on(rows)
    assert isinstance(merged, WideStatistics)
    assert (merged.count, merged.minimum, merged.maximum) == (
        whole.count,
        whole.minimum,
        whole.maximum,
    )
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-12)


@pytest.mark.parametrize("rows", [numbers(9), [None]], ids=["some", "none"])
def test_every_bit_of_the_statistics_comes_back(rows: list[list[float] | None]) -> None:
    expected = fitted_on(rows)
    back = statistics_from_tables(*statistics_to_tables({"v": expected}), SCALED)["v"]
    assert isinstance(back, WideStatistics)
    assert (back.count, back.minimum, back.maximum) == (
        expected.count,
        expected.minimum,
        expected.maximum,
    )
    assert (back.mean.tobytes(), back.m2.tobytes()) == (
        expected.mean.tobytes(),
        expected.m2.tobytes(),
    )


COLUMN = FittedColumn(
    "v", "vector", "zeros", wide=FittedVector(3, (5.0, 1.0, 0.5), (2.0, 1.0, 0.5))
)


def apply(column: FittedColumn, rows: Any, first: int = 0) -> Any:
    table = pa.table({"v": read(rows)})
    ids = np.arange(first, first + len(table))
    return transform(FittedPreprocessor((column,), LABEL), table, row_id=ids)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 12), piece=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_rows_features_do_not_depend_on_its_neighbours(count: int, piece: int, seed: int) -> None:
    rows = numbers(count, seed=seed)
    whole = apply(COLUMN, pa.array(rows, pa.list_(pa.float64()))).numeric
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PIECE_NUMBERS", piece)
        again = apply(COLUMN, pa.array(rows, pa.list_(pa.float64()))).numeric
    single = [apply(COLUMN, pa.array([row], pa.list_(pa.float64()))).numeric for row in rows]
    assert whole.tobytes() == again.tobytes() == np.concatenate(single).tobytes()


def test_each_policy_for_a_missing_list_does_what_it_says() -> None:
    rows = [[7.0, 1.0, 1.0], None]
    zeros = apply(COLUMN, rows)
    assert zeros.numeric.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert (zeros.filled, zeros.usable.all()) == ({"v": 1}, True)
    plain = apply(replace(COLUMN, wide=FittedVector(3)), rows)
    assert plain.numeric.tolist() == [[7.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    dropped = apply(replace(COLUMN, missing="drop"), rows)
    assert (dropped.filled, dropped.usable.tolist()) == ({}, [True, False])
    with pytest.raises(DataError, match=r"'v'.*row 9\."):
        apply(replace(COLUMN, missing="error"), rows, first=8)


def test_a_list_of_another_length_is_named_with_its_row() -> None:
    with pytest.raises(
        SchemaMismatchError, match=r"'v'.*lists of 3 numbers.*found 2 in row 41 .and in"
    ):
        apply(COLUMN, [[1.0, 2.0, 3.0], [1.0, 2.0], None, []], first=40)


def test_a_number_that_scaling_makes_too_large_is_named_with_its_row() -> None:
    tiny = replace(COLUMN, wide=FittedVector(3, (0.0,) * 3, (1.0, 1.0, 1e-10)))
    with pytest.raises(DataError, match=r"'v'.*at place 2 in row 6"):
        apply(tiny, [None, [0.0, 0.0, 3e38]], first=5)


def test_the_state_of_a_vector_comes_back_from_json() -> None:
    for wide in (FittedVector(3), COLUMN.wide):
        fitted = FittedPreprocessor((replace(COLUMN, wide=wide),), LABEL)
        document = json.loads(json.dumps(fitted.to_json()))
        assert FittedPreprocessor.from_json(document, where="here") == fitted
    assert fitted.feature_names == ("v[0]", "v[1]", "v[2]")


# ----------------------------------------------------------------------------------------------
# From a spec to predictions


def table_of(rows: int = 60) -> pa.Table:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (rows, 2, 3))
    label = np.where(pixels[:, 0].mean(axis=1) > pixels[:, 1].mean(axis=1), "up", "down")
    lists = [None if place % 9 == 4 else each for place, each in enumerate(pixels.tolist())]
    return pa.table({"v": lists, "age": random.normal(9, 2, rows), "label": label})


DECLARED = {"columns": {"v": {"kind": "vector", "size": 6, "scale": "standard"}}}


def test_every_source_gives_the_same_features(tmp_path: Path) -> None:
    table = table_of()
    write_json_lines(tmp_path / "rows.jsonl", table)
    write_arrow(tmp_path / "rows.arrow", table)
    write_hugging_face(tmp_path / "folder", [table.slice(0, 20), table.slice(20)])
    first = prepared_for(spec_for(tmp_path, table, data=DECLARED))
    assert first.num_numeric == 7
    for file in ("rows.jsonl", "rows.arrow", "hf:./folder"):
        other = prepared_for(spec_for(tmp_path, file=file, data=DECLARED))
        assert other.profile()["missing"] == {"v": 7, "age": 0, "label": 0}
        for split in SPLITS:
            assert other.load(split).numeric.tobytes() == first.load(split).numeric.tobytes()


def test_the_scales_are_those_of_the_training_rows_alone(tmp_path: Path) -> None:
    table = table_of()
    prepared = prepared_for(spec_for(tmp_path, table, data=DECLARED))
    train = prepared.load("train").row_id
    lists = table["v"].to_pylist()
    present = np.array([np.ravel(lists[row]) for row in train if lists[row] is not None])
    (column, _age) = prepared.preprocessing_state()["columns"]
    np.testing.assert_allclose(column["wide"]["offsets"], present.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(column["wide"]["divisors"], present.std(axis=0), rtol=1e-12)

    test = set(prepared.load("test").row_id.tolist())
    changed = [[[9e9] * 3] * 2 if row in test else each for row, each in enumerate(lists)]
    (tmp_path / "other").mkdir()
    other = prepared_for(
        spec_for(tmp_path / "other", table.set_column(0, "v", pa.array(changed)), data=DECLARED)
    )
    assert other.preprocessing_state() == prepared.preprocessing_state()
    assert other.load("train").numeric.tobytes() == prepared.load("train").numeric.tobytes()
    assert other.load("test").numeric.tobytes() != prepared.load("test").numeric.tobytes()


@pytest.mark.parametrize("block_rows", [7, 25])
def test_the_size_of_a_block_does_not_show(tmp_path: Path, block_rows: int) -> None:
    data = {"columns": {"v": {"kind": "vector", "size": 6}}, "exclude": ["age"]}
    large = prepared_for(spec_for(tmp_path, table_of(), data=data))
    (tmp_path / "other").mkdir()
    again = spec_for(tmp_path / "other", table_of(), data=data)
    small, _ = prepare(again, storage_of(again), Progress(), engine=EmbeddedEngine(block_rows))
    for split in SPLITS:
        assert small.load(split).numeric.tobytes() == large.load(split).numeric.tobytes()


def test_a_setting_of_the_column_is_another_artifact(tmp_path: Path) -> None:
    keys = {
        prepared_for(
            spec_for(
                tmp_path,
                table_of(),
                data={"columns": {"v": {"kind": "vector", "size": 6, **more}}},
            )
        ).artifact.key
        for more in ({}, {"scale": "standard"}, {"missing": "drop"})
    }
    assert len(keys) == 3


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    data = {"columns": {"v": {"kind": "vector", "size": 6, "missing": "drop"}}}
    prepared = prepared_for(spec_for(tmp_path, table_of(), data=data))
    (change,) = prepared.profile()["changes"]
    assert (change["what"], change["count"]) == ("dropped", 7)
    assert "'v' is missing" in change["detail"]


def with_row(row: int, value: Any) -> pa.Table:
    lists = table_of()["v"].to_pylist()
    lists[row] = value
    return table_of().set_column(0, "v", pa.array(lists))


@pytest.mark.parametrize(
    ("table", "fragments"),
    [
        (with_row(3, [[1, 2]] * 2), ["lists of 6 numbers", "found 4 in row 3"]),
        (with_row(59, [[1, 2, None]] * 2), ["row_id 59", "none at place 2"]),
        (with_row(50, [[1, 2, 3], [4, 5]]), ["row_id 50", "inner lists of one length"]),
        (table_of().set_column(0, "v", pa.array(["x"] * 60)), ["declared vector", "holds text"]),
        (table_of().set_column(0, "v", pa.array(range(60))), ["holds numbers"]),
        (table_of().set_column(0, "v", pa.nulls(60)), ["holds no value"]),
        (table_of().set_column(0, "v", pa.array([b"x"] * 60)), ["unsupported(binary)"]),
    ],
)
def test_check_says_what_is_wrong_with_a_column(
    tmp_path: Path, table: pa.Table, fragments: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        prepared_for(spec_for(tmp_path, table, data=DECLARED))
    message = str(caught.value)
    assert [each for each in ["'v'", "data.columns.v", *fragments] if each not in message] == []


def test_a_csv_file_holds_no_lists(tmp_path: Path) -> None:
    table = table_of().set_column(0, "v", pa.array(["[1, 2]"] * 60))
    with pytest.raises(SpecError, match="CSV file cannot hold lists: use Parquet"):
        prepared_for(spec_for(tmp_path, table, file="rows.csv", data=DECLARED))


def test_an_undeclared_list_is_refused_and_told_how_to_be_declared(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"exclude: \[v\].*\{kind: vector, size: LENGTH\}"):
        prepared_for(spec_for(tmp_path, table_of()))
    assert prepared_for(spec_for(tmp_path, table_of(), data={"exclude": ["v"]})).num_numeric == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"v": 5}', r"line 3: expected a list of numbers.*found \"5\""),
        ('{"v": {"a": 1}}', r"line 3: .*found \{\"a\": \"1\"\}"),
        ('{"v": [1, true]}', r"line 3: .*found \[\"1\", true\]"),
        ('{"v": [[1, 2]]}', r"alike in all lines"),
        ('{"v": [1, null]}', r"row 3 \(row_id 2\).*found none at place 1"),
        ('{"v": [1, NaN]}', r"row 3 \(row_id 2\).*found none at place 1"),
        ('{"v": [1, 1e999]}', r"row 3 \(row_id 2\).*found '1e999' at place 1"),
        ('{"v": [1, "x"]}', r"line 3: .*found \[\"1\", \"x\"\]|found 'x' at place 1"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"v": [1, 2], "label": "a"}\n{"v": null, "label": "b"}\n'
    (tmp_path / "rows.jsonl").write_text(good + line[:-1] + ', "label": "a"}\n')
    data = {"columns": {"v": {"kind": "vector", "size": 2}}}
    with pytest.raises(SpecError, match=message):
        prepared_for(spec_for(tmp_path, file="rows.jsonl", data=data))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    result = run(spec_for(tmp_path_factory.mktemp("vector"), table_of(), data=DECLARED))
    assert result.bundle is not None
    return load_bundle(result.bundle.artifact.url)


CELLS: dict[str, Callable[[Any], Any]] = {
    "lists of lists": lambda row: row,
    "flat lists": lambda row: None if row is None else np.ravel(row).tolist(),
    "arrays": lambda row: None if row is None else np.ravel(row).astype(np.float32),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_a_frame_may_hold_lists_or_arrays(bundle: LoadedBundle, cell: Callable[[Any], Any]) -> None:
    table = table_of()
    frame = pd.DataFrame({"age": table["age"].to_pandas()})
    frame["v"] = [cell(row) for row in table["v"].to_pylist()]
    found = bundle.predict(frame)
    assert found.equals(bundle.predict(table))
    assert found["prediction"].notna().all()


def test_a_file_predicts_as_the_rows_in_memory_do(bundle: LoadedBundle, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "new.jsonl", table_of())
    done = predict_file(
        bundle, "new.jsonl", tmp_path / "p.parquet", base=tmp_path, progress=Progress()
    )
    assert pq.read_table(done.path).to_pandas().equals(bundle.predict(table_of()))
    assert done.counts.filled == {"v": 7}


def test_new_rows_are_held_to_the_length(bundle: LoadedBundle) -> None:
    with pytest.raises(SchemaMismatchError, match=r"'v'.*lists of 6 numbers.*found 2 in row 0"):
        bundle.predict({"v": [[1, 2]], "age": [3.0]})
    with pytest.raises(SchemaMismatchError, match=r"'v' of the rows.*a list of numbers"):
        bundle.predict({"v": ["1"], "age": [3.0]})


def test_blocks_of_wide_rows_are_short_whatever_the_engine_would_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"columns": {"v": {"kind": "vector", "size": 6}}, "exclude": ["age"]}
    long = prepared_for(spec_for(tmp_path, table_of(), data=data))
    monkeypatch.setattr(fitted_wide, "BLOCK_NUMBERS", 6 * 16)
    told: list[int] = []

    class Telling(Progress):
        def working(self, what: str, done: int, total: int | None) -> None:
            told.extend([done] if what == "rows written" else [])

    (tmp_path / "other").mkdir()
    again = spec_for(tmp_path / "other", table_of(), data=data)
    short, _ = prepare(again, storage_of(again), Telling())
    assert told == [16, 32, 48, 60]
    for split in SPLITS:
        assert short.load(split).numeric.tobytes() == long.load(split).numeric.tobytes()


def test_parquet_files_with_wide_rows_are_read_some_rows_at_a_time(tmp_path: Path) -> None:
    table = pa.table({"v": [[1.0, 2.0]] * 3000, "x": range(3000)})
    pq.write_table(table, tmp_path / "t.parquet")
    (file,) = open_source("t.parquet", base=tmp_path, null_values=()).files

    def sizes(*columns: str) -> list[int]:
        return [part.num_rows for _row, part in read_parquet(file, columns)]

    assert (sizes("x"), sizes("v", "x")) == ([3000], [1024, 1024, 952])
