"""Measure a trained model on every split, and write the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchtrain.artifacts import Draft
from batchtrain.artifacts.parquet_bytes import parquet_bytes
from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.evaluation.content import ReportSources, report_content
from batchtrain.metrics.compute import build_metrics
from batchtrain.metrics.confusion import confusion
from batchtrain.metrics.require import Failure, check_requirements, metric_names
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.progress import Progress
from batchtrain.reporting.card import render_model_card
from batchtrain.reporting.content import StageRow
from batchtrain.reporting.render import render_report
from batchtrain.scoring import CustomCode, Scorer, prediction_table
from batchtrain.spec.data import SPLITS
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from batchtrain.spec.resolved import resolved_document, spec_yaml
from batchtrain.spec.task import Task

__all__ = ["SplitScores", "evaluate_model"]


@dataclass(frozen=True)
class SplitScores:
    """What the model gave on one split.

    Attributes:
        rows: The prepared rows.
        outputs: float32 `[n, K]`.
        metrics: Metric to value; None where it is undefined.
        notes: Undefined metric to the reason.
    """

    rows: SplitRows
    outputs: npt.NDArray[np.float32]
    metrics: dict[str, float | None]
    notes: dict[str, str]


def evaluate_model(
    loaded: LoadedSpec,
    prepared: PreparedData,
    trained: TrainedModel,
    draft: Draft,
    progress: Progress,
    *,
    run_id: str,
    stages: Sequence[StageRow],
    allow_code: Sequence[str],
) -> Mapping[str, Any]:
    """Score every row of every split once, measure, and write the report.

    Returns:
        The manifest's content: metrics by split, and the thresholds that are missed.
    """
    started = time.monotonic()
    spec = loaded.spec
    fitted = FittedPreprocessor.from_json(
        prepared.preprocessing_state(), where=prepared.artifact.url
    )
    names = metric_names(spec.evaluation.metrics, prepared.task)
    scorer = _scorer(loaded, trained, fitted, allow_code)
    scores: dict[str, SplitScores] = {}
    for split in SPLITS:
        if prepared.num_rows(split):
            scores[split] = _score_split(scorer, prepared.load(split), names, prepared.task)
            progress.working(f"{split} rows scored", prepared.num_rows(split), None)
    failures = _failures(spec.evaluation.require, scores)

    metrics = {split: found.metrics for split, found in scores.items()}
    notes = {split: found.notes for split, found in scores.items() if found.notes}
    resolved = _resolved_yaml(loaded, prepared, trained, names)
    page = report_content(
        ReportSources(spec, run_id, prepared, trained, fitted, scores, resolved),
        failures,
        [*stages, _own_stage(scores, time.monotonic() - started)],
        confusion_split=_matrix(fitted, scores),
    )
    for split in _published_splits(scores):
        found = scores[split]
        table = prediction_table(fitted.target, found.rows.row_id, found.outputs)
        draft.add(f"predictions/{split}.parquet", parquet_bytes(table))
    draft.add_json("metrics.json", {"metrics": metrics, "notes": notes})
    draft.add("spec.yaml", resolved.encode())
    draft.add("report.html", render_report(page).encode())
    draft.add("MODEL_CARD.md", render_model_card(page).encode())
    return {"metrics": metrics, "failures": [str(failure) for failure in failures]}


def _scorer(
    loaded: LoadedSpec,
    trained: TrainedModel,
    fitted: FittedPreprocessor,
    allow_code: Sequence[str],
) -> Scorer:
    """The model with its best weights."""
    spec = loaded.spec
    target = spec.model.target if isinstance(spec.model, CustomModel) else None
    return Scorer.of(
        trained.artifact,
        weights="best.safetensors",
        preprocessor=fitted,
        code=CustomCode(target, allow_code, loaded.path.parent),
    )


def _resolved_yaml(
    loaded: LoadedSpec, prepared: PreparedData, trained: TrainedModel, metrics: Sequence[str]
) -> str:
    """The spec with every value that was in force."""
    document = resolved_document(
        loaded.spec,
        data=prepared.profile()["data"],
        batch_rows=trained.content["batch_rows"],
        loss=trained.content["loss"],
        metrics=metrics,
        device=trained.machine()["device"],
        workers=trained.machine()["workers"],
    )
    return spec_yaml(document)


def _own_stage(scores: Mapping[str, SplitScores], seconds: float) -> StageRow:
    """This stage as the page shows it: all but the drawing of the page itself."""
    rows = sum(len(found.rows) for found in scores.values())
    return StageRow("evaluate", "built", rows, round(seconds, 3))


def _score_split(scorer: Scorer, rows: SplitRows, names: Sequence[str], task: Task) -> SplitScores:
    outputs = scorer.score_features(rows.numeric, rows.codes)
    metrics = build_metrics(names, task, len(scorer.preprocessor.target.classes))
    predicted = torch.from_numpy(outputs if task == "classification" else outputs[:, 0])
    metrics.update(predicted, torch.from_numpy(np.array(rows.target)))
    result = metrics.compute()
    return SplitScores(rows, outputs, result.values, result.notes)


def _failures(require: Mapping[Any, str], scores: Mapping[str, SplitScores]) -> list[Failure]:
    """The thresholds that the test split misses; without a test split all are missed."""
    test = scores.get("test")
    values = test.metrics if test else {}
    return check_requirements(require, values, test.notes if test else {})


def _published_splits(scores: Mapping[str, SplitScores]) -> list[str]:
    """The splits whose predictions are kept: all that the model was not fitted on, if any."""
    return [split for split in ("valid", "test") if split in scores] or ["train"]


def _matrix(
    fitted: FittedPreprocessor, scores: Mapping[str, SplitScores]
) -> tuple[str, list[list[int]]] | None:
    """The confusion matrix of the split to show; rows are true classes."""
    if fitted.target.task != "classification":
        return None
    split = next(name for name in ("test", "valid", "train") if name in scores)
    found = scores[split]
    counts = confusion(
        torch.from_numpy(found.outputs),
        torch.from_numpy(np.array(found.rows.target)),
        len(fitted.target.classes),
    )
    return split, counts.tolist()
