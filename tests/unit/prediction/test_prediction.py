"""Prediction from raw rows: what evaluation published, for any rows in any order (P9)."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.errors import (
    ArtifactDamagedError,
    ArtifactError,
    ArtifactMissingError,
    BatchtrainError,
    DataError,
    SchemaMismatchError,
    SpecError,
    StorageError,
    UnsafeInputError,
)
from batchtrain.pipeline import RunResult
from batchtrain.prediction import loaded as loaded_module
from batchtrain.prediction import predict as predict_module
from batchtrain.prediction.loaded import LoadedBundle, load_bundle
from batchtrain.prediction.predict import Predicted, predict_file
from batchtrain.progress import Progress
from batchtrain.scoring import CustomCode
from tests.support.builders import (
    all_files,
    mixed_table,
    quantity_table,
    run,
    spec_for,
    write_table,
)


def bundle_folder(result: RunResult) -> Path:
    assert result.bundle is not None
    return Path(result.bundle.artifact.url)


def published(result: RunResult) -> pa.Table:
    """What evaluation predicted, by `row_id`."""
    assert result.report is not None
    artifact = result.report.artifact
    names = [name for name in artifact.manifest.files if name.startswith("predictions/")]
    tables = [table_from_bytes(artifact.read(name), where=name) for name in names]
    return pa.concat_tables(tables).sort_by("row_id").combine_chunks()


def predict(model: LoadedBundle, source: Path, out: Path) -> Predicted:
    return predict_file(model, source.name, out, base=source.parent, progress=Progress())


def without_id(table: pa.Table) -> pa.Table:
    return table.drop_columns(["row_id"]).combine_chunks()


def same_bits(found: pa.Table, expected: pa.Table) -> bool:
    """As `equals`, but -0.0 and 0.0 are different."""
    return found.schema == expected.schema and all(
        found[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes()
        if pa.types.is_floating(found.schema.field(name).type)
        else found[name].equals(expected[name])
        for name in expected.column_names
    )


MODELS: dict[str, dict[str, Any]] = {
    "linear, 10 features, 3 classes": {"table": "classes", "model": {"kind": "linear"}},
    "mlp 63, 3 classes": {"table": "classes", "model": {"kind": "mlp", "hidden": [63]}},
    "mlp 65-5, a quantity": {"table": "values", "model": {"kind": "mlp", "hidden": [65, 5]}},
    "mlp 128-64, mixed": {"table": "mixed", "model": {"kind": "mlp", "hidden": [128, 64]}},
    "mlp 9, mixed": {"table": "mixed", "model": {"kind": "mlp", "hidden": [9]}},
}


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_p9_a_category_of_whole_numbers_is_the_same_in_floats(tmp_path: Path, file: str) -> None:
    level = np.arange(90) % 3
    floats = pa.array(level.astype(np.float64), mask=level == 1)
    wholes = floats.cast(pa.int64())
    labels = pa.array(np.array(["a", "b", "c"])[level])
    trained_on = floats if file == "rows.parquet" else wholes
    rows = pa.table({"level": trained_on, "label": labels})
    data = {"columns": {"level": {"kind": "categorical", "missing": "unknown"}}}
    model = load_bundle(bundle_folder(run(spec_for(tmp_path, rows, file=file, data=data))))
    assert model.preprocessor.columns[0].categories == ("0", "2")
    expected, counts = model.predict_table(pa.table({"level": wholes}))
    assert not counts.unseen
    frame = pa.table({"level": floats}).to_pandas()
    assert frame["level"].dtype == np.float64
    assert model.predict(frame)["prediction"].tolist() == expected["prediction"].to_pylist()
    with pytest.raises(SchemaMismatchError, match=r"found 0\.5"):
        model.predict({"level": [0.0, 0.5]})


def test_d10_a_fraction_as_a_category_is_refused_before_training(tmp_path: Path) -> None:
    rows = pa.table({"level": [0.0, 1.0, 2.5] * 20, "label": ["a", "b", "c"] * 20})
    data = {"columns": {"level": {"kind": "categorical"}}}
    with pytest.raises(SpecError, match=r"found 2\.5.* whole numbers"):
        run(spec_for(tmp_path, rows, data=data), last="prepare")


@pytest.mark.parametrize("name", MODELS)
def test_p9_raw_rows_give_exactly_what_evaluation_published(tmp_path: Path, name: str) -> None:
    rows = 420
    values = quantity_table(rows, features=10)
    thirds = pa.array(np.array(["a", "b", "c"])[np.arange(rows) % 3])
    table = {
        "values": values.rename_columns([*values.column_names[:-1], "label"]),
        "classes": values.drop_columns(["y"]).append_column("label", thirds),
        "mixed": mixed_table(rows),
    }[MODELS[name]["table"]]
    loaded = spec_for(
        tmp_path, table, model=MODELS[name]["model"], training={"epochs": 1, "batch_size": 64}
    )
    result = run(loaded)
    model = load_bundle(bundle_folder(result))
    expected = published(result)
    numbers = expected["row_id"].to_numpy()

    whole, counts = model.predict_table(table)
    assert counts.rows == rows
    assert same_bits(without_id(whole.take(numbers)), without_id(expected))

    only, _counts = model.predict_table(table.take(numbers))
    assert same_bits(without_id(only), without_id(expected))

    shuffled = np.random.default_rng(0).permutation(rows)
    mixed, _counts = model.predict_table(table.take(shuffled))
    assert same_bits(without_id(mixed.take(np.argsort(shuffled)[numbers])), without_id(expected))

    one, _counts = model.predict_table(table.slice(int(numbers[-1]), 1))
    assert same_bits(without_id(one), without_id(expected.slice(len(expected) - 1)))

    write_table(tmp_path / "again.csv", table)
    for out in ("out.parquet", "out.csv"):
        predict(model, tmp_path / "again.csv", tmp_path / out)
    assert same_bits(pq.read_table(tmp_path / "out.parquet"), whole.combine_chunks())
    text = pa_csv.read_csv(
        tmp_path / "out.csv", convert_options=pa_csv.ConvertOptions(column_types=whole.schema)
    )
    assert same_bits(text.combine_chunks(), whole.combine_chunks())


def test_d28_where_blocks_are_cut_does_not_show(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    whole, counts = model.predict_table(finished.table)
    monkeypatch.setattr(loaded_module, "BLOCK_ROWS", 33)
    cut, again = model.predict_table(finished.table)
    assert same_bits(cut.combine_chunks(), whole.combine_chunks())
    assert again == counts
    source = write_table(tmp_path / "rows.parquet", finished.table)
    monkeypatch.setattr(predict_module, "EmbeddedEngine", partial(EmbeddedEngine, 33))
    done = predict(model, source, tmp_path / "out.parquet")
    assert same_bits(pq.read_table(tmp_path / "out.parquet"), whole.combine_chunks())
    assert done.counts == counts


def test_a_frame_comes_back_as_a_frame_with_names_and_probabilities(finished: Any) -> None:
    model = load_bundle(bundle_folder(finished.result))
    frame = finished.table.to_pandas()
    found = model.predict(frame.sample(frac=1, random_state=0).reset_index(drop=True))
    assert isinstance(found, pd.DataFrame)
    assert list(found) == ["row_id", "prediction", *(f"probability_{name}" for name in "abc")]
    assert found["row_id"].tolist() == list(range(400))
    probabilities = found[[f"probability_{name}" for name in "abc"]].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert found["prediction"].tolist() == ["abc"[code] for code in probabilities.argmax(axis=1)]


def test_a_frame_keeps_its_index_so_that_predictions_can_be_joined(finished: Any) -> None:
    model = load_bundle(bundle_folder(finished.result))
    whole = finished.table.to_pandas()
    expected = model.predict(whole)["prediction"]
    some = whole[whole["age"] > 40].sample(frac=1, random_state=0)
    some["predicted"] = model.predict(some)["prediction"]
    assert 0 < len(some) < len(whole)
    assert some["predicted"].tolist() == expected[some.index].tolist()
    named = whole.set_index(pd.MultiIndex.from_product([["a", "b"], range(200)], names=["k", "n"]))
    assert model.predict(named).index.equals(named.index)
    assert model.predict(whole.iloc[:0]).index.equals(whole.index[:0])


def test_a_single_row_is_predicted_as_it_would_be_among_others(finished: Any) -> None:
    model = load_bundle(bundle_folder(finished.result))
    rows = finished.table.slice(0, 30).to_pylist()
    whole = model.predict(finished.table)
    for number, row in enumerate(rows):
        row.pop("label")
        found = model.predict({name: [value] for name, value in row.items()})
        assert (
            found.drop(columns="row_id").iloc[0].equals(whole.drop(columns="row_id").iloc[number])
        )


def test_no_rows_are_no_predictions(finished: Any) -> None:
    model = load_bundle(bundle_folder(finished.result))
    found, counts = model.predict_table(finished.table.slice(0, 0))
    assert found.num_rows == counts.rows == 0
    assert found.schema == model.predict_table(finished.table)[0].schema


def test_d08_what_happens_to_the_rows_is_counted_and_said(tmp_path: Path) -> None:
    drop = {"columns": {"dose": {"kind": "numeric", "missing": "drop"}}}
    result = run(spec_for(tmp_path, mixed_table(120), data=drop))
    model = load_bundle(bundle_folder(result))
    table = pa.table(
        {
            "dose": pa.array([None, 9.5, 11.0]),
            "age": pa.array([30, None, 40]),
            "pressure": pa.array(["LOW", "strange", None]),
            "smoker": pa.array([True, False, None]),
            "more": pa.array([1, 2, 3]),
        }
    )
    found, counts = model.predict_table(table)
    assert found["prediction"].null_count == 1
    assert [name is None for name in found["prediction"].to_pylist()] == [True, False, False]
    assert (counts.rows, counts.unusable) == (3, 1)
    assert counts.filled == {"age": 1, "pressure": 1, "smoker": 1}
    assert counts.unseen == {"pressure": 1}
    assert counts.ignored == ["more"]
    assert len(counts.sentences()) == 6
    assert model.ignored([*table.column_names, "label"]) == ["more"]
    # The rows that can be used are not touched by the one that cannot.
    alone, _counts = model.predict_table(table.slice(1))
    assert same_bits(without_id(alone), without_id(found.slice(1)))


def test_d08_in_python_it_is_logged_and_the_numbers_come_with_the_frame(
    finished: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    rows = finished.table.slice(0, 3).to_pydict()
    rows |= {"age": [20, None, 40], "pressure": ["LOW", "LOW", "strange"], "more": [1, 2, 3]}
    found = model.predict(rows)
    counts = found.attrs["counts"]
    assert (counts["rows"], counts["unseen"], counts["ignored"]) == (3, {"pressure": 1}, ["more"])
    assert counts["filled"]["age"] == 1
    assert {record.name for record in caplog.records} == {"batchtrain"}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(caplog.records)
    for said in ("'age' were filled", "'pressure' do not occur", "not used by the model: 'more'"):
        assert said in caplog.text
    # The command prints them itself.
    caplog.clear()
    model.predict_table(pa.table(rows))
    assert not caplog.records


LOGARITHM = """
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, inputs.num_outputs)

    def forward(self, numeric, codes):
        return self.line(numeric.log())
