"""Note 4, simple regression: one test for each row of its checklist that is built."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn
from torch.optim import SGD

from tests.support.bare_loop import bare_loop
from tests.support.runs import FinishedRun, event_files, finish, open_writers, scalars

Example = Callable[..., FinishedRun]


@pytest.fixture
def linear(example: Example) -> FinishedRun:
    return example("linear")


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs[:, 0], target, reduction="mean")


def test_seed_4_1_numpy_to_float_tensors(tmp_path: Path, write_spec: Callable[[str], Path]) -> None:
    x = np.random.default_rng(0).random(100)
    pq.write_table(pa.table({"x": x, "y": 1 + 2 * x}), tmp_path / "rows.parquet")
    spec = write_spec(
        "name: arrays\n"
        "data:\n"
        "  source: rows.parquet\n"
        "  target: y\n"
        "  columns: {x: {kind: numeric, scale: none}}\n"
        "model: {kind: linear}\n"
        "training: {epochs: 2}\n"
    )

    run = finish(spec)

    numeric, _, target = run.tensors("train")
    assert (numeric.dtype, target.dtype) == (torch.float32, torch.float32)
    expected = torch.as_tensor(x[run.row_ids("train")]).float()
    assert torch.equal(numeric[:, 0], expected)
    predicted = run.model.predict({"x": x[:5]})["prediction"]
    assert predicted.dtype == np.float64
    assert len(predicted) == 5


def test_seed_4_2_seed_13(linear: FinishedRun, example: Example) -> None:
    assert linear.loaded.spec.seed == 13
    other = example("linear", "seed=14", "training.epochs=1", last="train")

    weights, others = linear.fresh_model().state_dict(), other.fresh_model().state_dict()
    again = linear.fresh_model().state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not any(torch.equal(weights[name], others[name]) for name in weights)
    assert set(linear.row_ids("valid")) != set(other.row_ids("valid"))


def test_seed_4_3_random_split(linear: FinishedRun) -> None:
    train, valid = linear.row_ids("train"), linear.row_ids("valid")

    assert (len(train), len(valid)) == (80, 20)
    assert sorted([*train, *valid]) == list(range(100))
    assert train.max() > valid.min()


def test_seed_4_4_batch_sizes(example: Example) -> None:
    steps = {}
    for size in (16, 32, 64, 128, '"auto"'):
        run = example("linear", f"training.batch_size={size}", "training.epochs=1", last="train")
        steps[size] = run.trained.content["steps"]

    assert steps == {16: 5, 32: 3, 64: 2, 128: 1, '"auto"': 3}


def test_seed_4_5_linear_and_sequential(example: Example, linear: FinishedRun) -> None:
    hidden = 'model={"kind": "mlp", "hidden": [], "dropout": 0}'
    layers = example("linear", hidden, "training.epochs=1", last="train").fresh_model().layers

    assert isinstance(layers, nn.Sequential)
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(1, 1)]
    assert list(linear.weights()["linear.weight"].shape) == [1, 1]


def test_seed_4_6_sgd(linear: FinishedRun) -> None:
    expected = bare_loop(linear, lambda params: SGD(params, lr=0.1, fused=True), squared_error)

    for name, value in linear.weights("last").items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-5)


def test_seed_4_7_mean_squared_error(linear: FinishedRun) -> None:
    best = linear.history[linear.trained.content["best_epoch"]]
    numeric, codes, target = linear.tensors("valid")
    with torch.no_grad():
        expected = squared_error(linear.learned_model()(numeric, codes), target)

    assert best["valid_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert linear.metrics["valid"]["mse"] == pytest.approx(float(expected), rel=1e-5)


def test_seed_4_9_mean_of_the_batches(example: Example) -> None:
    whole = example("linear", "tracking.log_every_steps=1", "training.epochs=2", last="train")
    ragged = example(
        "linear",
        "tracking.log_every_steps=1",
        "training.epochs=2",
        "training.batch_size=32",
        last="train",
    )

    losses = [value for _, value in scalars(whole.events, "Loss/train")][5:]
    assert whole.history[2]["train_loss"] == pytest.approx(statistics.mean(losses), rel=1e-6)
    # With batches of 32, 32 and 16 rows the epoch's loss weighs each batch by its rows.
    losses = [value for _, value in scalars(ragged.events, "Loss/train")][3:]
    weighted = (32 * losses[0] + 32 * losses[1] + 16 * losses[2]) / 80
    assert ragged.history[2]["train_loss"] == pytest.approx(weighted, rel=1e-6)


def test_seed_4_10_history_of_200_epochs(linear: FinishedRun) -> None:
    records = linear.history[1:]

    assert [record["epoch"] for record in records] == list(range(1, 201))
    for name in ("train_loss", "valid_loss"):
        assert records[-1][name] < 0.02 < records[0][name]
    learned = {name: value.item() for name, value in linear.weights().items()}
    assert learned["linear.weight"] == pytest.approx(2, abs=0.1)
    assert learned["linear.bias"] == pytest.approx(1, abs=0.1)


def test_seed_4_11_named_run_directory(linear: FinishedRun, storage: Path) -> None:
    assert linear.events.relative_to(storage).parts[0] == "linear"
    # One of the training, and one with the final metrics.
    assert len(event_files(linear.events)) == 2


def test_seed_4_12_graph(linear: FinishedRun) -> None:
    graph = EventAccumulator(str(linear.events)).Reload().Graph()

    assert isinstance(graph, GraphDef)
    operations = {node.op for node in graph.node}
    assert {"IO Node", "aten::linear"} <= operations


def test_seed_4_13_both_losses_under_one_tag(linear: FinishedRun) -> None:
    for key, name in (("training", "train_loss"), ("validation", "valid_loss")):
        # TensorBoard keeps each key of `add_scalars` as a run of its own, with the main tag.
        found = scalars(linear.events / f"loss_{key}", "loss")
        recorded = {
            record["epoch"]: record[name] for record in linear.history if record[name] is not None
        }
        assert [step for step, _ in found] == list(recorded)
        assert [value for _, value in found] == pytest.approx(list(recorded.values()), rel=1e-6)
    assert len(recorded) == 201


def test_seed_4_14_validation_leaves_no_trace(example: Example, linear: FinishedRun) -> None:
    before = open_writers()
    unwatched = example("linear", "tracking.monitor=[]", "tracking.tensorboard=false", last="train")
    watched = example("linear", "tracking.monitor=[train, valid]", last="train")

    # Looking at more splits gives the same gradients, so the same weights.
    for name, value in linear.weights("last").items():
        assert torch.equal(value, unwatched.weights("last")[name])
        assert torch.equal(value, watched.weights("last")[name])
    assert "train_r2" in watched.history[-1]
    assert not unwatched.events.exists()
    # The writers are closed, and every event is in the files, the last epoch's too.
    assert open_writers() <= before
    assert scalars(linear.events, "learning_rate")[-1][0] == 200
