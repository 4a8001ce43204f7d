"""The sections that look at a model: `evaluation`, `export` and `tracking`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "CLASSIFICATION_METRICS",
    "REGRESSION_METRICS",
    "EvaluationSpec",
    "ExportSpec",
    "MetricName",
    "MlflowSpec",
    "ProfileSpec",
    "TensorBoardSpec",
    "TrackingSpec",
]

ClassificationMetric = Literal[
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "f1_macro",
    "f1_micro",
    "auroc",
    "log_loss",
]
RegressionMetric = Literal["mse", "rmse", "mae", "r2"]
MetricName = ClassificationMetric | RegressionMetric

CLASSIFICATION_METRICS: tuple[str, ...] = get_args(ClassificationMetric)
REGRESSION_METRICS: tuple[str, ...] = get_args(RegressionMetric)

MLFLOW_SCHEMES = ("http", "https", "file", "sqlite", "databricks")

Threshold = Annotated[str, Field(pattern=r"^(>=|<=|>|<)\s*-?\d+(\.\d+)?([eE][-+]?\d+)?$")]


def _range(metric: str) -> tuple[float, float]:
    """The least and the greatest value of a metric."""
    if metric in {"log_loss", "mse", "rmse", "mae"}:
        return 0.0, math.inf
    return -math.inf if metric == "r2" else 0.0, 1.0


class EvaluationSpec(SpecModel):
    """What is measured, and what a model must reach to be exported."""

    metrics: Literal["auto"] | tuple[MetricName, ...] = "auto"
    """`auto`: all that suit the task. `precision` and `recall` are macro averages, as
    `f1_macro` is: the mean of the classes' own values, of two classes too."""
    require: dict[MetricName, Threshold] = {}
    """Metric to threshold on the test split, such as `accuracy: ">= 0.9"`; `precision` and `recall`
    are the mean over all classes, not those of one class."""

    @field_validator("require")
    @classmethod
    def _bounds_can_be_met(cls, require: dict[MetricName, str]) -> dict[MetricName, str]:
        for metric, threshold in require.items():
            sign, limit = threshold[: 2 if "=" in threshold else 1], float(threshold.strip("<>= "))
            least, most = _range(metric)
            best = most if sign.startswith(">") else least
            can_be_met = {
                ">=": best >= limit,
                ">": best > limit,
                "<=": best <= limit,
                "<": best < limit,
            }
            if not can_be_met[sign]:
                raise ValueError(
                    f"expected a bound that {metric} can reach, found {threshold!r}: it is at "
                    f"{'most' if sign.startswith('>') else 'least'} {best:g}"
                )
        return require

    @model_validator(mode="after")
    def _required_metrics_are_measured(self) -> EvaluationSpec:
        if self.metrics != "auto":
            missing = sorted(set(self.require) - set(self.metrics))
            if missing:
                raise ValueError(f"required but not in `metrics`: {', '.join(missing)}")
        return self


class ExportSpec(SpecModel):
    """What the bundle holds."""

    formats: tuple[Literal["safetensors"], ...] = Field(default=("safetensors",), min_length=1)


class TensorBoardSpec(SpecModel):
    """Where the event files go, for a platform that looks in a place of its own."""

    dir: str = Field(min_length=1)
    """A folder, relative to the spec file; the run's name and id are appended."""


class MlflowSpec(SpecModel):
    """Where MLflow logs the run; it needs `pip install batchtrain[mlflow]`.

    Credentials come from MLflow's own environment variables, never from the spec.
    """

    uri: str = Field(min_length=1, max_length=4096)
    """The address of a tracking server, such as `https://mlflow.example.org`, or a folder,
    relative to the spec file."""
    experiment: str | None = Field(default=None, min_length=1, max_length=250)
    """Its name; left out, the name of the run."""

    @field_validator("uri")
    @classmethod
    def _uri_is_known(cls, uri: str) -> str:
        scheme = re.match(r"([A-Za-z0-9+.-]*):", uri)
        if scheme and scheme[1].lower() not in MLFLOW_SCHEMES:
            known = ", ".join(f"{each}:" for each in MLFLOW_SCHEMES)
            raise ValueError(f"expected a folder or an address with {known}, found another address")
        return uri


class ProfileSpec(SpecModel):
    """Which steps `torch.profiler` looks at: what each operation and kernel of them cost."""

    start_step: int = Field(default=10, ge=0)
    """The first of them; the steps before warm up what the first steps have to make."""
    steps: int = Field(default=5, ge=1, le=1000)
    """How many; a step of a small model writes about 50 kB."""


class TrackingSpec(SpecModel):
    """What is written down while the model trains; it never changes the result."""

    tensorboard: bool | TensorBoardSpec = True
    """`true` writes below the run's folder."""
    mlflow: MlflowSpec | None = None
    profile: ProfileSpec | None = None
    """A trace of some steps of rank 0, in the run's folder; it slows those steps down."""
    log_every_steps: int = Field(default=10, ge=1)
    """Every how many steps `Loss/train` is written."""
    log_every_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Every how many epochs a line is printed; `auto` prints about ten lines."""
    monitor: tuple[Literal["train", "valid", "test"], ...] = ("valid",)
    """The splits whose accuracy (or R2) is written as `Accuracy/<split>` each epoch."""
