"""Early stopping and the best weights by any metric; and how many best epochs are kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn import metrics as oracle
from torch import Tensor

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import DivergedError, SpecError, TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, activate, make_loss
from batchtrain.models.target_scale import TargetScale
from batchtrain.spec.evaluation import CLASSIFICATION_METRICS, REGRESSION_METRICS
from batchtrain.spec.load import load_spec
from batchtrain.spec.training import TrainingSpec
from batchtrain.training.deciding import Watched, decide
from batchtrain.training.measuring import measure
from batchtrain.training.state import TrainState, weights_of
from tests.support.builders import mixed_table, quantity_table, run, spec_for
from tests.support.loops import LoopRun, SmallNet, rows_of, written

CLASSES = 3


def outputs(model: torch.nn.Module, rows: SplitRows) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(rows.numeric), torch.empty(len(rows), 0))


def by_oracle(name: str, rows: SplitRows, model: torch.nn.Module, loss: Loss) -> float:
    """The metric as scikit-learn has it, over all rows at once."""
    found = outputs(model, rows)
    if name in REGRESSION_METRICS:
        predicted = found[:, 0].double().numpy()
        if name == "rmse":
            return float(oracle.root_mean_squared_error(rows.target, predicted))
        function = {
            "mse": oracle.mean_squared_error,
            "mae": oracle.mean_absolute_error,
            "r2": oracle.r2_score,
        }[name]
        return float(function(rows.target.astype(np.float32), predicted))
    probabilities = activate(found.double(), loss.name).numpy()
    predicted = probabilities.argmax(axis=1)
    macro = {"average": "macro", "zero_division": 0}
    functions: dict[str, Callable[[], float]] = {
        "accuracy": lambda: oracle.accuracy_score(rows.target, predicted),
        "balanced_accuracy": lambda: oracle.balanced_accuracy_score(rows.target, predicted),
        "precision": lambda: oracle.precision_score(rows.target, predicted, **macro),
        "recall": lambda: oracle.recall_score(rows.target, predicted, **macro),
        "f1_macro": lambda: oracle.f1_score(rows.target, predicted, **macro),
        "f1_micro": lambda: oracle.f1_score(rows.target, predicted, average="micro"),
        "auroc": lambda: oracle.roc_auc_score(
            rows.target, probabilities, multi_class="ovr", average="macro"
        ),
        "log_loss": lambda: oracle.log_loss(rows.target, probabilities),
    }
    return float(functions[name]())


def run_for(name: str, **training: Any) -> LoopRun:
    stopping = {"early_stopping": {"metric": f"valid_{name}", "patience": 3}}
    if name in REGRESSION_METRICS:
        return LoopRun({**stopping, **training})
    return LoopRun(
        {**stopping, **training},
        train=rows_of(60, seed=1, classes=CLASSES),
        valid=rows_of(50, seed=2, classes=CLASSES),
        network=lambda: SmallNet(CLASSES),
        loss=make_loss("cross_entropy"),
    )


@pytest.mark.parametrize("name", [*CLASSIFICATION_METRICS, *REGRESSION_METRICS])
def test_a_metric_is_scikit_learns_and_drives_the_best_weights(name: str) -> None:
    training = run_for(name, epochs=4)
    state = training.whole()
    assert training.valid is not None
    key = f"valid_{name}"
    values = [record[key] for record in state.history[1:]]
    best = int(
        np.argmin(values) if name in {"log_loss", "mse", "rmse", "mae"} else np.argmax(values)
    )
    assert state.best_epoch == best + 1
    assert state.best[0].value == values[best]
    model = training.network()
    model.load_state_dict(dict(state.kept_weights()))
    assert values[best] == pytest.approx(
        by_oracle(name, training.valid, model, training.loss), rel=1e-5
    )


def test_early_stopping_follows_it_and_a_plateau_still_follows_the_loss() -> None:
    schedule = {"kind": "plateau", "patience": 0, "factor": 0.5}
    optimizer = {"kind": "sgd", "lr": 0.05}
    training = run_for("accuracy", epochs=40, schedule=schedule, optimizer=optimizer)
    state = training.whole()
    values = [record["valid_accuracy"] for record in state.history[1:]]
    assert state.stopped
    assert len(values) < 40
    # Patience is 3: the first of the best is three epochs before the last.
    assert int(np.argmax(values)) == len(values) - 4
    assert state.best_epoch == len(values) - 3
    losses = [record["valid_loss"] for record in state.history[1:]]
    # The loss fell on, so the rate never did, although the accuracy stood still.
    if losses == sorted(losses, reverse=True):
        assert {record["lr"] for record in state.history} == {0.05}


def test_in_the_units_of_the_target() -> None:
    scale = TargetScale(1000.0, 50.0)
    plain, scaled = run_for("rmse"), run_for("rmse")
    scaled.loss = make_loss("mse", target_scale=scale)
    states = [each.whole() for each in (plain, scaled)]
    values = [[record["valid_rmse"] for record in state.history] for state in states]
    assert values[1] == pytest.approx([50 * value for value in values[0]])
    assert [record["valid_loss"] for record in states[0].history] == [
        record["valid_loss"] for record in states[1].history
    ]


def test_nothing_is_computed_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchtrain.training.measuring.import_module", None)
    for stopping in (None, {"metric": "valid_loss"}, {"metric": "valid_r2"}):
        state = LoopRun({"early_stopping": stopping}).whole()
        assert set(state.history[1]) == {
            "epoch",
            "step",
            "lr",
            "train_loss",
            "valid_loss",
            "valid_r2",
        }


@dataclass
class ThreadRank:
    """One of several ranks that are threads of this process; values travel as JSON."""

    rank: int
    values: list[Any]
    barrier: threading.Barrier

    @property
    def size(self) -> int:
        return len(self.values)

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = json.dumps(value)
        self.barrier.wait(60)
        found = list(map(json.loads, self.values))
        self.barrier.wait(60)
        return found


@dataclass
class Blocks:
    """Serves the blocks of one rank: every so manyth, which no real worker does."""

    ranks: Any
    batches: list[Batch]

    def split_blocks(self, split: str) -> Iterator[tuple[int, Batch]]:
        for number in range(self.ranks.rank, len(self.batches), self.ranks.size):
            yield number, self.batches[number]


def measured_on(size: int, names: tuple[str, ...], classes: int) -> set[str]:
    """What each of so many ranks measures, as JSON."""
    rows = rows_of(53, seed=4, classes=classes)
    batches = [
        Batch(*map(torch.from_numpy, (rows.numeric[at : at + 8], rows.codes[at : at + 8], target)))
        for at in range(0, len(rows), 8)
        for target in [rows.target[at : at + 8].astype(np.int64 if classes else np.float32)]
    ]
    values: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    loss = make_loss("cross_entropy" if classes else "mse")
    found: list[str] = [""] * size
    models = [SmallNet(max(classes, 1)) for _ in range(size)]

    def one(rank: int) -> None:
        worker: Any = Blocks(ThreadRank(rank, values, barrier), batches)
        found[rank] = json.dumps(measure(models[rank], loss, worker, "valid", names))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return set(found)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_p2_the_number_of_ranks_does_not_show_in_a_single_bit(classes: int) -> None:
    names = CLASSIFICATION_METRICS if classes else REGRESSION_METRICS
    first, *others = [measured_on(size, names, classes) for size in (1, 2, 3, 9)]
    assert len(first) == 1
    assert all(each == first for each in others)


def test_a_metric_without_a_value_is_an_error_before_the_first_step() -> None:
    training = run_for("auroc")
    assert training.valid is not None
    training.valid.target[:] = 1
    with pytest.raises(TrainingError, match=r"a value of auroc for the valid split.*one class"):
        training.whole()
    assert training.heard.losses == []


def test_outputs_that_are_no_numbers_are_told_on_all_ranks() -> None:
    class Infinite(SmallNet):
        def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
            outputs_BK = super().forward(numeric_BF, codes_BC)
            return (
                outputs_BK
                if self.training
                else outputs_BK * torch.tensor([1.0, 1.0, -float("inf")])
            )

    training = run_for("f1_macro")
    training.network = lambda: Infinite(CLASSES)
    with pytest.raises(DivergedError, match="valid split"):
        training.whole()


@pytest.mark.parametrize(
    ("metric", "task", "choices"),
    [
        ("valid_r2", "classification", "valid_loss, valid_accuracy"),
        ("valid_accuracy", "regression", "valid_loss, valid_mse, valid_rmse, valid_mae, valid_r2"),
        ("valid_nonsense", "auto", "valid_loss, valid_accuracy.*valid_r2"),
    ],
)
def test_a_metric_of_another_task_is_an_error_that_lists_the_choices(
    tmp_path: Path, metric: str, task: str, choices: str
) -> None:
    training = {"early_stopping": {"metric": metric}}
    with pytest.raises(SpecError, match=rf"{metric}' cannot be measured.*hoose one of {choices}"):
        spec_for(tmp_path, data={"task": task}, training=training)


def test_of_a_task_that_the_data_decide_too(tmp_path: Path) -> None:
    training = {"early_stopping": {"metric": "valid_accuracy"}}
    loaded = spec_for(tmp_path, quantity_table(60), target="y", training=training)
    with pytest.raises(SpecError, match=r"training\.early_stopping\.metric.*valid_rmse"):
        run(loaded)


# --- the best epochs --------------------------------------------------------------------------


def decided(values: list[float], keep: int, mode: str = "min") -> TrainState:
    """The state after epochs with these values of what is watched."""
    training = LoopRun({})
    state = training.new_state()
    for epoch, value in enumerate(values, start=1):
        state.epoch = epoch
        with torch.no_grad():
            state.model.layers[0].bias.fill_(epoch)
        watched = Watched("valid_x", "min" if mode == "min" else "max")
        decide(state, {"valid_x": value, "valid_loss": 1.0}, watched, keep_best=keep)
    return state


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("values", [[3, 1, 2], [1, 2, 3, 4], [2, 2, 1, 1, 2], [5]])
def test_the_best_are_kept_in_order_and_of_equals_the_earlier(
    values: list[float], mode: str, keep: int
) -> None:
    state = decided(values, keep, mode)
    sign = 1 if mode == "min" else -1
    order = sorted(range(len(values)), key=lambda place: (sign * values[place], place))[:keep]
    assert [(kept.epoch, kept.value) for kept in state.best] == [
        (place + 1, values[place]) for place in order
    ]
    for kept in state.best:
        assert set(kept.weights["layers.0.bias"].tolist()) == {float(kept.epoch)}


def test_the_trained_model_holds_the_best_epochs_and_a_resume_keeps_them(tmp_path: Path) -> None:
    training = {"epochs": 5, "batch_size": 16, "checkpoint": {"keep_best": 3}}
    loaded = spec_for(tmp_path, mixed_table(90), training=training)
    trained = run(loaded, last="train").trained
    assert trained is not None
    losses = [record["valid_loss"] for record in trained.history()[1:]]
    order = sorted(range(5), key=lambda place: losses[place])[:3]
    assert trained.content["best_by"] == "valid_loss"
    assert trained.content["best_epochs"] == [
        {"file": file, "epoch": place + 1, "value": losses[place]}
        for file, place in zip(
            ("best.safetensors", "best-2.safetensors", "best-3.safetensors"), order, strict=True
        )
    ]
    weights = [
        safetensors.torch.load(trained.artifact.read(each["file"]))
        for each in trained.content["best_epochs"]
    ]
    first = {tuple(each["output.weight"].flatten().tolist()) for each in map(_named, weights)}
    assert len(first) == 3


def _named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with one of them, whatever its name, as `output.weight`."""
    return {"output.weight": next(iter(weights.values()))}


