"""Metrics over rows that arrive in blocks, merged over blocks and workers.

Shapes: B rows of a block, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from batchtrain.errors import DataError, DivergedError, TrainingError
from batchtrain.metrics.require import metric_names
from batchtrain.metrics.states import (
    ClassCounts,
    LogLoss,
    OneVersusRestAuroc,
    TargetSpread,
    isolated,
)
from batchtrain.spec.task import Task

__all__ = ["MetricResult", "MetricSet", "build_metrics"]

STATE_OF_METRIC: dict[str, tuple[str, ...]] = {
    "accuracy": ("counts",),
    "balanced_accuracy": ("counts",),
    "precision": ("counts",),
    "recall": ("counts",),
    "f1_macro": ("counts",),
    "f1_micro": ("counts",),
    "auroc": ("counts", "auroc"),
    "log_loss": ("log_loss",),
    "mse": ("mse",),
    "rmse": ("mse",),
    "mae": ("mae",),
    "r2": ("mse", "spread"),
}
"""Metric to the states that it is computed from; metrics share them."""

NEEDS_TWO_CLASSES = frozenset({"balanced_accuracy", "precision", "recall", "f1_macro", "auroc"})


@dataclass(frozen=True)
class MetricResult:
    """What was measured.

    Attributes:
        values: Metric to value; None where it is undefined for these rows.
        notes: Undefined metric to the reason.
    """

    values: dict[str, float | None]
    notes: dict[str, str]


def build_metrics(names: Sequence[str], task: Task, num_classes: int) -> MetricSet:
    """Give an empty set of metrics.

    Args:
        names: What to measure; the results come in this order.
        task: What is predicted.
        num_classes: K; not read for regression.

    Raises:
        TrainingError: If a metric does not suit the task.
    """
    suiting = metric_names("auto", task)
    wrong = [name for name in names if name not in suiting]
    if wrong:
        raise TrainingError(
            f"metrics: expected {', '.join(suiting)} for {task}, found "
            f"{', '.join(map(repr, wrong))}. Correct evaluation.metrics."
        )
    return MetricSet(names, task, num_classes)


class MetricSet:
    """Metrics of one split: feed it blocks, merge it with others, compute at the end.

    Merging is associative and order-free, up to the last bits of float64 sums; merged in a fixed
    order it is exact. It equals scikit-learn's functions on all rows at once; the macro averages
    are over the classes that are predicted or occur, as there.
    """

    def __init__(self, names: Sequence[str], task: Task, num_classes: int) -> None:
        self.names = tuple(names)
        self.task = task
        self.num_classes = num_classes
        self.num_rows = 0
        needed = {state for name in self.names for state in STATE_OF_METRIC[name]}
        self.states = {name: _new_state(name, num_classes) for name in sorted(needed)}

    def update(self, predicted: Tensor, target_B: Tensor) -> None:
        """Take a block of rows; the states are on the CPU, wherever the rows are.

        Args:
            predicted: Probabilities, floating [B, K], for classification; values, floating [B],
                for regression.
            target_B: Classes, int64 [B]; or values, floating [B].

        Raises:
            DataError: If shapes or classes are not those.
            DivergedError: If a prediction is not a finite number.
        """
        self._check(predicted, target_B)
        if target_B.shape[0] == 0:
            return
        predicted, target_B = predicted.detach().cpu(), target_B.cpu()
        if self.task == "regression":
            predicted, target_B = predicted.to(torch.float64), target_B.to(torch.float64)
        for state in self.states.values():
            state.update(predicted, target_B)
        self.num_rows += int(target_B.shape[0])

    def merge(self, other: MetricSet) -> None:
        """Take all rows of another set of the same metrics; the other stays as it is."""
        mine = (self.names, self.task, self.num_classes)
        theirs = (other.names, other.task, other.num_classes)
        if mine != theirs:
            raise TrainingError(
                f"merge of metrics: expected {mine!r}, found {theirs!r}. Build both from one spec."
            )
        if self.num_rows == 0:
            self.states = copy.deepcopy(other.states)
        elif other.num_rows > 0:
            for name, state in self.states.items():
                state.merge_state(other.states[name])
        self.num_rows += other.num_rows

    def compute(self) -> MetricResult:
        """Give each metric's value, or why it has none; it can go on taking rows."""
        values: dict[str, float | None] = {}
        notes = {}
        for name in self.names:
            reason = self._undefined(name)
            if reason:
                notes[name] = reason
            values[name] = None if reason else self._value(name)
        return MetricResult(values, notes)

    def _check(self, predicted: Tensor, target_B: Tensor) -> None:
        rows = target_B.shape[0]
        shape = (rows,) if self.task == "regression" else (rows, self.num_classes)
        if predicted.shape != shape or target_B.ndim != 1 or not predicted.is_floating_point():
            raise DataError(
                f"metrics: expected floating predictions of shape {list(shape)}, found "
                f"{predicted.dtype} of shape {list(predicted.shape)} for a target of shape "
                f"{list(target_B.shape)}. The model and the data do not belong together."
            )
        if not bool(predicted.isfinite().all()):
            raise DivergedError(
                f"metrics: expected finite predictions, found NaN or infinity in a block of {rows} "
                "rows. The model has diverged; lower training.optimizer.lr."
            )
        if self.task == "classification" and rows:
            lowest, highest = (int(value) for value in target_B.aminmax())
            if lowest < 0 or highest >= self.num_classes:
                raise DataError(
                    f"metrics: expected classes from 0 to {self.num_classes - 1}, found {lowest} "
                    f"to {highest}. The target has a class that the model does not know."
                )

    def _undefined(self, name: str) -> str:
        """Why a metric says nothing about these rows; empty where it does."""
        if self.num_rows == 0:
            return "there are no rows"
        if name in NEEDS_TWO_CLASSES:
            _, _, actual_K = self.states["counts"].compute()
            present = actual_K.nonzero().flatten().tolist()
            if len(present) < 2:
                return f"all {self.num_rows} rows are of one class (code {present[0]})"
        if name == "r2":
            if self.num_rows < 2:
                return "it needs at least two rows"
            if float(self.states["spread"].compute()) == 0:
                return f"all {self.num_rows} rows have the same target"
        return ""

    def _value(self, name: str) -> float:
        if name in FROM_COUNTS:
            return FROM_COUNTS[name](*self.states["counts"].compute())
        if name == "rmse":
            return math.sqrt(float(self.states["mse"].compute()))
        if name == "r2":
            spread = float(self.states["spread"].compute())
            return 1 - float(self.states["mse"].compute()) * self.num_rows / spread
        return float(self.states[name].compute())


