"""What metrics exist, which way is better, and whether thresholds are met; no torch in here."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.task import METRICS_OF_TASK, Task

__all__ = ["DIRECTION", "Failure", "check_requirements", "metric_names", "primary_metric"]


DIRECTION: dict[str, Literal["max", "min"]] = {
    "accuracy": "max",
    "balanced_accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1_macro": "max",
    "f1_micro": "max",
    "auroc": "max",
    "log_loss": "min",
    "mse": "min",
    "rmse": "min",
    "mae": "min",
    "r2": "max",
}
"""Metric to whether more or less of it is better."""

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
THRESHOLD = re.compile(r"(?P<sign>>=|<=|>|<)\s*(?P<limit>-?\d+(\.\d+)?([eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Failure:
    """One threshold that is missed.

    Attributes:
        metric: The metric's name.
        threshold: What was asked, such as `>= 0.9`.
        value: What was reached; None where the metric is undefined.
        reason: Why it is undefined; empty where there is a value.
    """

    metric: str
    threshold: str
    value: float | None
    reason: str = ""

    def __str__(self) -> str:
        """One sentence for people."""
        found = "it is undefined" if self.value is None else f"found {self.value:.6g}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.metric}: expected {self.threshold}, {found}{reason}"


def metric_names(asked: Literal["auto"] | tuple[str, ...], task: Task) -> tuple[str, ...]:
    """Name the metrics in force: what was asked, in that order, or all of the task for `auto`."""
    return METRICS_OF_TASK[task] if asked == "auto" else asked


def primary_metric(task: Task) -> str:
    """Name the one metric to show where there is room for one."""
    return "accuracy" if task == "classification" else "r2"


def check_requirements(
    require: Mapping[str, str],
    values: Mapping[str, float | None],
    notes: Mapping[str, str] | None = None,
) -> list[Failure]:
    """List the thresholds that are missed, in the order of `require`.

    An undefined metric (None, NaN, or not measured) misses every threshold: no evidence is not
    good evidence. Values are compared as they are, without rounding.

    Args:
        require: Metric to threshold, such as `{"accuracy": ">= 0.9"}`.
        values: Metric to value.
        notes: Metric to why it is undefined.

    Raises:
        SpecError: If a threshold cannot be read.
    """
    failures = []
    for metric, threshold in require.items():
        sign, limit = _parse(metric, threshold)
        value = values.get(metric)
        if value is None or math.isnan(value):
            reason = "it was not measured" if metric not in values else "it is not a number"
            reason = (notes or {}).get(metric, reason)
            failures.append(Failure(metric, threshold, None, reason))
        elif not COMPARE[sign](value, limit):
            failures.append(Failure(metric, threshold, value))
    return failures


def _parse(metric: str, threshold: str) -> tuple[str, float]:
    match = THRESHOLD.fullmatch(threshold.strip())
    if match is None:
        problem = Problem(
            where="",
            key=f"evaluation.require.{metric}",
            message=f"expected a comparison such as '>= 0.9', found {threshold!r}",
            hint="Use one of >=, <=, >, < and a number.",
        )
        raise SpecError([problem])
    return match["sign"], float(match["limit"])
