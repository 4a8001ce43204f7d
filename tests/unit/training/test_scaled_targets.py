"""A regression learns its target in deviations from the mean, and predicts in its own units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import yaml

from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.export.verify import verify
from batchtrain.models.target_scale import TargetScale
from batchtrain.pipeline import RunResult
from batchtrain.prediction.loaded import load_bundle
from batchtrain.training.shards import ScaledShards, StoredShards
from tests.support.builders import prepared_for, quantity_table, run, spec_for, train_in_parts

TRAINING = {"epochs": 12, "batch_size": 16}


def in_millions(num_rows: int = 160) -> pa.Table:
    table = quantity_table(num_rows)
    return with_target(table, 2.5e6 + 4e5 * table["y"].to_numpy())


def with_target(table: pa.Table, values: np.ndarray) -> pa.Table:
    return table.set_column(table.column_names.index("y"), "y", pa.array(values))


def run_of(parent: Path, name: str, table: pa.Table, scale: str, **sections: Any) -> RunResult:
    made = parent / name
    made.mkdir()
    training = {**TRAINING, **sections.pop("training", {}), "target_scale": scale}
    return run(spec_for(made, table, target="y", training=training, **sections))


def trained_of(result: RunResult) -> TrainedModel:
    assert result.trained is not None
    return result.trained


def metrics_of(result: RunResult, split: str = "test") -> dict[str, Any]:
    assert result.report is not None
    return result.report.metrics[split]


def predictions_of(result: RunResult, split: str) -> pa.Table:
    assert result.report is not None
    data = result.report.artifact.read(f"predictions/{split}.parquet")
    return table_from_bytes(data, where=split)


def test_a_target_in_millions_is_learned_as_the_same_target_scaled_by_hand(
    tmp_path: Path,
) -> None:
    table = in_millions()
    ours = run_of(tmp_path, "ours", table, "auto")
    assert ours.prepared is not None
    assert ours.prepared.target_statistics is not None
    mean, deviation = ours.prepared.target_statistics
    by_hand = run_of(
        tmp_path, "by-hand", with_target(table, (table["y"].to_numpy() - mean) / deviation), "none"
    )
    assert trained_of(ours).best_weights() == trained_of(by_hand).best_weights()
    assert trained_of(ours).history() == trained_of(by_hand).history()
    assert trained_of(ours).content["state_sha256"] == trained_of(by_hand).content["state_sha256"]
    for split in ("valid", "test"):
        expected = predictions_of(by_hand, split)["prediction"].to_numpy() * deviation + mean
        assert np.array_equal(predictions_of(ours, split)["prediction"].to_numpy(), expected)
    assert metrics_of(ours)["r2"] == pytest.approx(metrics_of(by_hand)["r2"], abs=1e-5)
    assert metrics_of(ours)["mae"] == pytest.approx(
        metrics_of(by_hand)["mae"] * deviation, rel=1e-5
    )


def test_without_a_scale_the_same_training_does_not_get_there(tmp_path: Path) -> None:
    table = in_millions()
    fast = {"optimizer": {"kind": "adam", "lr": 0.02}}
    scaled = run_of(tmp_path, "scaled", table, "standard", training=fast)
    assert metrics_of(scaled)["r2"] > 0.6
    assert metrics_of(run_of(tmp_path, "plain", table, "none", training=fast))["r2"] < 0


def test_history_is_in_deviations_and_r2_and_metrics_are_not(tmp_path: Path) -> None:
    result = run_of(tmp_path, "run", in_millions(), "auto")
    last = trained_of(result).history()[-1]
    best = next(
        record
        for record in trained_of(result).history()
        if record["epoch"] == trained_of(result).content["best_epoch"]
    )
    assert last["valid_loss"] < 5
    assert result.prepared is not None
    assert result.prepared.target_statistics is not None
    _mean, deviation = result.prepared.target_statistics
    valid = metrics_of(result, "valid")
    assert valid["rmse"] == pytest.approx(best["valid_loss"] ** 0.5 * deviation, rel=1e-4)
    assert valid["r2"] == pytest.approx(best["valid_r2"], rel=1e-4)


def test_raw_rows_are_predicted_as_evaluation_did_in_the_targets_own_units(tmp_path: Path) -> None:
    table = in_millions()
    result = run_of(tmp_path, "run", table, "auto")
    assert result.bundle is not None
    bundle = load_bundle(result.bundle.artifact.url)
    frame = bundle.predict(table.drop_columns(["y"]))
    for split in ("valid", "test"):
        evaluated = predictions_of(result, split)
        raw = frame["prediction"].to_numpy()[evaluated["row_id"].to_numpy()]
        assert np.array_equal(raw, evaluated["prediction"].to_numpy())
        assert raw.dtype == np.float64
        assert raw.mean() > 1e6
    assert verify(result.bundle).exact
    scale = result.bundle.content["target_scale"]
    assert scale == trained_of(result).content["target_scale"]
    assert result.prepared is not None
    assert (scale["mean"], scale["deviation"]) == result.prepared.target_statistics


def test_a_small_spread_around_a_large_mean_keeps_its_digits(tmp_path: Path) -> None:
    table = quantity_table(160)
    table = with_target(table, 1.7e12 + table["y"].to_numpy())
    result = run_of(tmp_path, "run", table, "auto")
    assert result.bundle is not None
    best_epoch = trained_of(result).content["best_epoch"]
    (best,) = [each for each in trained_of(result).history() if each["epoch"] == best_epoch]
    valid = metrics_of(result, "valid")
    assert valid["r2"] == pytest.approx(best["valid_r2"], rel=1e-2)
    assert metrics_of(result)["r2"] > 0
    predicted = predictions_of(result, "test")["prediction"].to_numpy()
    assert len(np.unique(predicted)) == len(predicted)
    bundle = load_bundle(result.bundle.artifact.url)
    found = bundle.predict(table)["prediction"].to_numpy()
    numbers = predictions_of(result, "test")["row_id"].to_numpy()
    assert np.array_equal(found[numbers], predicted)
    assert verify(result.bundle).exact


@pytest.mark.parametrize(
    ("model", "asked", "is_scaled"),
    [
        ({"kind": "mlp", "hidden": [4]}, "auto", True),
        ({"kind": "mlp", "hidden": [4]}, "none", False),
        ({"kind": "linear"}, "auto", False),
        ({"kind": "linear"}, "standard", True),
    ],
)
def test_what_is_scaled_is_written_down(
    tmp_path: Path, model: dict[str, Any], asked: str, is_scaled: bool
) -> None:
    result = run_of(tmp_path, "run", quantity_table(60), asked, model=model, training={"epochs": 1})
    assert (trained_of(result).content["target_scale"] is not None) == is_scaled
    assert result.report is not None
    resolved = yaml.safe_load(result.report.artifact.read("spec.yaml"))
    assert resolved["training"]["target_scale"] == ("standard" if is_scaled else "none")
    told = "Losses are those of the scaled target" in result.report.page().decode()
    assert told == is_scaled


def test_a_target_without_a_spread_in_the_training_rows_is_shifted_only(tmp_path: Path) -> None:
    table = with_target(quantity_table(40), np.where(np.arange(40) < 20, 7e6, 7e6 + np.arange(40)))
    split = {"kind": "ordered", "fractions": {"train": 0.5, "valid": 0.25, "test": 0.25}}
    result = run_of(tmp_path, "run", table, "auto", data={"split": split})
    assert trained_of(result).content["target_scale"] == {"mean": 7e6, "deviation": 1.0}
    predicted = predictions_of(result, "test")["prediction"].to_numpy()
    assert np.abs(predicted - 7e6).max() < 100


def test_p1_a_scaled_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    found = []
    for name, stops in (("whole", []), ("broken", [4, 9])):
        made = tmp_path / name
        made.mkdir()
        loaded = spec_for(made, in_millions(), target="y", training={"epochs": 3, "batch_size": 16})
        found.append(trained_of(train_in_parts(loaded, stops)).content["state_sha256"])
    assert found[0] == found[1]


def test_targets_are_scaled_in_float64_when_a_shard_is_read(tmp_path: Path) -> None:
    table = with_target(quantity_table(60), 1e9 + np.arange(60) / 8)
    reader = StoredShards(prepared_for(spec_for(tmp_path, table, target="y")))
    (rows,) = ScaledShards(reader, TargetScale(1e9, 0.125))("train", [0])
    assert rows.target.tolist() == rows.row_id.tolist()


def test_the_line_of_a_linear_model_is_told_in_raw_units(tmp_path: Path) -> None:
    """The line that made the sample has the weight 2 and the bias 1."""
    loaded = spec_for(
        tmp_path,
        target="y",
        data={"source": "sample:linear"},
        model={"kind": "linear"},
        training={
            "epochs": 25,
            "target_scale": "standard",
            "optimizer": {"kind": "adam", "lr": 0.1},
        },
    )
    result = run(loaded, last="evaluate")
    assert result.report is not None
    table = result.report.page().decode().split("Learned against true")[1].split("</table>")[0]
    cells = re.findall(r'<td class="num">(-?[0-9.]+)</td>', table)
    numbers = [float(cell) for cell in cells]
    assert numbers[0::3] == [2.0, 1.0]
    assert numbers[1::3] == pytest.approx([2.0, 1.0], abs=0.2)
    assert float(safetensors.torch.load(trained_of(result).best_weights())["linear.weight"]) < 1.1