def _new_state(name: str, num_classes: int) -> Metric:
    if name == "counts":
        return ClassCounts(num_classes)
    if name == "mse":
        return MeanSquaredError(**isolated).set_dtype(torch.float64)
    if name == "mae":
        return MeanAbsoluteError(**isolated).set_dtype(torch.float64)
    own: dict[str, type[Metric]] = {
        "auroc": OneVersusRestAuroc,
        "log_loss": LogLoss,
        "spread": TargetSpread,
    }
    return own[name]()


def _accuracy(correct_K: Tensor, _predicted_K: Tensor, actual_K: Tensor) -> float:
    """The share of rows that are right; with one class a row, micro F1 is the same."""
    return int(correct_K.sum()) / int(actual_K.sum())


def _balanced_accuracy(correct_K: Tensor, _predicted_K: Tensor, actual_K: Tensor) -> float:
    return _mean_ratio(correct_K, actual_K, actual_K > 0)


def _precision(correct_K: Tensor, predicted_K: Tensor, actual_K: Tensor) -> float:
    return _mean_ratio(correct_K, predicted_K, predicted_K + actual_K > 0)


def _recall(correct_K: Tensor, predicted_K: Tensor, actual_K: Tensor) -> float:
    return _mean_ratio(correct_K, actual_K, predicted_K + actual_K > 0)


def _f1_macro(correct_K: Tensor, predicted_K: Tensor, actual_K: Tensor) -> float:
    both_K = predicted_K + actual_K
    return _mean_ratio(2 * correct_K, both_K, both_K > 0)


def _mean_ratio(part_K: Tensor, whole_K: Tensor, counted_K: Tensor) -> float:
    """The mean of part / whole over the classes that count; a class without a whole gives 0."""
    ratio_K = part_K.to(torch.float64) / whole_K.clamp(min=1)
    return float(ratio_K[counted_K].mean())


FROM_COUNTS: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {
    "accuracy": _accuracy,
    "f1_micro": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1_macro": _f1_macro,
}
