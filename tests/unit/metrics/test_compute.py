"""The metrics equal scikit-learn's, in one piece or many, and say so where they are undefined."""

from __future__ import annotations

import functools
import itertools
import math
import pickle  # noqa: TID251  # to test that a set may be sent between processes

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from batchtrain.errors import DataError, DivergedError, TrainingError
from batchtrain.metrics.compute import MetricSet, build_metrics
from batchtrain.spec.evaluation import CLASSIFICATION_METRICS, REGRESSION_METRICS

CASES = {
    "binary": {"num_classes": 2},
    "binary, float32": {"num_classes": 2, "dtype": "float32"},
    "three classes": {"num_classes": 3},
    "many classes, float32": {"num_classes": 12, "dtype": "float32"},
    "classes that do not occur": {"num_classes": 6, "occurring": (1, 2, 4)},
    "classes that are never predicted": {"num_classes": 5, "predicted": (0, 3)},
    "a class predicted but not there": {"num_classes": 4, "occurring": (0, 1)},
    "ties": {"num_classes": 3, "levels": 3},
    "binary ties": {"num_classes": 2, "levels": 4},
    "sure of itself": {"num_classes": 3, "certain": True},
    "sure of itself, float32": {"num_classes": 3, "certain": True, "dtype": "float32"},
}


def classification_rows(
    seed: int,
    num_classes: int,
    dtype: str = "float64",
    occurring: tuple[int, ...] | None = None,
    predicted: tuple[int, ...] | None = None,
    levels: int = 0,
    certain: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know a little about the target."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(30, 400))
    classes = np.array(occurring or range(num_classes))
    target = np.concatenate([classes, rng.choice(classes, num_rows)])
    scores = rng.random((len(target), num_classes)) + 0.3 * np.eye(num_classes)[target]
    if predicted:
        scores[:, [k for k in range(num_classes) if k not in predicted]] *= 0.1
    if levels:
        scores = np.ceil(scores * levels)
    if certain:
        scores = np.eye(num_classes)[scores.argmax(1)]
    return (scores / scores.sum(1, keepdims=True)).astype(dtype), target


def sklearn_values(probabilities: np.ndarray, target: np.ndarray) -> dict[str, float]:
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    macro = {"average": "macro", "zero_division": 0}
    if num_classes == 2:
        auroc = sk.roc_auc_score(target, probabilities[:, 1])
    else:
        occurring = np.unique(target)
        auroc = np.mean([sk.roc_auc_score(target == k, probabilities[:, k]) for k in occurring])
    recalls = sk.recall_score(target, predicted, labels=np.unique(target), average=None)
    return {
        "accuracy": sk.accuracy_score(target, predicted),
        # balanced_accuracy_score warns of predicted classes that do not occur, and leaves them out
        "balanced_accuracy": recalls.mean(),
        "precision": sk.precision_score(target, predicted, **macro),
        "recall": sk.recall_score(target, predicted, **macro),
        "f1_macro": sk.f1_score(target, predicted, **macro),
        "f1_micro": sk.f1_score(target, predicted, average="micro"),
        "auroc": auroc,
        "log_loss": sk.log_loss(target, probabilities, labels=range(num_classes)),
    }


def fed(metrics: MetricSet, predicted: np.ndarray, target: np.ndarray) -> MetricSet:
    metrics.update(torch.from_numpy(predicted.copy()), torch.from_numpy(target.copy()))
    return metrics


def in_pieces(new_set, predicted: np.ndarray, target: np.ndarray, cuts: list[int]) -> list:
    edges = [0, *cuts, len(target)]
    return [
        fed(new_set(), predicted[first:last], target[first:last])
        for first, last in itertools.pairwise(edges)
    ]


def merged(first: MetricSet, second: MetricSet) -> MetricSet:
    first.merge(second)
    return first


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_classification_equals_scikit_learn(case, seed):
    probabilities, target = classification_rows(seed, **CASES[case])
    metrics = build_metrics(CLASSIFICATION_METRICS, "classification", probabilities.shape[1])
    result = fed(metrics, probabilities, target).compute()
    assert result.notes == {}
    assert list(result.values) == list(CLASSIFICATION_METRICS)
    expected = sklearn_values(probabilities, target)
    assert result.values == pytest.approx(expected, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (1e6, 1), (-1e9, 10), (0, 1e-6)])
def test_regression_equals_scikit_learn_whatever_the_mean(mean, spread):
    rng = np.random.default_rng(0)
    target = rng.normal(mean, spread, 500)
    predicted = target + rng.normal(0, spread / 3, 500)
    new_set = functools.partial(build_metrics, REGRESSION_METRICS, "regression", 0)
    expected = {
        "mse": sk.mean_squared_error(target, predicted),
        "rmse": sk.root_mean_squared_error(target, predicted),
        "mae": sk.mean_absolute_error(target, predicted),
        "r2": sk.r2_score(target, predicted),
    }
    whole = fed(new_set(), predicted, target).compute()
    assert whole.notes == {}
    assert whole.values == pytest.approx(expected, rel=1e-6)
    pieces = in_pieces(new_set, predicted, target, [1, 3, 100, 100, 350])
    assert functools.reduce(merged, pieces).compute().values == pytest.approx(expected, rel=1e-6)


def test_predictions_in_float32_are_added_up_in_float64():
    target = torch.full((100_000,), 0.1, dtype=torch.float32)
    metrics = build_metrics(("mse", "mae"), "regression", 0)
    for block in target.split(1000):
        metrics.update(block + 1, block)
    error = float((target[0] + 1).double() - target[0].double())
    assert metrics.compute().values == pytest.approx({"mse": error**2, "mae": error}, rel=1e-12)


