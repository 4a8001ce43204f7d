"""Note 1, the line y = 0.7x + 0.3: one test for each row of its checklist, named by the row."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.optim import SGD
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.prediction.predict import predict_file
from batchtrain.progress import Progress
from batchtrain.tables import SAMPLES, write_sample
from tests.support.bare_loop import bare_loop
from tests.support.figures import cells, figure_of, markers, texts
from tests.support.runs import SPECS, FinishedRun, finish, read_json

Example = Callable[..., FinishedRun]

BLUE, GREEN, RED = "#0072b2", "#009e73", "#cc3311"


@pytest.fixture
def line(example: Example) -> FinishedRun:
    return example("line")


def mean_absolute_error(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.l1_loss(outputs[:, 0], target)


def test_seed_1_1_sample_line(line: FinishedRun) -> None:
    table = SAMPLES["line"]()
    x, y = table["x"].to_numpy(), table["y"].to_numpy()

    assert x == pytest.approx(np.arange(0, 1, 0.02), abs=1e-7)
    assert y == pytest.approx(0.7 * x + 0.3, abs=1e-6)
    assert line.prepared.load("train").numeric.shape == (40, 1)
    assert line.prepared.load("test").numeric.shape == (10, 1)


def test_seed_1_2_ordered_split(line: FinishedRun) -> None:
    assert line.row_ids("train").tolist() == list(range(40))
    assert line.row_ids("test").tolist() == list(range(40, 50))


def test_seed_1_3_raw_parameters(networks: Path) -> None:
    spec = networks / "raw-line.yaml"
    text = (SPECS / "line.yaml").read_text()
    text = text.replace("{kind: linear}", "{kind: custom, target: seed_networks:RawLine}")
    spec.write_text(text.replace("../../runs", "runs"))

    run = finish(spec, allow_code=["seed_networks"])

    weights = run.weights()
    assert {name: list(value.shape) for name, value in weights.items()} == {
        "weights": [1],
        "bias": [1],
    }
    assert weights["weights"].item() == pytest.approx(0.7, abs=0.02)
    assert weights["bias"].item() == pytest.approx(0.3, abs=0.02)


def test_seed_1_4_linear_model(line: FinishedRun) -> None:
    shapes = {name: list(value.shape) for name, value in line.weights().items()}

    assert shapes == {"linear.weight": [1, 1], "linear.bias": [1]}
    x, _, _ = line.tensors("test")
    weight, bias = (line.weights()[f"linear.{name}"].item() for name in ("weight", "bias"))
    predicted = line.predictions("test")["prediction"].to_numpy()
    assert predicted == pytest.approx(weight * x[:, 0].numpy() + bias, abs=1e-6)


def test_seed_1_5_seed(example: Example, tmp_path: Path) -> None:
    short = "training.epochs=3"
    first = example("line", short, last="train")
    again = finish(SPECS / "line.yaml", f"storage={tmp_path}", short, last="train")
    other = example("line", short, "seed=43", last="train")

    def saved(run: FinishedRun) -> bytes:
        return run.trained.artifact.read("last.safetensors")

    assert again.statuses["train"] == "built"
    assert saved(again) == saved(first)
    assert again.history == first.history
    assert saved(other) != saved(first)


def test_seed_1_6_parameters_are_listed(line: FinishedRun) -> None:
    listed = line.trained.parameters()

    expected = line.fresh_model().state_dict()
    assert {row["name"]: row["shape"] for row in listed} == {
        name: list(value.shape) for name, value in expected.items()
    }
    assert [row["count"] for row in listed] == [1, 1]
    shown = {row[0]: row[1] for row in cells(line.page, "Parameters")}
    assert shown == {"linear.weight": "1 x 1", "linear.bias": "1"}


def test_seed_1_7_mae_loss(line: FinishedRun) -> None:
    x, _, y = line.tensors("test")
    with torch.no_grad():
        expected = mean_absolute_error(line.learned_model("last")(x, x.long()[:, :0]), y)

    assert line.history[-1]["test_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_seed_1_8_sgd_steps(example: Example) -> None:
    run = example("line", "training.epochs=100", last="train")

    expected = bare_loop(run, lambda params: SGD(params, lr=0.01, fused=True), mean_absolute_error)

    for name, value in run.weights("last").items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-6)


def test_seed_1_9_full_batch(line: FinishedRun) -> None:
    content = line.trained.content

    assert (content["batch_rows"], content["epochs"], content["steps"]) == (40, 1000, 1000)
    assert [record["step"] for record in line.history] == list(range(1001))


def test_seed_1_10_baseline_at_epoch_0(line: FinishedRun) -> None:
    x, _, y = line.tensors("test")
    with torch.no_grad():
        untrained = mean_absolute_error(line.fresh_model()(x, x.long()[:, :0]), y)

    first = line.history[0]
    assert (first["epoch"], first["step"], first["train_loss"]) == (0, 0, None)
    assert first["test_loss"] == pytest.approx(float(untrained), rel=1e-6)


def test_seed_1_11_test_loss_in_the_loop(line: FinishedRun) -> None:
    losses = [record["test_loss"] for record in line.history]

    assert len(losses) == 1001
    assert all(type(loss) is float for loss in losses)
    assert losses[-1] < 0.02 < losses[0]


def test_seed_1_12_log_every(storage: Path) -> None:
    arguments = ["train", str(SPECS / "line.yaml"), "--set", f"storage={storage / 'logged'}"]

    result = CliRunner().invoke(app, [*arguments, "--set", "training.epochs=300"])

    assert result.exit_code == 0, result.output
    found = re.findall(r"Epoch \[(\d+)/300\], Loss: ([\d.]+), test ([\d.]+)", result.output)
    assert [int(epoch) for epoch, _, _ in found] == [1, 100, 200, 300]
    assert float(found[-1][1]) < float(found[0][1])


def test_seed_1_13_loss_curves(line: FinishedRun) -> None:
    figure = figure_of(line.page, "Learning curves: loss by epoch")

    assert {"Loss by epoch", "Epoch", "train", "test"} <= set(texts(figure))
    assert any(text.startswith("Loss (") for text in texts(figure))
    curves = [path for path in re.findall(r'\bd="([^"]*)"', figure) if path.count("L") > 20]
    assert len(curves) == 2


def test_seed_1_14_storage_layout(line: FinishedRun, storage: Path) -> None:
    assert line.folder.parent == storage / "line"
    manifest = read_json(line.folder / "model" / "manifest.json")
    saved = line.folder / "model" / manifest["files"]["best.safetensors"]["path"]

    assert saved.stat().st_size == manifest["files"]["best.safetensors"]["size"]
    assert line.bundle_folder.parent == line.folder / "bundles"


def test_seed_1_15_fresh_object(line: FinishedRun) -> None:
    x, _, _ = line.tensors("test")
    fresh = line.fresh_model()
    with torch.no_grad():
        before = fresh(x, x.long()[:, :0])
        fresh.load_state_dict(line.weights())
        after = fresh(x, x.long()[:, :0])

    predicted = line.predictions("test")["prediction"].to_numpy()
    assert after[:, 0].numpy() == pytest.approx(predicted, abs=1e-6)
    assert before[:, 0].numpy() != pytest.approx(predicted, abs=1e-2)


def test_seed_1_16_environment_of_the_run(line: FinishedRun) -> None:
    record = read_json(line.folder / "run.json")

    assert record["torch"] == torch.__version__
    assert {row["device"] for row in line.trained.parameters()} == {record["device"]}
    shown = {row[0]: row[1] for row in cells(line.page, "Environment")}
    assert (shown["torch"], shown["device"]) == (record["torch"], record["device"])


def test_seed_1_17_learned_against_true(line: FinishedRun) -> None:
    rows = {row[0]: row[1:] for row in cells(line.page, "Learned against true")}

    assert {name: float(row[0]) for name, row in rows.items()} == {"weight": 0.7, "bias": 0.3}
    for name, (true, learned, difference) in rows.items():
        assert float(learned) == pytest.approx(line.weights()[f"linear.{name}"].item(), rel=1e-3)
        assert float(learned) == pytest.approx(float(true), abs=0.02)
        assert float(difference) == pytest.approx(float(learned) - float(true), abs=1e-4)


def test_seed_1_18_scatter_of_train_test_and_predictions(line: FinishedRun) -> None:
    figure = figure_of(line.page, "Train rows, test rows and predictions")

    assert [markers(figure, color) for color in (BLUE, GREEN, RED)] == [40, 10, 10]
    assert {"train", "test", "predictions", "x", "y"} <= set(texts(figure))


def test_seed_1_19_predictions_on_test_data_after_loading(
    line: FinishedRun, tmp_path: Path
) -> None:
    write_sample("line", tmp_path / "line.parquet")
    out = tmp_path / "predictions.parquet"

    done = predict_file(line.model, "line.parquet", out, base=tmp_path, progress=Progress())

    assert (done.counts.rows, done.counts.ignored) == (50, [])
    predicted = pq.read_table(out)
    in_test = predicted["prediction"].to_numpy()[40:]
    assert in_test.tolist() == line.predictions("test")["prediction"].to_pylist()
    assert in_test == pytest.approx(SAMPLES["line"]()["y"].to_numpy()[40:], abs=0.02)
