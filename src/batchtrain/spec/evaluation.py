"""The sections that look at a finished model: `evaluation`, `export` and `tracking`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "CLASSIFICATION_METRICS",
    "REGRESSION_METRICS",
    "EvaluationSpec",
    "ExportSpec",
    "MetricName",
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

Threshold = Annotated[str, Field(pattern=r"^(>=|<=|>|<)\s*-?\d+(\.\d+)?([eE][-+]?\d+)?$")]


class EvaluationSpec(SpecModel):
    """What is measured, and what a model must reach to be exported."""

    metrics: Literal["auto"] | tuple[MetricName, ...] = "auto"
    """`auto`: all that suit the task."""
    require: dict[MetricName, Threshold] = {}
    """Metric to threshold on the test split, such as `accuracy: ">= 0.9"`."""

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


class TrackingSpec(SpecModel):
    """What is written down while the model trains; it never changes the result."""

    tensorboard: bool | TensorBoardSpec = True
    """`true` writes below the run's folder."""
    log_every_steps: int = Field(default=10, ge=1)
    """Every how many steps `Loss/train` is written."""
    log_every_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Every how many epochs a line is printed; `auto` prints about ten lines."""
    monitor: tuple[Literal["train", "valid", "test"], ...] = ("valid",)
    """The splits whose accuracy (or R2) is written as `Accuracy/<split>` each epoch."""
