"""Note 3, popularity in TensorBoard: one test for each row of its checklist that is built."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.errors import DivergedError
from batchtrain.tables import SAMPLES
from tests.support.bare_loop import bare_loop
from tests.support.runs import (
    SPECS,
    FinishedRun,
    event_files,
    finish,
    open_writers,
    scalars,
)

Example = Callable[..., FinishedRun]

UNSCALED = ("data.columns.price.scale=none", "data.columns.rating.scale=none")
"""As the note has it."""


@pytest.fixture
def popularity(example: Example) -> FinishedRun:
    return example("popularity")


def test_seed_3_1_generated_data_with_a_train_and_a_test_set(popularity: FinishedRun) -> None:
    table = SAMPLES["popularity"]()
    price, rating = table["price"].to_numpy(), table["rating"].to_numpy()

    assert (price.min() >= 1, price.max() <= 10) == (True, True)
    assert (rating.min() >= 1, rating.max() <= 5) == (True, True)
    popular = [name == "popular" for name in table["popular"].to_pylist()]
    assert popular == (price + rating > 10).tolist()
    assert popularity.row_ids("train").tolist() == list(range(800))
    assert popularity.row_ids("test").tolist() == list(range(800, 1000))


def test_seed_3_2_two_logits(popularity: FinishedRun) -> None:
    layers = popularity.fresh_model().layers
    assert isinstance(layers, nn.Sequential)

    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear]
    shapes = [list(value.shape) for value in popularity.weights().values() if value.ndim == 2]
    assert sorted(shapes) == [[2, 32], [32, 2]]
    predicted = popularity.predictions("test").to_pandas()
    both = predicted["probability_popular"] + predicted["probability_not popular"]
    assert both.to_numpy() == pytest.approx(1, abs=1e-6)


def test_seed_3_3_batches_of_32(popularity: FinishedRun) -> None:
    content = popularity.trained.content

    assert (content["batch_rows"], content["epochs"], content["steps"]) == (32, 10, 250)
    # Training shuffles; evaluation gives the rows back in their order.
    in_order = popularity.predictions("test")["row_id"].to_pylist()
    assert in_order == list(range(800, 1000))


def test_seed_3_4_sgd_and_cross_entropy(popularity: FinishedRun) -> None:
    expected = bare_loop(
        popularity, lambda params: SGD(params, lr=0.01, fused=True), nn.functional.cross_entropy
    )

    for name, value in popularity.weights("last").items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=1e-4)


def test_seed_3_5_tensorboard_directory(example: Example, tmp_path: Path) -> None:
    section = f'tracking.tensorboard={{"dir": "{tmp_path}"}}'
    run = example("popularity", section, "training.epochs=1", "seed=7", last="train")

    folder = tmp_path / "popularity" / run.folder.name
    assert len(scalars(folder, "Loss/train")) == 25
    assert not run.events.exists()


def test_seed_3_6_loss_of_every_batch(popularity: FinishedRun) -> None:
    found = scalars(popularity.events, "Loss/train")

    steps_per_epoch = 25
    assert [step for step, _ in found] == [
        epoch * steps_per_epoch + batch for epoch in range(10) for batch in range(steps_per_epoch)
    ]
    # 800 rows are 25 whole batches, so an epoch's loss is the mean of theirs.
    for epoch in range(10):
        losses = [value for _, value in found[25 * epoch : 25 * (epoch + 1)]]
        mean = popularity.history[epoch + 1]["train_loss"]
        assert statistics.mean(losses) == pytest.approx(mean, rel=1e-5)


def test_seed_3_7_accuracy_in_percent_each_epoch(popularity: FinishedRun) -> None:
    found = scalars(popularity.events, "Accuracy/test")

    # Epoch 0 is the model before training.
    assert [step for step, _ in found] == list(range(11))
    expected = [100 * record["test_accuracy"] for record in popularity.history]
    assert [value for _, value in found] == pytest.approx(expected, rel=1e-6)
    # There is no validation split, so the last epoch is not always the one that is kept.
    best = popularity.trained.content["best_epoch"]
    assert found[best][1] == pytest.approx(100 * popularity.metrics["test"]["accuracy"])


def test_seed_3_8_epoch_line_with_loss_and_accuracy(popularity: FinishedRun, storage: Path) -> None:
    spec = str(SPECS / "popularity.yaml")
    result = CliRunner().invoke(app, ["train", spec, "--set", f"storage={storage / 'console'}"])

    assert result.exit_code == 0, result.output
    lines = re.findall(
        r"Epoch \[(\d+)/10\], Loss: (\d\.\d{4}), test \d\.\d{4}, (\d+\.\d) %", result.output
    )
    assert [(int(epoch), float(loss), float(accuracy)) for epoch, loss, accuracy in lines] == [
        (
            record["epoch"],
            round(record["train_loss"], 4),
            round(100 * record["test_accuracy"], 1),
        )
        for record in popularity.history[1:]
    ]


def test_seed_3_9_one_row_gives_a_class_name(popularity: FinishedRun) -> None:
    bundle = str(popularity.bundle_folder)
    for price, rating, expected in ((9.5, 4.5, "popular"), (2.0, 3.0, "not popular")):
        row = json.dumps({"price": price, "rating": rating})
        result = CliRunner().invoke(app, ["predict", bundle, "--row", row])
        assert result.exit_code == 0, result.output
        assert f"popular: {expected}\n" in result.output

    found = popularity.model.predict({"price": [7.5], "rating": [3.0]})
    assert found["prediction"].tolist() in [["popular"], ["not popular"]]


def test_seed_3_10_writer_is_closed_on_failure(storage: Path) -> None:
    # As training does not end well, there is no run to ask; its event files are all there is.
    failing = storage / "failing"
    before = open_writers()
    with pytest.raises(DivergedError):
        finish(
            SPECS / "diabetes.yaml",
            f"storage={failing}",
            'training.optimizer={"kind": "sgd", "lr": 1e6}',
            "training.schedule=null",
            "tracking.log_every_steps=1",
        )

    assert open_writers() <= before
    (folder,) = failing.glob("diabetes/*/tensorboard")
    assert len(event_files(folder)) == 1
    # What came before the failure was written out: the epoch that went well, if any, and epoch 0.
    assert scalars(folder, "learning_rate")[0] == (0, 1e6)


def test_seed_3_12_reported_result(popularity: FinishedRun, example: Example) -> None:
    losses = [record["train_loss"] for record in popularity.history[1:]]
    assert popularity.metrics["test"]["accuracy"] >= 0.78
    assert losses[-1] < 0.4144

    # The note, without scaling: from .5984 to .4144 and 81.5 %.
    unscaled = [
        example("popularity", *UNSCALED, f"seed={seed}", last="train") for seed in range(1, 6)
    ]
    first, last = (
        statistics.median(run.history[epoch]["train_loss"] for run in unscaled) for epoch in (1, 10)
    )
    assert first == pytest.approx(0.5984, abs=0.05)
    assert last == pytest.approx(0.4144, abs=0.05)
    accuracies = [run.history[10]["test_accuracy"] for run in unscaled]
    assert statistics.median(accuracies) == pytest.approx(0.815, abs=0.05)
    assert torch.tensor(accuracies).std() < 0.05