"""


def test_p7_a_row_without_a_finite_output_is_counted_as_one_without_a_prediction(
    tmp_path: Path,
) -> None:
    (tmp_path / "unit_net_log.py").write_text(LOGARITHM)
    values = np.linspace(1, 2, 60)
    loaded = spec_for(
        tmp_path,
        pa.table({"x": values, "y": values}),
        target="y",
        data={"columns": {"x": {"kind": "numeric", "scale": "none"}}},
        model={"kind": "custom", "target": "unit_net_log:Net"},
    )
    bundle = run(loaded, allow_code=["unit_net_log"]).bundle
    assert bundle is not None
    model = LoadedBundle(bundle, CustomCode("unit_net_log:Net", ["unit_net_log"], tmp_path))
    found, counts = model.predict_table(pa.table({"x": [1.5, -1.0, 0.0, 2.0]}))
    assert [value is None for value in found["prediction"].to_pylist()] == [
        False,
        True,
        True,
        False,
    ]
    assert (counts.rows, counts.not_finite) == (4, 2)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.drop_columns(["age"]), r"'age'"),
        (lambda t: t.rename_columns(["Age", *t.column_names[1:]]), r"upper and lower"),
        (lambda t: t.set_column(0, "age", pa.array(["x"] * len(t))), r"'x'"),
        (lambda t: t.set_column(2, "pressure", pa.array([1.5] * len(t))), r"1\.5"),
    ],
)
def test_d09_d10_a_table_that_does_not_fit_gets_a_sentence(
    finished: Any, change: Callable[[pa.Table], pa.Table], error: str
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    with pytest.raises(SchemaMismatchError, match=error):
        model.predict_table(change(finished.table))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("age", "x"), ["rows.csv, row 3 (after the header", "found 'x'", "as its training did"]),
        (("dose", "inf"), ["rows.csv: ", "found inf in row 2. Correct the value"]),
    ],
)
def test_d10_d14_the_advice_about_a_bad_value_is_one_for_prediction(
    finished: Any, tmp_path: Path, change: tuple[str, str], said: list[str]
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    rows = finished.table.slice(0, 5).to_pydict()
    column, value = change
    rows[column] = [*map(str, rows[column][:2]), value, "1", "1"]
    source = write_table(
        tmp_path / "rows.csv",
        pa.table(rows).cast(pa.schema([(name, pa.string()) for name in rows])),
    )
    with pytest.raises(DataError) as caught:
        predict(model, source, tmp_path / "out.csv")
    message = str(caught.value)
    assert [each for each in said if each not in message] == []
    for training in ("null_values", "declare", "exclude", "0 more"):
        assert training not in message
    with pytest.raises(DataError, match="orrect the value"):
        model.predict(rows)


def test_x15_a_class_that_a_spreadsheet_would_run_is_neutralised_in_csv_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = np.array(["=1+1", "-1", "plain"])
    table = mixed_table(120)
    labels = pa.array(names[np.arange(120) % 3])
    table = table.set_column(4, "label", labels)
    model = load_bundle(bundle_folder(run(spec_for(tmp_path, table))))
    expected, _counts = model.predict_table(table)
    formulas = pc.sum(pc.equal(expected["prediction"], "=1+1")).as_py()
    assert formulas > 0
    monkeypatch.setattr(predict_module, "EmbeddedEngine", partial(EmbeddedEngine, 50))
    source = tmp_path / "rows.parquet"
    done = predict(model, source, tmp_path / "out.csv")
    assert done.neutralised == formulas
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    assert {row["prediction"] for row in rows} <= {"'=1+1", "-1", "plain"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@", "+"))]
    exact = predict(model, source, tmp_path / "out.parquet")
    assert exact.neutralised == 0
    assert pq.read_table(tmp_path / "out.parquet")["prediction"].equals(expected["prediction"])


def test_an_output_that_exists_is_never_written_over(finished: Any, tmp_path: Path) -> None:
    model = load_bundle(bundle_folder(finished.result))
    source = write_table(tmp_path / "rows.csv", finished.table)
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(DataError, match="does not exist yet"):
        predict(model, source, out)
    assert out.read_text() == "mine"


def test_an_output_that_appears_meanwhile_is_not_written_over_either(
    finished: Any, tmp_path: Path
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    source = write_table(tmp_path / "rows.csv", finished.table)
    out = tmp_path / "out.csv"

    class Late(Progress):
        def working(self, what: str, done: int, total: int | None) -> None:
            out.write_text("mine")

    with pytest.raises(DataError, match="appeared"):
        predict_file(model, source.name, out, base=tmp_path, progress=Late())
    assert out.read_text() == "mine"
    assert all_files(tmp_path) == ["out.csv", "rows.csv"]


@pytest.mark.parametrize("source", ["input", "input/*.csv", "input/rows.csv"])
def test_an_output_inside_the_input_is_refused(finished: Any, tmp_path: Path, source: str) -> None:
    model = load_bundle(bundle_folder(finished.result))
    (tmp_path / "input").mkdir()
    write_table(tmp_path / "input" / "rows.csv", finished.table)
    out = tmp_path / "input" / ("rows.csv" if source.endswith("rows.csv") else "out.csv")
    with pytest.raises((UnsafeInputError, DataError)):
        predict_file(model, source, out, base=tmp_path, progress=Progress())
    assert all_files(tmp_path) == ["input/rows.csv"]


@pytest.mark.parametrize("name", ["out.txt", "out", "nowhere/out.csv"])
def test_an_output_that_cannot_be_is_refused_before_any_row_is_read(
    finished: Any, tmp_path: Path, name: str
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    with pytest.raises(DataError, match="--out"):
        predict_file(model, "nothing.csv", tmp_path / name, base=tmp_path, progress=Progress())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("bad row"), MemoryError()])
def test_a_prediction_that_is_cut_off_leaves_no_output(
    finished: Any, tmp_path: Path, error: BaseException
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    source = write_table(tmp_path / "rows.csv", finished.table)

    class Broken(Progress):
        def working(self, what: str, done: int, total: int | None) -> None:
            raise error

    with pytest.raises(type(error)):
        predict_file(model, source.name, tmp_path / "o.parquet", base=tmp_path, progress=Broken())
    assert all_files(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPERM])
def test_r26_an_output_that_storage_refuses_is_a_storage_error(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    source = write_table(tmp_path / "rows.csv", finished.table)

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"out\.csv"):
        predict(model, source, tmp_path / "out.csv")
    assert all_files(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize("file", ["rows.parquet", "rows.csv"])
@pytest.mark.parametrize("out", ["out.parquet", "out.csv"])
def test_an_input_without_rows_gives_an_output_without_rows(
    finished: Any, tmp_path: Path, file: str, out: str
) -> None:
    model = load_bundle(bundle_folder(finished.result))
    source = write_table(tmp_path / file, finished.table.slice(0, 0))
    done = predict(model, source, tmp_path / out)
    assert done.counts.rows == 0
    assert any("0 rows" in sentence for sentence in done.counts.sentences())
    expected = model.predict_table(finished.table)[0].schema
    if out == "out.parquet":
        assert pq.read_table(tmp_path / out).equals(expected.empty_table())
    else:
        assert (tmp_path / out).read_text().strip().replace('"', "").split(",") == expected.names


def test_d09_an_input_without_rows_must_have_the_columns(finished: Any, tmp_path: Path) -> None:
    model = load_bundle(bundle_folder(finished.result))
    for file in ("rows.parquet", "rows.csv"):
        source = write_table(tmp_path / file, finished.table.slice(0, 0).drop_columns(["age"]))
        with pytest.raises(SchemaMismatchError, match="'age'"):
            predict(model, source, tmp_path / "out.csv")


def test_an_empty_csv_file_among_others_is_still_refused(finished: Any, tmp_path: Path) -> None:
    model = load_bundle(bundle_folder(finished.result))
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in" / "a.csv", finished.table.slice(0, 0))
    write_table(tmp_path / "in" / "b.csv", finished.table)
    with pytest.raises(DataError, match=r"a\.csv.*rows"):
        predict(model, tmp_path / "in", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_bundle_works_wherever_it_is_copied(finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "a b" / "model"
    shutil.copytree(bundle_folder(finished.result), copy)
    found = load_bundle(copy).predict_table(finished.table)[0]
    original = load_bundle(bundle_folder(finished.result)).predict_table(finished.table)[0]
    assert found.equals(original)
    assert load_bundle(str(copy)).content == load_bundle(copy).content


def test_what_is_no_bundle_is_refused_with_what_to_do(finished: Any, tmp_path: Path) -> None:
    folder = bundle_folder(finished.result)
    for path, kind in (
        (tmp_path / "nothing", ArtifactMissingError),
        (tmp_path, ArtifactMissingError),
        (Path(finished.result.trained.artifact.url), ArtifactError),
        (folder / "manifest.json", BatchtrainError),
    ):
        with pytest.raises(kind):
            load_bundle(path)


def test_a_bundle_with_a_changed_file_does_not_load(finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundle_folder(finished.result), copy)
    for name in ("model.safetensors", "preprocess.json"):
        (path,) = copy.rglob(name)
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(ArtifactDamagedError, match=name):
            load_bundle(copy)
        path.write_bytes(whole)
