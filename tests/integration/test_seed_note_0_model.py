"""Note 0, drug200, from model to bundle: one test for each row of its checklist, by its ID."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    mean_squared_error,
    r2_score,
)
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.errors import SpecError
from batchtrain.prediction.loaded import load_bundle
from tests.support.figures import figure_of, markers, texts
from tests.support.runs import SPECS, FinishedRun, finish, scalars

Example = Callable[..., FinishedRun]

CLASSES = ["DrugY", "drugA", "drugB", "drugC", "drugX"]


# ----------------------------------------------------------------------------------------------
# Model and training


def test_seed_0_12_mlp_with_layers_activation_and_dropout(drug200: FinishedRun) -> None:
    layers = drug200.fresh_model().layers
    assert isinstance(layers, nn.Sequential)

    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert [layers[place].out_features for place in (0, 3, 6)] == [128, 64, 5]
    assert [layers[place].p for place in (2, 5)] == [0.3, 0.3]


def test_seed_0_13_input_size_and_class_count_come_from_the_data(example: Example) -> None:
    drug200 = example("drug200").trained.content["inputs"]
    wine = example("wine").trained.content["inputs"]

    assert drug200 == {"num_numeric": 2, "cardinalities": [3, 4, 3], "num_outputs": 5}
    assert wine == {"num_numeric": 13, "cardinalities": [], "num_outputs": 3}


def test_seed_0_14_device_auto(drug200: FinishedRun) -> None:
    assert drug200.loaded.spec.resources.device == "auto"
    assert drug200.trained.machine()["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_seed_0_15_loss_by_task(example: Example) -> None:
    for name, metric in (("drug200", "log_loss"), ("diabetes", "mse")):
        run = example(name, "training.loss=auto")
        best = run.history[run.trained.content["best_epoch"]]
        assert best["valid_loss"] == pytest.approx(run.metrics["valid"][metric], rel=1e-4)
    with pytest.raises(SpecError, match="mse"):
        example("drug200", "training.loss=mse")


def test_seed_0_16_adam_with_its_learning_rate(example: Example) -> None:
    run = example("drug200", "training.epochs=1", "training.batch_size=full", "model.dropout=0")
    before, after = run.fresh_model().state_dict(), run.weights("last")

    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in after])
    # Adam's first step is the learning rate in the direction of the gradient, however long it is.
    assert moved.max() == pytest.approx(1e-3, rel=1e-2)
    assert moved[moved > 0].median() == pytest.approx(1e-3, rel=1e-2)


def test_seed_0_17_plateau_schedule(drug200: FinishedRun) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=1e-3)
    schedule = ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=5)
    expected = []
    for record in drug200.history[1:]:
        expected.append(optimizer.param_groups[0]["lr"])
        schedule.step(record["valid_loss"])

    rates = [record["lr"] for record in drug200.history[1:]]
    assert rates == pytest.approx(expected, rel=1e-9)
    assert rates[0] == 1e-3
    assert min(rates) < 1e-4
    first_fall = next(place for place, rate in enumerate(rates) if rate < 1e-3)
    losses = [record["valid_loss"] for record in drug200.history[1:]]
    assert min(losses[first_fall - 6 : first_fall]) > min(losses[: first_fall - 6]) * (1 - 1e-4)


def test_seed_0_18_epochs_and_row_weighted_loss(example: Example) -> None:
    assert len(example("drug200").history) == 101
    run = example("drug200", "training.epochs=2", "tracking.log_every_steps=1", last="train")
    losses = [value for _, value in scalars(run.events, "Loss/train")]
    rows = [32, 32, 32, 32, 13]

    second = losses[5:10]
    weighted = sum(loss * count for loss, count in zip(second, rows, strict=True)) / sum(rows)
    assert run.history[2]["train_loss"] == pytest.approx(weighted, rel=1e-6)
    assert weighted != pytest.approx(sum(second) / len(second), rel=1e-4)


def test_seed_0_19_training_and_evaluation_modes(networks: Path) -> None:
    spec = networks / "witness.yaml"
    spec.write_text(
        "version: 1\nname: witness\nstorage: runs\n"
        "data: {source: sample:linear, target: y}\n"
        "model: {kind: custom, target: seed_networks:Witness}\n"
        "training: {epochs: 2, batch_size: 32}\n"
        "tracking: {tensorboard: false}\n"
    )

    run = finish(spec, last="train", allow_code=["seed_networks"])

    import seed_networks  # type: ignore[import-not-found]

    calls = [call for call in seed_networks.CALLS if call[2] != 2]  # not the probe of the shapes
    rows = run.prepared.num_rows("valid")
    validate, train = [(False, False, rows)], [(True, True, 32), (True, True, 32), (True, True, 6)]
    assert calls == [*validate, *train, *validate, *train, *validate]


def test_seed_0_20_epoch_line(storage: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            *("train", str(SPECS / "drug200.yaml"), "--set", f"storage={storage}"),
            *("--set", "training.epochs=4", "--set", "tracking.log_every_epochs=1"),
        ],
    )

    assert result.exit_code == 0, result.output
    lines = re.findall(r"Epoch \[(\d+)/4\], Loss: (\d+\.\d{4})", result.output)
    assert [int(epoch) for epoch, _ in lines] == [1, 2, 3, 4]
    assert float(lines[3][1]) < float(lines[0][1])


# ----------------------------------------------------------------------------------------------
# Evaluation and report


def test_seed_0_21_test_loss_and_accuracy(drug200: FinishedRun) -> None:
    model = drug200.learned_model()
    numeric, codes, target = drug200.tensors("test")
    with torch.no_grad():
        outputs = model(numeric, codes)
    found = drug200.metrics["test"]

    loss = nn.functional.cross_entropy(outputs, target)
    assert found["log_loss"] == pytest.approx(float(loss), rel=1e-5)
    right = (outputs.argmax(dim=1) == target).double().mean()
    assert found["accuracy"] == pytest.approx(float(right), abs=1e-12)


def test_seed_0_22_accuracy_mse_and_r2(example: Example) -> None:
    classified, regressed = example("drug200"), example("diabetes")
    for split in ("valid", "test"):
        predicted = classified.predictions(split)["prediction"].to_pylist()
        accuracy = accuracy_score(classified.class_names(split), predicted)
        assert classified.metrics[split]["accuracy"] == pytest.approx(accuracy)
        table = classified.predictions(split).to_pandas()
        probabilities = table[[f"probability_{name}" for name in CLASSES]].to_numpy(float)
        expected = log_loss(
            classified.class_names(split),
            probabilities / probabilities.sum(axis=1, keepdims=True),
            labels=CLASSES,
        )
        assert classified.metrics[split]["log_loss"] == pytest.approx(expected, rel=1e-4)

        actual = regressed.prepared.load(split).target
        values = regressed.predictions(split)["prediction"].to_numpy()
        found = regressed.metrics[split]
        assert found["mse"] == pytest.approx(mean_squared_error(actual, values), rel=1e-5)
        assert found["r2"] == pytest.approx(r2_score(actual, values), rel=1e-5)


def test_seed_0_23_loss_curve_plot(drug200: FinishedRun) -> None:
    figure = figure_of(drug200.page, "Learning curves: loss by epoch")

    assert {"Loss by epoch", "Epoch", "train", "valid"} <= set(texts(figure))
    # Two curves of 100 points and more each.
    assert sum(path.count("L") >= 90 for path in re.findall(r'\bd="([^"]*)"', figure)) >= 2


def test_seed_0_24_prediction_against_truth_plot(example: Example) -> None:
    run = example("diabetes")
    figure = figure_of(run.page, "Predicted against actual values")

    assert {"Actual", "Predicted", "equal", "test rows"} <= set(texts(figure))
    assert markers(figure, "#0072b2") == run.prepared.num_rows("test")


def test_seed_0_25_confusion_matrix_with_counts(drug200: FinishedRun) -> None:
    predicted = drug200.predictions("test")["prediction"].to_pylist()
    expected = confusion_matrix(drug200.class_names("test"), predicted, labels=CLASSES)
    figure = figure_of(drug200.page, "Confusion matrix of 5 classes")
    shown = texts(figure)

    assert [int(text) for text in shown if text.isdigit()] == expected.flatten().tolist()
    assert {"Predicted", "True", "Confusion matrix, test split"} <= set(shown)
    assert all(shown.count(name) == 2 for name in CLASSES)


# ----------------------------------------------------------------------------------------------
# What is kept, and used again


def test_seed_0_26_weights_are_saved(drug200: FinishedRun) -> None:
    saved, expected = drug200.weights(), drug200.fresh_model().state_dict()

    assert set(saved) == set(expected)
    assert all(saved[name].shape == expected[name].shape for name in saved)
    assert any(not torch.equal(saved[name], expected[name]) for name in saved)


def test_seed_0_27_bundle_holds_all_that_prediction_needs(
    drug200: FinishedRun, patients: pd.DataFrame, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "copied"
    shutil.copytree(drug200.bundle_folder, elsewhere)
    state, inputs = drug200.bundle.preprocessing_state(), drug200.bundle.content["inputs"]

    fitted = {column["name"]: column for column in state["columns"]}
    assert fitted["Age"]["divisor"] > 1
    assert fitted["BP"]["categories"] == ["HIGH", "LOW", "NORMAL"]
    assert state["target"]["classes"] == CLASSES
    assert inputs["num_outputs"] == len(CLASSES)
    expected = drug200.predictions("test").to_pandas()
    found = load_bundle(elsewhere).predict(patients.loc[expected["row_id"]])
    assert found.index.tolist() == expected["row_id"].tolist()
    found = found.reset_index(drop=True)
    assert found.drop(columns="row_id").equals(expected.drop(columns="row_id"))


def test_seed_0_28_bundle_holds_the_architecture(drug200: FinishedRun) -> None:
    model = drug200.bundle.content["model"]

    assert (model["kind"], model["hidden"]) == ("mlp", [128, 64])
    assert (model["activation"], model["dropout"]) == ("relu", 0.3)
    resolved = drug200.bundle.artifact.read("spec.yaml").decode()
    assert "hidden: [128, 64]" in resolved


def test_seed_0_29_rebuilt_model_is_in_evaluation_mode(
    drug200: FinishedRun, patients: pd.DataFrame
) -> None:
    rebuilt = drug200.learned_model()
    numeric, codes, _ = drug200.tensors("test")
    with torch.no_grad():
        expected = rebuilt(numeric, codes).softmax(dim=1)
        in_training = rebuilt.train()(numeric, codes).softmax(dim=1)

    twice = [drug200.model.predict(patients.loc[drug200.row_ids("test")]) for _ in range(2)]
    assert twice[0].equals(twice[1])
    found = twice[0][[f"probability_{name}" for name in CLASSES]].to_numpy()
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert found != pytest.approx(in_training.numpy(), abs=1e-2)
