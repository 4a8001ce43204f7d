"""Evaluation: every row of every split once, and the report of the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as oracle

from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.spec.data import SPLITS
from batchtrain.spec.load import load_spec
from tests.support.builders import mixed_table, quantity_table, run, spec_for


def predictions(result: Any, split: str) -> dict[str, np.ndarray]:
    name = f"predictions/{split}.parquet"
    table = table_from_bytes(result.report.artifact.read(name), where=name)
    return {column: table[column].to_numpy() for column in table.column_names}


def test_every_row_of_valid_and_test_is_predicted_once(finished: Any) -> None:
    result = finished.result
    for split in ("valid", "test"):
        expected = result.prepared.load(split).row_id
        assert np.array_equal(predictions(result, split)["row_id"], expected)
    assert "predictions/train.parquet" not in result.report.artifact.manifest.files


def test_metrics_are_those_of_the_published_predictions(finished: Any) -> None:
    result = finished.result
    for split in ("valid", "test"):
        rows, found = result.prepared.load(split), predictions(result, split)
        names = np.array(["a", "b", "c"])[rows.target]
        measured = result.report.metrics[split]
        assert measured["accuracy"] == pytest.approx(
            oracle.accuracy_score(names, found["prediction"])
        )
        expected = oracle.f1_score(names, found["prediction"], average="macro")
        assert measured["f1_macro"] == pytest.approx(expected)
        probabilities = np.stack([found[f"probability_{name}"] for name in "abc"], axis=1)
        exact = probabilities.astype(np.float64) / probabilities.sum(axis=1, dtype=float)[:, None]
        assert measured["log_loss"] == pytest.approx(
            oracle.log_loss(names, exact, labels=list("abc")), rel=1e-5
        )
    assert set(result.report.metrics) == set(SPLITS)


def test_a_quantity_is_measured_in_its_own_units(tmp_path: Path) -> None:
    result = run(spec_for(tmp_path, quantity_table(120), target="y"), last="evaluate")
    rows, found = result.prepared.load("test"), predictions(result, "test")
    measured = result.report.metrics["test"]
    assert measured["mse"] == pytest.approx(
        oracle.mean_squared_error(rows.target, found["prediction"].astype(np.float64))
    )
    assert measured["r2"] == pytest.approx(
        oracle.r2_score(rows.target, found["prediction"].astype(np.float64))
    )


def test_without_other_splits_the_training_rows_are_published(tmp_path: Path) -> None:
    split = {"kind": "random", "fractions": {"train": 1.0}}
    result = run(spec_for(tmp_path, mixed_table(60), data={"split": split}))
    assert len(predictions(result, "train")["row_id"]) == 60
    assert set(result.report.metrics) == {"train"}


def test_d21_a_metric_that_is_undefined_is_null_with_a_reason(tmp_path: Path) -> None:
    table = mixed_table(60)
    # The test rows, which come last, are of one class.
    labels = ["a", "b"] * 24 + ["a"] * 12
    table = table.set_column(4, "label", [labels])
    result = run(spec_for(tmp_path, table, data={"split": {"kind": "ordered"}}))
    document = result.report.metrics_document()
    assert document["metrics"]["test"]["auroc"] is None
    assert "one class" in document["notes"]["test"]["auroc"]
    assert result.report.metrics["test"]["auroc"] is None


def test_another_evaluation_is_another_report_of_the_same_run(tmp_path: Path) -> None:
    first = run(spec_for(tmp_path, mixed_table(60)))
    other = spec_for(tmp_path, evaluation={"metrics": ["accuracy", "log_loss"]})
    second = run(other)
    assert second.run == first.run
    assert [stage.status for stage in second.stages] == ["reused", "reused", "built", "built"]
    assert list(second.report.metrics["test"]) == ["accuracy", "log_loss"]
    assert first.report.artifact.verify()


def test_the_resolved_spec_of_a_report_gives_the_same_run(tmp_path: Path) -> None:
    first = run(spec_for(tmp_path, mixed_table(60), storage="./runs"), last="evaluate")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_bytes(first.report.artifact.read("spec.yaml"))
    second = run(load_spec(resolved), last="train")
    weights = [
        each.trained.artifact.manifest.files["last.safetensors"].sha256 for each in (first, second)
    ]
    assert weights[0] == weights[1]


def test_metrics_and_predictions_are_the_same_bytes_in_another_place(
    tmp_path: Path, finished: Any
) -> None:
    document = json.loads(finished.loaded.path.read_text())
    again = run(
        spec_for(
            tmp_path,
            finished.table,
            data={"columns": document["data"]["columns"]},
            model=document["model"],
        ),
        last="evaluate",
    )
    files = [each.report.artifact.manifest.files for each in (finished.result, again)]
    for name in ("metrics.json", "predictions/test.parquet", "predictions/valid.parquet"):
        assert files[0][name].sha256 == files[1][name].sha256
