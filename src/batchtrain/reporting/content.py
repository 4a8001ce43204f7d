"""All that a report or a model card shows, as plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "MAX_POINTS",
    "ChangeRow",
    "ColumnRow",
    "ConfusionData",
    "EpochRow",
    "LineData",
    "ParameterRow",
    "PrimaryMetric",
    "RegressionData",
    "ReportContent",
    "RequirementRow",
    "SplitSummary",
    "StageRow",
    "TruthRow",
    "Verdict",
]

MAX_POINTS = 2000
"""The most points of one scatter plot; the caller samples, so that the page stays small."""

Verdict = Literal["accepted", "rejected", "no requirement"]


@dataclass(frozen=True)
class StageRow:
    """One stage of the run and its status (`built`, `reused`, `resumed`); None: not known."""

    name: str
    status: str
    rows: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class SplitSummary:
    """The rows of one split, and of each class in it (None for a regression)."""

    name: str
    rows: int
    by_class: Mapping[str, int] | None = None


@dataclass(frozen=True)
class ColumnRow:
    """One column of the source table.

    Attributes:
        name: Its name.
        kind: `numeric`, `categorical`, `boolean`, or what else it was read as.
        role: `feature`, `target`, `weight` or `excluded`.
        missing: Its missing cells over all rows; None where they were not counted.
        filled_with: What a missing cell becomes, in words; None where nothing is filled.
        note: Anything else worth saying; may be empty.
        categories: The values of a category or a class, in the order of their codes.
        minimum: The least value of a numeric column; None for the other kinds.
        maximum: The greatest.
    """

    name: str
    kind: str
    role: str
    missing: int | None = None
    filled_with: str | None = None
    note: str = ""
    categories: Sequence[str] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class EpochRow:
    """One epoch of the history.

    Attributes:
        epoch: Counted from 1; 0 is the model before training.
        train_loss: The row-weighted mean; None where it was not measured.
        valid_loss: The same on the valid split; None without such a split.
        lr: The learning rate during the epoch; None where there is none.
        test_loss: As valid_loss, on the test split; None unless that is monitored by name.
        monitored: Tag to value, such as `Accuracy/valid`.
    """

    epoch: int
    train_loss: float | None
    valid_loss: float | None = None
    lr: float | None = None
    test_loss: float | None = None
    monitored: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PrimaryMetric:
    """The one number that stands at the top; `value` is None where it could not be computed."""

    name: str
    split: str
    value: float | None


@dataclass(frozen=True)
class RequirementRow:
    """One threshold of `evaluation.require`, such as `>= 0.9`, and what was reached."""

    metric: str
    threshold: str
    value: float | None
    passed: bool


@dataclass(frozen=True)
class ConfusionData:
    """Counts of one split: `matrix[t][p]` rows of true class t were predicted as class p."""

    split: str
    class_names: Sequence[str]
    matrix: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        size = len(self.class_names)
        if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(
                f"expected a confusion matrix of {size} x {size} counts, one row and one column "
                f"per class, found rows of {[len(row) for row in self.matrix]} counts"
            )


@dataclass(frozen=True)
class LineData:
    """A regression on one feature: at most `MAX_POINTS` rows a split, the test rows predicted."""

    feature: str
    train_x: Sequence[float]
    train_y: Sequence[float]
    test_x: Sequence[float]
    test_y: Sequence[float]
    predicted_y: Sequence[float]

    def __post_init__(self) -> None:
        _check_lengths(train_x=self.train_x, train_y=self.train_y)
        _check_lengths(test_x=self.test_x, test_y=self.test_y, predicted_y=self.predicted_y)


@dataclass(frozen=True)
class RegressionData:
    """Predictions against truth on one split.

    Attributes:
        split: Which split.
        actual: The true values of the sampled rows, at most `MAX_POINTS`.
        predicted: The predictions for the same rows.
        rows: The rows that the sample stands for.
        line: What to draw where the model has one numeric feature.
    """

    split: str
    actual: Sequence[float]
    predicted: Sequence[float]
    rows: int
    line: LineData | None = None

    def __post_init__(self) -> None:
        _check_lengths(actual=self.actual, predicted=self.predicted)


@dataclass(frozen=True)
class ChangeRow:
    """One kind of change to the source rows: what was done, where, how often, and why or how."""

    what: str
    where: str
    count: int
    detail: str = ""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the model.

    Attributes:
        name: Its name in the state dict.
        shape: Its shape; empty for a scalar.
        count: How many numbers it holds.
        values: The learned numbers in row-major order, for models of a few numbers; else None.
    """

    name: str
    shape: Sequence[int]
    count: int
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class TruthRow:
    """A number that made the data, and what was learned for it, in the units of the raw data."""

    name: str
    true: float
    learned: float | None


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows; the same content always renders to the same bytes.

    `dataclasses.asdict` of it is JSON. Text may be anything: whoever renders it escapes it.

    Attributes:
        name: The run's name.
        run_id: Tells runs of one name apart.
        task: `classification` or `regression`.
        target: The column that is predicted.
        summary: One sentence on the model, such as `mlp 128-64 on 5 features`.
        version: The version of batchtrain.
        spec_yaml: The resolved spec.
        splits: In the order train, valid, test; a split without rows is left out.
        columns: In the order of the source.
        stages: In the order they ran.
        history: By epoch.
        loss_notes: Sentences on what the losses count, and in which units.
        best_epoch: The epoch whose weights were kept; None: found in the history.
        metrics: Split to metric to value; None where it could not be computed.
        metric_notes: Split to metric to the reason why it could not.
        primary: The number at the top.
        requirements: The thresholds and how they ended.
        confusion: For a classification, of the test split where there is one.
        regression: For a regression, the same.
        changes: What was dropped, filled and coerced.
        parameters: Of the model.
        truth: Where the data was made by known numbers: those, and the learned ones.
        environment: Name to value: versions, device, threads.
        warnings: Sentences for the top of the page.
    """

    name: str
    run_id: str
    task: str
    target: str
    summary: str
    version: str
    spec_yaml: str
    splits: Sequence[SplitSummary]
    columns: Sequence[ColumnRow]
    stages: Sequence[StageRow] = ()
    history: Sequence[EpochRow] = ()
    loss_notes: Sequence[str] = ()
    best_epoch: int | None = None
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    metric_notes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    primary: PrimaryMetric | None = None
    requirements: Sequence[RequirementRow] = ()
    confusion: ConfusionData | None = None
    regression: RegressionData | None = None
    changes: Sequence[ChangeRow] = ()
    parameters: Sequence[ParameterRow] = ()
    truth: Sequence[TruthRow] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether the model met all that `evaluation.require` asks for."""
        if not self.requirements:
            return "no requirement"
        return "accepted" if all(row.passed for row in self.requirements) else "rejected"

    @property
    def best(self) -> EpochRow | None:
        """The epoch whose weights were kept: as recorded, else that of the least loss.

        The valid loss decides, or the train loss without a valid split; the earliest of equals.
        """
        if self.best_epoch is not None:
            return next((row for row in self.history if row.epoch == self.best_epoch), None)
        valid = [(row.valid_loss, row) for row in self.history]
        train = [(row.train_loss, row) for row in self.history]
        for losses in (valid, train):
            known = [(loss, row) for loss, row in losses if loss is not None]
            finite = [pair for pair in known if math.isfinite(pair[0])]
            if finite:
                return min(finite, key=lambda pair: pair[0])[1]
        return None

    @property
    def num_parameters(self) -> int:
        """How many numbers the model has learned."""
        return sum(row.count for row in self.parameters)


def _check_lengths(**sequences: Sequence[float]) -> None:
    lengths = {name: len(values) for name, values in sequences.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected one length, found {lengths}")
    if max(lengths.values()) > MAX_POINTS:
        raise ValueError(f"expected at most {MAX_POINTS} points, found {lengths}; sample them")
