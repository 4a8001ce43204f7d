"""Thresholds are read and compared exactly, and an undefined metric meets none of them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from batchtrain.errors import SpecError
from batchtrain.metrics.require import (
    DIRECTION,
    Failure,
    check_requirements,
    metric_names,
    primary_metric,
)
from batchtrain.spec.evaluation import CLASSIFICATION_METRICS, REGRESSION_METRICS

SRC = Path(__file__).resolve().parents[3] / "src"


def test_every_metric_has_a_direction():
    assert set(DIRECTION) == {*CLASSIFICATION_METRICS, *REGRESSION_METRICS}


def test_auto_is_every_metric_of_the_task():
    assert metric_names("auto", "classification") == CLASSIFICATION_METRICS
    assert metric_names("auto", "regression") == REGRESSION_METRICS
    assert metric_names(("mae", "r2"), "regression") == ("mae", "r2")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_primary_metric_is_one_of_the_task(task):
    assert primary_metric(task) in metric_names("auto", task)


@pytest.mark.parametrize(
    ("threshold", "value", "is_met"),
    [
        (">= 0.9", 0.9, True),
        (">=0.9", math.nextafter(0.9, 0), False),
        ("> 0.9", 0.9, False),
        ("<= 1e-3", 0.001, True),
        ("< 1.5E+1", 15.0, False),
        ("< -2", -2.5, True),
        (">=   1", 1.0, True),
    ],
)
def test_a_value_is_compared_as_it_is(threshold, value, is_met):
    failures = check_requirements({"r2": threshold}, {"r2": value})
    assert failures == ([] if is_met else [Failure("r2", threshold, value)])


def test_all_missed_thresholds_are_listed_in_order():
    require = {"recall": ">= 0.9", "accuracy": ">= 0.5", "log_loss": "< 0.1"}
    values = {"accuracy": 0.6, "log_loss": 0.2, "recall": 0.1}
    failures = check_requirements(require, values)
    assert [failure.metric for failure in failures] == ["recall", "log_loss"]
    assert str(failures[1]) == "log_loss: expected < 0.1, found 0.2"


def test_an_undefined_metric_fails_with_its_reason():
    values = {"auroc": None, "r2": math.nan}
    require = {"auroc": ">= 0", "r2": "<= 5", "mse": "< 1"}
    failures = check_requirements(require, values, {"auroc": "all rows are of one class"})
    assert [str(failure) for failure in failures] == [
        "auroc: expected >= 0, it is undefined (all rows are of one class)",
        "r2: expected <= 5, it is undefined (it is not a number)",
        "mse: expected < 1, it is undefined (it was not measured)",
    ]


@pytest.mark.parametrize("threshold", ["0.9", "== 0.9", ">= nan", ">= 0.9 or 1", "=> 1", ""])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(SpecError, match=r"evaluation\.require\.accuracy"):
        check_requirements({"accuracy": threshold}, {"accuracy": 1.0})


def test_thresholds_are_checked_without_torch():
    code = "import sys, batchtrain.metrics.require; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SRC)})
