"""Rows, classes and labels that count otherwise: what is trained on, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import DataError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import make_loss
from batchtrain.pipeline import RunResult
from batchtrain.row_order import RowOrder
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.loop import measure
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.rows import Columns, ResidentSplit
from batchtrain.training.worker import ResidentWorker
from tests.support.builders import (
    mixed_table,
    prepared_for,
    quantity_table,
    run,
    spec_for,
    train_in_parts,
)
from tests.unit.training.test_streaming import Shelf, rows_of, shelf_of, streaming_worker

CPU = torch.device("cpu")
SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
LINEAR = {"kind": "linear"}


def weighted(table: pa.Table, *, seed: int = 1) -> pa.Table:
    """The table with weights from 0 to 3, some of them 0."""
    weights = np.random.default_rng(seed).integers(0, 4, table.num_rows) * 0.75
    return table.append_column("w", pa.array(weights))


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def state_of(result: RunResult) -> str:
    assert result.trained is not None
    digest: str = result.trained.content["state_sha256"]
    return digest


def history_of(result: RunResult) -> list[dict[str, Any]]:
    assert result.trained is not None
    return result.trained.history()


def tensors(rows: SplitRows) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    columns = (rows.numeric, rows.codes, rows.target, rows.weight)
    numeric, codes, target, weight = (
        None if each is None else torch.from_numpy(each.copy()) for each in columns
    )
    assert numeric is not None
    assert codes is not None
    assert target is not None
    return numeric, codes, target.float() if target.is_floating_point() else target, weight


def new_model(loaded: LoadedSpec, result: RunResult) -> nn.Module:
    assert result.trained is not None
    inputs = ModelInputs.from_json(result.trained.content["inputs"])
    return build_model(loaded.spec.model, inputs, seed=loaded.spec.seed)


def weights_by_row(rows: SplitRows) -> SplitRows:
    """Each row weighs a number that tells which row it is, as its target does."""
    return replace(rows, weight=(rows.target * 6).astype(np.float32))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_batch_carries_the_weights_of_its_rows(streaming: bool) -> None:
    order = RowOrder(num_rows=37, lanes=1, shards_per_lane=8, window_rows=10, seed=4)
    plan = TrainingPlan(order, batch_rows=8, epochs=1)
    shelf = shelf_of(order)
    shelf = Shelf(weights_by_row(shelf.rows), shelf.bounds)
    worker = (
        streaming_worker(plan, shelf)
        if streaming
        else ResidentWorker(plan, {"train": shelf.rows}, CPU, gather_rows=16)
    )
    served = [batch for share in worker.shares(0, 0) for batch in share.batches]
    worker.close()
    assert sum(len(batch.target_B) for batch in served) == 37
    for batch in served:
        assert batch.weight_B is not None
        expected = (batch.numeric_BF[:, 0].double() / 3 * 6).float()
        torch.testing.assert_close(batch.weight_B, expected)


def test_blocks_that_are_measured_carry_weights_and_rows_without_have_none() -> None:
    rows = rows_of(20)
    plain = ResidentSplit.of(rows, CPU)
    split = ResidentSplit.of(weights_by_row(rows), CPU)
    assert plain.block(3, 9).weight_B is None
    assert not plain.columns.has_weights
    weight_B = split.block(3, 9).weight_B
    assert weight_B is not None
    assert weight_B.tolist() == [6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
    assert split.columns.has_weights
    assert split.columns.row_bytes == plain.columns.row_bytes + 4
    assert split.weightless_row().weight_B == 0


def test_shards_that_come_through_ray_data_bring_their_weights(tmp_path: Path) -> None:
    ray_data = pytest.importorskip("batchtrain.training.ray_data")
    for name, table, data in (
        ("with", weighted(quantity_table(50)), {"weight": "w"}),
        ("without", quantity_table(50), {}),
    ):
        prepared = prepared_for(spec_for(folder(tmp_path, name), table, target="y", data=data))
        sent = ray_data._read_shards(prepared, "train", {"shard": np.array([0])})
        found, expected = ray_data._rows(prepared, sent, 0), prepared.shard("train", 0)
        assert (found.weight is None) == (expected.weight is None) == (name == "without")
        assert found.to_bytes() == expected.to_bytes()


def test_each_row_counts_by_its_weight_in_steps_and_in_losses(tmp_path: Path) -> None:
    """Against a loop of its own over the whole batch, in plain torch."""
    loaded = spec_for(
        tmp_path,
        weighted(quantity_table(80)),
        target="y",
        data={"weight": "w"},
        model=LINEAR,
        training={"epochs": 4, "batch_size": "full", "optimizer": SGD},
    )
    result = run(loaded, last="train")
    assert result.prepared is not None
    model = new_model(loaded, result)
    rows = {split: tensors(result.prepared.load(split)) for split in ("train", "valid")}

    def mean_loss(split: str) -> Tensor:
        numeric, codes, target, weight = rows[split]
        assert weight is not None
        losses = (model(numeric, codes)[:, 0] - target).square()
        return (losses * weight).sum() / weight.sum()

    for record in history_of(result):
        if record["epoch"]:
            loss = mean_loss("train")
            assert record["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        assert record["valid_loss"] == pytest.approx(mean_loss("valid").item(), rel=1e-5)
    unweighted = F.mse_loss(model(*rows["valid"][:2])[:, 0], rows["valid"][2])
    assert history_of(result)[-1]["valid_loss"] != pytest.approx(unweighted.item(), rel=1e-3)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_class_weights_and_smoothing_count_in_the_losses_of_a_run(
    tmp_path: Path, loss: str
) -> None:
    table = mixed_table(200)
    if loss == "bce":
        labels = ["no" if label == "a" else "yes" for label in table["label"].to_pylist()]
        table = table.set_column(4, "label", pa.array(labels))
    training = {"epochs": 1, "loss": loss, "class_weights": "balanced", "label_smoothing": 0.2}
    loaded = spec_for(tmp_path, table, training=training, tracking={"monitor": ["valid", "test"]})
    result = run(loaded, last="train")
    assert result.prepared is not None
    train = result.prepared.load("train")
    counts = np.bincount(train.target)
    weights = torch.from_numpy(len(train) / (len(counts) * counts))
    model = new_model(loaded, result).eval()
    first = history_of(result)[0]
    for split in ("valid", "test"):
        numeric, codes, target, _weight = tensors(result.prepared.load(split))
        outputs = model(numeric, codes).detach()
        if loss == "bce":
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        losses = F.cross_entropy(outputs, target, reduction="none", label_smoothing=0.2)
        weight = weights[target]
        expected = float((losses * weight).sum() / weight.sum())
        assert first[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)
        # Scores count every row once.
        right = float((outputs.argmax(1) == target).double().mean())
        assert first[f"{split}_accuracy"] == pytest.approx(right)


def test_balanced_classes_let_the_rare_one_be_found(tmp_path: Path) -> None:
    """Of 5 % rows of a class that overlaps with the other, a plain model predicts hardly any."""
    random = np.random.default_rng(3)
    rare = random.random(500) < 0.05
    table = pa.table({"x": random.normal(rare * 1.5, 1.0), "y": np.where(rare, "rare", "often")})
    recall = {}
    for name, weights in (
        ("plain", None),
        ("balanced", "balanced"),
        ("rare alone", {"rare": 1.0, "often": 0.0}),
    ):
        training = {
            "epochs": 6,
            "batch_size": 32,
            "optimizer": {"kind": "adam", "lr": 0.05},
            "class_weights": weights,
        }
        loaded = spec_for(
            folder(tmp_path, name), table, target="y", model=LINEAR, training=training
        )
        result = run(loaded, last="evaluate")
        assert result.report is not None
        recall[name] = result.report.metrics["train"]["balanced_accuracy"]
    assert recall["plain"] < 0.65
    assert recall["balanced"] > recall["plain"] + 0.1
    # Nearly all are predicted to be of the one class that counts: a recall of 1 and one of 0.
    assert recall["rare alone"] < 0.55


WEIGHED = {
    "data": {"weight": "w"},
    "training": {
        "epochs": 3,
        "batch_size": 16,
        "class_weights": {"a": 1.0, "b": 0.25, "c": 4.0},
        "label_smoothing": 0.1,
    },
}


def test_p1_a_weighted_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    table = weighted(mixed_table(120))
    whole = run(spec_for(folder(tmp_path, "whole"), table, **WEIGHED), last="train")
    broken = train_in_parts(spec_for(folder(tmp_path, "broken"), table, **WEIGHED), [3, 6])
    assert history_of(broken) == history_of(whole)
    assert state_of(broken) == state_of(whole)


def test_weights_and_scale_are_the_same_for_rows_that_stream(tmp_path: Path) -> None:
    for name, table, sections in (
        ("classes", weighted(mixed_table(120)), WEIGHED),
        ("quantity", weighted(quantity_table(120)), {"data": {"weight": "w"}, "target": "y"}),
    ):
        found = {
            state_of(
                run(
                    spec_for(
                        folder(tmp_path, f"{name}-{rows}"),
                        table,
                        **sections,
                        resources={"rows": rows},
                    ),
                    last="train",
                )
            )
            for rows in ("resident", "streaming")
        }
        assert len(found) == 1


def test_a_split_that_weighs_nothing_has_no_loss_to_measure() -> None:
    rows = rows_of(12)
    rows = replace(rows, weight=np.zeros(12, np.float32))
    order = RowOrder(num_rows=12, lanes=1, shards_per_lane=1, window_rows=12, seed=0)
    worker = ResidentWorker(TrainingPlan(order, 4, 1), {"train": rows}, CPU)
    assert Columns(3, 1, torch.float32, has_weights=True) == worker._columns

    class Net(nn.Module):
        def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
            return numeric_BF[:, :1]

    with pytest.raises(DataError, match="train split that weighs more than 0"):
        measure(Net(), make_loss("mse", row_weights=True), worker, "train")


def test_the_report_says_what_losses_count_and_metrics_do_not(tmp_path: Path) -> None:
    result = run(spec_for(tmp_path, weighted(mixed_table(120)), **WEIGHED))
    assert result.report is not None
    page = result.report.page().decode()
    assert "All losses are of labels smoothed by 0.1." in page
    assert "Losses weigh each row by its class: a 1, b 0.25, c 4." in page
    assert "Losses weigh each row by the column &#39;w&#39;." in page
    assert "Metrics count every row once." in page
    assert "<td>weight</td>" in page
    card = result.report.artifact.read("MODEL_CARD.md").decode()
    assert "Metrics count every row once." in card
    assert "| w |" not in card
    plain = run(spec_for(folder(tmp_path, "plain"), mixed_table(120)), last="evaluate")
    assert plain.report is not None
    assert "Metrics count every row once." not in plain.report.page().decode()


def test_metrics_count_every_row_once_whatever_it_weighs(tmp_path: Path) -> None:
    result = run(spec_for(tmp_path, weighted(mixed_table(120)), **WEIGHED), last="evaluate")
    assert result.report is not None
    assert result.prepared is not None
    data = result.report.artifact.read("predictions/test.parquet")
    predicted = table_from_bytes(data, where="test")["prediction"].to_pylist()
    rows = result.prepared.load("test")
    right = [
        result.prepared.classes[code] == name
        for code, name in zip(rows.target, predicted, strict=True)
    ]
    assert rows.weight is not None
    assert result.report.metrics["test"]["accuracy"] == pytest.approx(np.mean(right))
    assert np.mean(right) != pytest.approx(np.average(right, weights=rows.weight), abs=1e-3)


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_the_training_loss_of_an_epoch_is_the_weighted_mean_of_all_its_rows(
    tmp_path: Path, determinism: str
) -> None:
    """With steps that change nothing, it is the loss of the first model, short last batch too."""
    loaded = spec_for(
        tmp_path,
        weighted(quantity_table(90)),
        target="y",
        data={"weight": "w"},
        model=LINEAR,
        training={"epochs": 1, "batch_size": 16, "optimizer": {**SGD, "lr": 1e-12}},
        determinism=determinism,
    )
    result = run(loaded, last="train")
    assert result.prepared is not None
    numeric, codes, target, weight = tensors(result.prepared.load("train"))
    losses = (new_model(loaded, result)(numeric, codes)[:, 0] - target).square()
    expected = np.average(losses.detach().numpy(), weights=weight)
    last = history_of(result)[-1]
    assert last["train_loss"] == pytest.approx(expected, rel=1e-5)