@pytest.mark.parametrize("case", ["binary", "three classes", "classes that do not occur"])
def test_merging_pieces_in_any_grouping_equals_one_piece(case):
    probabilities, target = classification_rows(3, **CASES[case])
    num_classes = probabilities.shape[1]
    new_set = functools.partial(
        build_metrics, CLASSIFICATION_METRICS, "classification", num_classes
    )
    pieces = functools.partial(in_pieces, new_set, probabilities, target, [0, 5, 20])
    whole = fed(new_set(), probabilities, target).compute().values
    left = functools.reduce(merged, pieces())
    a, b, c, d = pieces()
    right = merged(a, merged(b, merged(c, d)))
    swapped = functools.reduce(merged, reversed(pieces()))
    for metrics in (left, right, swapped):
        found = metrics.compute()
        assert found.notes == {}
        assert found.values == pytest.approx(whole, rel=1e-12)
        exact = [name for name in whole if name != "log_loss"]
        assert [found.values[name] for name in exact] == [whole[name] for name in exact]


def test_a_merged_set_goes_on_and_leaves_the_other_as_it_was():
    probabilities, target = classification_rows(4, num_classes=3)
    new_set = functools.partial(build_metrics, CLASSIFICATION_METRICS, "classification", 3)
    first, second, third = in_pieces(new_set, probabilities, target, [10, 20])
    alone = second.compute()
    total = new_set()
    for piece in (first, second, third):
        total.compute()
        total.merge(piece)
    assert second.compute() == alone
    whole = fed(new_set(), probabilities, target).compute()
    assert total.compute().values == pytest.approx(whole.values, rel=1e-12)
    assert total.num_rows == len(target)


def test_a_set_survives_the_way_to_another_process():
    probabilities, target = classification_rows(5, num_classes=3)
    metrics = fed(build_metrics(CLASSIFICATION_METRICS, "classification", 3), probabilities, target)
    arrived = pickle.loads(pickle.dumps(metrics))
    assert arrived.compute() == metrics.compute()
    arrived.merge(metrics)
    assert arrived.num_rows == 2 * metrics.num_rows


def test_sets_of_other_metrics_do_not_merge():
    first = build_metrics(("accuracy",), "classification", 3)
    with pytest.raises(TrainingError, match="merge of metrics"):
        first.merge(build_metrics(("accuracy",), "classification", 4))


def test_one_class_only_leaves_what_compares_classes_undefined():
    probabilities, _ = classification_rows(6, num_classes=3)
    target = np.full(len(probabilities), 2)
    metrics = build_metrics(CLASSIFICATION_METRICS, "classification", 3)
    result = fed(metrics, probabilities, target).compute()
    undefined = {"auroc", "balanced_accuracy", "precision", "recall", "f1_macro"}
    assert {name for name, value in result.values.items() if value is None} == undefined
    assert set(result.notes) == undefined
    assert "one class (code 2)" in result.notes["auroc"]
    assert result.values["accuracy"] == sk.accuracy_score(target, probabilities.argmax(1))


@pytest.mark.parametrize(
    ("task", "names"),
    [("classification", CLASSIFICATION_METRICS), ("regression", REGRESSION_METRICS)],
)
def test_no_rows_leave_every_metric_undefined(task, names):
    metrics = build_metrics(names, task, 3)
    shape = (0, 3) if task == "classification" else (0,)
    metrics.update(torch.zeros(shape), torch.zeros(0, dtype=torch.int64))
    result = metrics.compute()
    assert result.values == dict.fromkeys(names)
    assert set(result.notes.values()) == {"there are no rows"}


@pytest.mark.parametrize(
    ("target", "reason"),
    [([3.0], "two rows"), ([0.1] * 7, "same target"), ([1e9 + 0.1] * 3, "same target")],
)
def test_r2_without_a_spread_is_undefined_and_the_errors_are_not(target, reason):
    metrics = build_metrics(REGRESSION_METRICS, "regression", 0)
    for value in target:
        row = torch.tensor([value], dtype=torch.float64)
        metrics.update(row + 0.5, row)
    result = metrics.compute()
    assert result.values["r2"] is None
    assert reason in result.notes["r2"]
    assert result.values["mae"] == pytest.approx(0.5)


def test_a_perfect_model_is_perfect():
    target = np.array([0, 1, 2, 1])
    metrics = build_metrics(CLASSIFICATION_METRICS, "classification", 3)
    values = fed(metrics, np.eye(3)[target], target).compute().values
    assert math.isclose(values.pop("log_loss"), 0, abs_tol=1e-9)
    assert set(values.values()) == {1.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_predictions_that_are_no_numbers_are_an_error_not_a_score(bad):
    metrics = build_metrics(("accuracy",), "classification", 2)
    with pytest.raises(DivergedError, match="finite"):
        metrics.update(torch.tensor([[0.5, bad]]), torch.tensor([0]))
    metrics = build_metrics(("mse",), "regression", 0)
    with pytest.raises(DivergedError, match="finite"):
        metrics.update(torch.tensor([bad]), torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        (torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(2, 2), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(2), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(2, 2), torch.tensor([0, 2])),
        (torch.ones(2, 2), torch.tensor([-1, 0])),
    ],
)
def test_rows_of_another_form_are_refused(predicted, target):
    metrics = build_metrics(("accuracy",), "classification", 2)
    with pytest.raises(DataError, match="metrics: expected"):
        metrics.update(predicted, target)


@pytest.mark.parametrize(
    ("names", "task"),
    [(("mse",), "classification"), (("auroc",), "regression"), (("x",), "regression")],
)
def test_metrics_of_another_task_are_refused(names, task):
    with pytest.raises(TrainingError, match=f"for {task}"):
        build_metrics(names, task, 2)
