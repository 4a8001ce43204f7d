"""Gather what the report shows from the artifacts of a run; nothing is computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.evaluation.scores import SplitScores, has_one_number, shown_split
from batchtrain.metrics.require import Failure, primary_metric
from batchtrain.preprocessing import FittedColumn, FittedPreprocessor
from batchtrain.reporting import content as page
from batchtrain.reporting.confusion import confusion_notes
from batchtrain.reporting.training_notes import training_notes
from batchtrain.spec.data import SPLITS
from batchtrain.spec.run import RunSpec
from batchtrain.spec.task import class_weights_in_force
from batchtrain.version import __version__

__all__ = ["ReportSources", "report_content"]

KNOWN_TRUTH: Mapping[str, Mapping[str, float]] = {
    "sample:line": {"weight": 0.7, "bias": 0.3},
    "sample:linear": {"weight": 2.0, "bias": 1.0},
}
"""The samples that a known line made."""

SMALL_MODEL = 16
"""The learned numbers of a model are shown where there are at most this many."""

SHOWN_CLASSES = 12
"""So many classes are named in a sentence."""


@dataclass(frozen=True)
class ReportSources:
    """Everything that the report is drawn from."""

    spec: RunSpec
    run_id: str
    prepared: PreparedData
    trained: TrainedModel
    fitted: FittedPreprocessor
    scores: Mapping[str, SplitScores]
    spec_yaml: str


def report_content(
    sources: ReportSources,
    failures: Sequence[Failure],
    stages: Sequence[page.StageRow],
) -> page.ReportContent:
    """Gather the report's content.

    Args:
        sources: The artifacts.
        failures: The thresholds that are missed.
        stages: What ran before.
    """
    spec, fitted = sources.spec, sources.fitted
    profile = sources.prepared.profile()
    shown = shown_split(sources.prepared)
    primary = primary_metric(fitted.target.task)
    matrix = sources.scores[shown].matrix
    confusion = None
    if matrix is not None:
        confusion = page.ConfusionData(shown, fitted.target.classes, matrix)
    return page.ReportContent(
        name=spec.name,
        run_id=sources.run_id,
        task=fitted.target.task,
        target=fitted.target.name,
        summary=_summary(spec, fitted),
        version=__version__,
        spec_yaml=sources.spec_yaml,
        splits=_splits(sources.prepared, profile),
        columns=tuple(_columns(sources, profile)),
        stages=tuple(stages),
        history=tuple(_epoch(record) for record in sources.trained.history()),
        loss_notes=_loss_notes(sources),
        best_epoch=sources.trained.content["best_epoch"],
        metrics={split: found.metrics for split, found in sources.scores.items()},
        metric_notes={split: found.notes for split, found in sources.scores.items()},
        primary=page.PrimaryMetric(primary, shown, sources.scores[shown].metrics.get(primary)),
        requirements=_requirements(spec, sources.scores, failures),
        confusion=confusion,
        regression=_regression(sources, shown) if confusion is None else None,
        changes=tuple(page.ChangeRow(**change) for change in profile["changes"]),
        parameters=_parameters(sources.trained),
        truth=_truth(sources),
        environment={
            **{key: str(value) for key, value in sources.trained.machine().items()},
            "input files": ", ".join(profile["files"][:5]) or spec.data.source,
        },
        warnings=(
            *profile["warnings"],
            *_inexact(sources.trained),
            *training_notes(sources.trained.content),
            *confusion_notes(confusion),
        ),
    )


def _inexact(trained: TrainedModel) -> list[str]:
    """One sentence for each thing that a resume could not do as the attempt before it."""
    return [
        f"the training was resumed after step {entry['step']} where {entry['what']} was "
        f"{entry['now']!r} and had been {entry['then']!r}: the last bits may differ from those of "
        "an unbroken run"
        for entry in trained.inexact()
    ]


def _summary(spec: RunSpec, fitted: FittedPreprocessor) -> str:
    shape = "-".join(str(width) for width in getattr(spec.model, "hidden", ()))
    name = f"{spec.model.kind} {shape}".strip()
    columns = len(fitted.columns)
    plural = "" if columns == 1 else "s"
    if all(column.wide is None for column in fitted.columns):
        return f"{name} on {columns} feature{plural}"
    count = fitted.num_numeric + len(fitted.cardinalities)
    return f"{name} on {count} features of {columns} column{plural}"


def _splits(prepared: PreparedData, profile: Mapping[str, Any]) -> tuple[page.SplitSummary, ...]:
    counts = profile["class_counts"]
    return tuple(
        page.SplitSummary(split, prepared.num_rows(split), counts.get(split))
        for split in SPLITS
        if prepared.num_rows(split)
    )


def _columns(sources: ReportSources, profile: Mapping[str, Any]) -> Iterable[page.ColumnRow]:
    """Every column of the input, in its order."""
    fitted = {column.name: column for column in sources.fitted.columns}
    target = sources.fitted.target
    for name, missing in profile["missing"].items():
        if name == target.name:
            yield page.ColumnRow(name, target.task, "target", missing, categories=target.classes)
        elif name == sources.prepared.content["weight"]:
            yield page.ColumnRow(name, "numeric", "weight", missing)
        elif name in fitted:
            column = fitted[name]
            low, high = profile["ranges"].get(name, (None, None))
            yield page.ColumnRow(
                name=name,
                kind=column.kind,
                role="feature",
                missing=missing,
                filled_with=_filled_with(column),
                note=_note(column),
                categories=column.categories,
                minimum=low,
                maximum=high,
            )
        else:
            yield page.ColumnRow(name, "not read", "excluded", missing)


def _filled_with(column: FittedColumn) -> str | None:
    if column.missing in {"drop", "error"}:
        return None
    if column.wide is not None:
        return "a text without words" if column.kind == "text" else "zeros"
    if column.fill is None:
        return "the unknown category"
    value = f"{column.fill:.6g}" if isinstance(column.fill, float) else str(column.fill)
    return f"{column.missing}: {value}"


def _note(column: FittedColumn) -> str:
    notes = [] if column.wide is None else [f"{column.wide.num_features} features"]
    if column.missing == "drop":
        notes.append("rows without a value are dropped")
    if column.indicator:
        notes.append("with a feature that says it was missing")
    return "; ".join(notes)


def _epoch(record: Mapping[str, Any]) -> page.EpochRow:
    known = {"epoch", "step", "lr", "train_loss", "valid_loss", "test_loss", "left_out_steps"}
    return page.EpochRow(
        epoch=record["epoch"],
        train_loss=record["train_loss"],
        valid_loss=record.get("valid_loss"),
        test_loss=record.get("test_loss"),
        lr=record["lr"],
        monitored={key: value for key, value in record.items() if key not in known},
    )


def _loss_notes(sources: ReportSources) -> tuple[str, ...]:
    """What the losses count and in which units, where metrics do otherwise."""
    training, prepared = sources.spec.training, sources.prepared
    column = prepared.content["weight"]
    weights = class_weights_in_force(training, prepared.classes, prepared.class_rows)
    scale = sources.trained.content["target_scale"]
    notes = []
    if scale is not None:
        notes.append(
            f"Losses are those of the scaled target, (target - {scale['mean']:.6g}) / "
            f"{scale['deviation']:.6g}, by the mean and the deviation of the training rows; "
            "predictions and metrics are in the target's own units."
        )
    if training.label_smoothing:
        notes.append(f"All losses are of labels smoothed by {training.label_smoothing:g}.")
    if weights is not None:
        named = [
            f"{name} {weight:.4g}" for name, weight in zip(prepared.classes, weights, strict=True)
        ]
        rest = len(named) - SHOWN_CLASSES
        listed = ", ".join(named[:SHOWN_CLASSES]) + (f" and {rest} more" if rest > 0 else "")
        notes.append(f"Losses weigh each row by its class: {listed}.")
    if column is not None:
        notes.append(f"Losses weigh each row by the column {column!r}.")
    if weights is not None or column is not None:
        notes.append("Metrics count every row once.")
    return tuple(notes)


def _requirements(
    spec: RunSpec, scores: Mapping[str, SplitScores], failures: Sequence[Failure]
) -> tuple[page.RequirementRow, ...]:
    missed = {failure.metric for failure in failures}
    values = scores["test"].metrics if "test" in scores else {}
    return tuple(
        page.RequirementRow(str(metric), threshold, values.get(metric), metric not in missed)
        for metric, threshold in spec.evaluation.require.items()
    )


def _regression(sources: ReportSources, split: str) -> page.RegressionData:
    found = sources.scores[split]
    return page.RegressionData(
        split=split,
        actual=found.actual.tolist(),
        predicted=found.predicted.tolist(),
        rows=found.num_rows,
        line=_line(sources, split),
    )


def _line(sources: ReportSources, split: str) -> page.LineData | None:
    """The rows in raw units, where the model has one numeric feature and nothing else."""
    if not has_one_number(sources.fitted):
        return None
    column = sources.fitted.columns[0]
    train, test = sources.scores["train"], sources.scores[split]

    def raw(found: SplitScores) -> list[float]:
        scaled = found.feature.astype(np.float64)
        values: list[float] = (scaled * column.divisor + column.offset).tolist()
        return values

    return page.LineData(
        feature=column.name,
        train_x=raw(train),
        train_y=train.actual.tolist(),
        test_x=raw(test),
        test_y=test.actual.tolist(),
        predicted_y=test.predicted.tolist(),
    )


def _parameters(trained: TrainedModel) -> tuple[page.ParameterRow, ...]:
    described = trained.parameters()
    small = sum(row["count"] for row in described) <= SMALL_MODEL
    weights = safetensors.torch.load(trained.best_weights()) if small else {}
    return tuple(
        page.ParameterRow(
            name=row["name"],
            shape=tuple(row["shape"]),
            count=row["count"],
            values=weights[row["name"]].flatten().tolist() if small else None,
        )
        for row in described
    )


def _truth(sources: ReportSources) -> tuple[page.TruthRow, ...]:
    """For a sample that a known line made: its numbers, and a linear model's in raw units."""
    truth = KNOWN_TRUTH.get(sources.spec.data.source)
    columns = sources.fitted.columns
    if truth is None or sources.spec.model.kind != "linear" or len(columns) != 1:
        return ()
    weights = safetensors.torch.load(sources.trained.best_weights())
    scale = sources.trained.content["target_scale"] or {"mean": 0.0, "deviation": 1.0}
    slope = float(weights["linear.weight"]) * scale["deviation"] / columns[0].divisor
    bias = float(weights["linear.bias"]) * scale["deviation"] + scale["mean"]
    intercept = bias - slope * columns[0].offset
    learned = {"weight": slope, "bias": intercept}
    return tuple(page.TruthRow(name, value, learned.get(name)) for name, value in truth.items())
