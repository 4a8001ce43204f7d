"""Note 2, a whole training framework: one test for each row of its checklist that is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
import safetensors.torch
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from batchtrain.errors import TrainingError
from batchtrain.prediction.loaded import load_bundle
from batchtrain.prediction.predict import predict_file
from batchtrain.progress import Progress
from batchtrain.tables import SAMPLES, write_sample
from tests.support.bare_loop import bare_loop
from tests.support.runs import FinishedRun, event_files, finish, scalars

Example = Callable[..., FinishedRun]

SHORT = ("training.epochs=3", "model.dropout=0", "training.early_stopping=null")


@pytest.fixture
def cancer(example: Example) -> FinishedRun:
    return example("breast-cancer")


def rows_of(table: str, run: FinishedRun, split: str) -> pa.Table:
    """The raw rows of a split."""
    return SAMPLES[table]().take(run.row_ids(split))


def test_seed_2_2_batches_and_shuffle_per_epoch(example: Example) -> None:
    run = example("digits", "training.batch_size=100", "training.epochs=2", last="train")

    # Twelve whole batches and a short one in each of two epochs.
    assert run.prepared.num_rows("train") == 1257
    assert run.trained.content["steps"] == 2 * 13
    expected = bare_loop(
        example("digits", *SHORT, last="train"),
        lambda params: Adam(params, lr=1e-3, fused=True),
        nn.functional.cross_entropy,
    )
    # The bare loop visits the rows in another order each epoch; only so the weights agree.
    found = example("digits", *SHORT, last="train").weights("last")
    for name, value in found.items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=2e-4)


def test_seed_2_3_train_validation_and_test_split(cancer: FinishedRun) -> None:
    ids = {split: set(cancer.row_ids(split).tolist()) for split in ("train", "valid", "test")}

    assert {split: len(rows) for split, rows in ids.items()} == {
        "train": 398,
        "valid": 57,
        "test": 114,
    }
    assert set.union(*ids.values()) == set(range(569))
    shares = [cancer.prepared.load(split).target.mean() for split in ids]
    assert np.ptp(shares) < 0.01


def test_seed_2_4_linear_layers_and_activations(example: Example) -> None:
    for activation, layer in (("sigmoid", nn.Sigmoid), ("relu", nn.ReLU), ("tanh", nn.Tanh)):
        run = example("wine", f"model.activation={activation}", last="train")
        layers = run.fresh_model().layers
        assert isinstance(layers, nn.Sequential)
        assert [type(each) for each in layers] == [nn.Linear, layer, nn.Linear, layer, nn.Linear]
        assert run.history[-1]["train_loss"] < 0.1


def test_seed_2_5_device(example: Example) -> None:
    run = example("wine", "resources.device=cpu", last="train")

    assert run.trained.machine()["device"] == "cpu"
    assert {row["device"] for row in run.trained.parameters()} == {"cpu"}
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="CUDA device"):
            example("wine", "seed=2", "resources.device=cuda", last="train")


def test_seed_2_6_cross_entropy_and_mse(example: Example) -> None:
    losses = {"wine": nn.functional.cross_entropy, "diabetes": squared_error}
    for name, loss in losses.items():
        run = example(name)
        numeric, codes, target = run.tensors("valid")
        with torch.no_grad():
            expected = float(loss(run.learned_model("last")(numeric, codes), target))
        assert run.history[-1]["valid_loss"] == pytest.approx(expected, rel=1e-5)


def squared_error(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(outputs[:, 0], target)


OptimizerOf = Callable[[Iterator[nn.Parameter]], Optimizer]
OPTIMIZERS: list[tuple[str, OptimizerOf]] = [
    ('{"kind": "sgd", "lr": 0.05}', partial(SGD, lr=0.05, fused=True)),
    (
        '{"kind": "sgd", "lr": 0.05, "momentum": 0.9}',
        partial(SGD, lr=0.05, momentum=0.9, fused=True),
    ),
    ('{"kind": "adam", "lr": 0.01}', partial(Adam, lr=0.01, fused=True)),
    ('{"kind": "adamw", "lr": 0.01}', partial(AdamW, lr=0.01, weight_decay=0.01, fused=True)),
]


@pytest.mark.parametrize(("section", "optimizer_of"), OPTIMIZERS)
def test_seed_2_7_optimizers(example: Example, section: str, optimizer_of: OptimizerOf) -> None:
    run = example("wine", *SHORT, f"training.optimizer={section}", last="train")

    expected = bare_loop(run, optimizer_of, nn.functional.cross_entropy)

    for name, value in run.weights("last").items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=1e-5)


def test_seed_2_8_schedule_steps_after_validation(example: Example) -> None:
    stepped = example("wine")
    constant = example("wine", "training.schedule=null", last="train")

    rates = [record["lr"] for record in stepped.history[1:]]
    assert rates == pytest.approx([0.05] * 50 + [0.005] * 50)
    assert {record["lr"] for record in constant.history} == {0.05}
    # Up to the first fall the two are one run, and after it they are not.
    assert stepped.history[:51] == constant.history[:51]
    assert stepped.history[51]["train_loss"] != constant.history[51]["train_loss"]


def test_seed_2_9_weight_decay(example: Example) -> None:
    def section(decay: float) -> str:
        return f'training.optimizer={{"kind": "sgd", "lr": 0.05, "weight_decay": {decay}}}'

    decayed = example("wine", *SHORT, section(0.1), last="train")
    plain = example("wine", *SHORT, section(0), last="train")
    expected = bare_loop(
        decayed,
        lambda params: SGD(params, lr=0.05, weight_decay=0.1, fused=True),
        nn.functional.cross_entropy,
    )

    assert norm(decayed.weights("last")) < norm(plain.weights("last"))
    assert norm(decayed.weights("last")) == pytest.approx(norm(expected), rel=1e-5)


def norm(weights: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in weights.values()]).norm())


def test_seed_2_10_training_loop(example: Example) -> None:
    run = example("breast-cancer", *SHORT, last="train")

    expected = bare_loop(
        run,
        lambda params: AdamW(params, lr=1e-3, weight_decay=0.01, fused=True),
        nn.functional.cross_entropy,
    )

    for name, value in run.weights("last").items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=1e-5)


def test_seed_2_11_validation_after_each_epoch(cancer: FinishedRun) -> None:
    numeric, codes, target = cancer.tensors("valid")
    with torch.no_grad():
        outputs = cancer.learned_model("last")(numeric, codes)

    assert all({"valid_loss", "valid_accuracy"} <= set(record) for record in cancer.history)
    last = cancer.history[-1]
    loss = nn.functional.cross_entropy(outputs, target)
    assert last["valid_loss"] == pytest.approx(float(loss), rel=1e-4)
    right = (outputs.argmax(dim=1) == target).double().mean()
    assert last["valid_accuracy"] == pytest.approx(float(right))


def test_seed_2_12_early_stopping(cancer: FinishedRun) -> None:
    content = cancer.trained.content
    losses = [record["valid_loss"] for record in cancer.history[1:]]
    best = losses.index(min(losses)) + 1

    assert content["ended_by"] == "early_stopping"
    assert content["epochs"] == len(losses) < cancer.loaded.spec.training.epochs
    assert len(losses) - best == 12
    assert content["best_epoch"] == best
    # The weights of the best epoch are those that are measured and exported.
    assert cancer.metrics["valid"]["log_loss"] == pytest.approx(min(losses), rel=1e-4)


def test_seed_2_13_test_accuracy_and_f1(cancer: FinishedRun) -> None:
    predicted = cancer.predictions("test")["prediction"].to_pylist()
    classes = cancer.bundle.content["classes"]
    truth = [classes[code] for code in cancer.prepared.load("test").target]
    found = cancer.metrics["test"]

    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["accuracy"] >= 0.9


def test_seed_2_14_state_dict_is_saved(cancer: FinishedRun) -> None:
    saved = safetensors.torch.load(cancer.bundle.artifact.read("model.safetensors"))
    fresh = cancer.fresh_model()

    assert fresh.load_state_dict(saved).missing_keys == []
    assert all(torch.equal(saved[name], value) for name, value in cancer.weights().items())


def test_seed_2_15_deploy_and_infer(cancer: FinishedRun, tmp_path: Path) -> None:
    write_sample("breast-cancer", tmp_path / "new.csv")
    out = tmp_path / "predictions.csv"

    done = predict_file(
        load_bundle(cancer.bundle_folder), "new.csv", out, base=tmp_path, progress=Progress()
    )

    assert done.counts.rows == 569
    assert done.counts.unusable == 0
    predicted = pa_csv.read_csv(out)["prediction"].to_numpy()[cancer.row_ids("test")]
    assert predicted.tolist() == cancer.predictions("test")["prediction"].to_pylist()


def test_seed_2_17_tensorboard(example: Example) -> None:
    run = example("digits", *SHORT, last="train")

    assert len(event_files(run.events)) == 1
    rates = scalars(run.events, "learning_rate")
    assert [step for step, _ in rates] == [0, 1, 2, 3]
    accuracy = [100 * record["valid_accuracy"] for record in run.history]
    found = [value for _, value in scalars(run.events, "Accuracy/valid")]
    assert found == pytest.approx(accuracy, rel=1e-6)


def test_seed_2_18_dropout_and_batch_norm_modes(
    networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bundle names no code: who loads it says which, and where it lies.
    monkeypatch.chdir(networks)
    spec = networks / "normed.yaml"
    spec.write_text(
        "version: 1\nname: normed\nstorage: runs\n"
        "data: {source: sample:wine, target: target}\n"
        "model: {kind: custom, target: seed_networks:Normed, params: {dropout: 0.5}}\n"
        "training: {epochs: 20, batch_size: 32, optimizer: {kind: adam, lr: 0.01}}\n"
    )

    run = finish(spec, allow_code=["seed_networks"])

    # BatchNorm counted the steps of training alone, and its averages are in the bundle.
    batches = run.weights("last")["layers.1.num_batches_tracked"].item()
    assert batches == run.trained.content["steps"] == 20 * 4
    bundle = load_bundle(
        run.bundle_folder, model="seed_networks:Normed", allow_code=["seed_networks"]
    )
    # In evaluation a row's output does not depend on chance, nor on the rows beside it.
    rows = rows_of("wine", run, "test")
    together = bundle.predict(rows)
    alone = bundle.predict(rows.slice(3, 1))
    assert together.equals(bundle.predict(rows))
    assert together.drop(columns="row_id").iloc[3].equals(alone.drop(columns="row_id").iloc[0])
    assert run.metrics["test"]["accuracy"] > 0.9