@pytest.mark.parametrize("stops", [(3, 4, 5), (10,)])
def test_a_resume_keeps_the_best_epochs(stops: tuple[int, ...]) -> None:
    training = run_for("f1_macro", epochs=4, checkpoint={"keep_best": 2})
    state = training.whole()
    assert written(training.in_parts(*stops)) == written(state)
    assert len(state.best) == 2


def test_how_many_are_kept_is_another_run(tmp_path: Path) -> None:
    from tests.support.builders import layout_for

    spec_for(tmp_path, mixed_table(60))
    ids = {
        layout_for(load_spec(tmp_path / "spec.yaml", overrides)).run_id
        for overrides in (
            (),
            ("training.checkpoint.keep_best=1",),
            ("training.checkpoint.keep=7",),
            ("training.checkpoint.keep_best=2",),
        )
    }
    assert len(ids) == 2


def test_ranking_epochs_needs_a_validation_split(tmp_path: Path) -> None:
    split = {"kind": "random", "fractions": {"train": 0.8, "valid": 0, "test": 0.2}}
    training = {"checkpoint": {"keep_best": 2}}
    with pytest.raises(SpecError, match=r"training\.checkpoint\.keep_best"):
        spec_for(tmp_path, data={"split": split}, training=training)


def test_the_spec_says_what_is_watched() -> None:
    stopping = TrainingSpec.model_validate({"early_stopping": {"metric": "valid_auroc"}})
    assert Watched.of(stopping) == Watched("valid_auroc", "max")
    assert Watched.of(TrainingSpec()) == Watched("valid_loss", "min")
    assert not Watched().is_better(float("nan"), None)
    assert weights_of(SmallNet()).keys()
