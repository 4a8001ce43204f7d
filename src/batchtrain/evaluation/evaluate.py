"""Measure a trained model on every split, and write the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from batchtrain.artifacts import Draft
from batchtrain.artifacts.parquet_bytes import parquet_bytes
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.engine import Engine
from batchtrain.engines.shipped import Shipped
from batchtrain.evaluation.content import ReportSources, report_content
from batchtrain.evaluation.scores import SplitScores, score_splits
from batchtrain.evaluation.shard_work import best_scorer
from batchtrain.metrics.require import Failure, check_requirements, metric_names
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.progress import Progress
from batchtrain.reporting.card import render_model_card
from batchtrain.reporting.confusion import confusion_notes
from batchtrain.reporting.content import StageRow
from batchtrain.reporting.render import render_report
from batchtrain.scoring import CustomCode, Scorer
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from batchtrain.spec.resolved import resolved_document, spec_yaml

__all__ = ["evaluate_model"]


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
    engine: Engine,
) -> Mapping[str, Any]:
    """Score every row of every split once, measure, and write the report.

    Metrics are in the target's own units and count every row once, whatever it weighs in the
    losses.

    Args:
        loaded: The spec.
        prepared: The rows.
        trained: The model.
        draft: Where to write.
        progress: Hears how far it is.
        run_id: Tells runs of one name apart.
        stages: What ran before.
        allow_code: The packages whose code a custom model may run.
        engine: Carries the scoring to the shards.

    Returns:
        The manifest's content: metrics by split, the thresholds that are missed, and notes.
    """
    started = time.monotonic()
    spec = loaded.spec
    fitted = FittedPreprocessor.from_json(
        prepared.preprocessing_state(), where=prepared.artifact.url
    )
    names = metric_names(spec.evaluation.metrics, prepared.task)
    scorer = _shipped_scorer(loaded, trained, fitted, allow_code)
    scores = score_splits(prepared, scorer, fitted, names, progress, engine)
    failures = _failures(spec.evaluation.require, scores)

    metrics = {split: found.metrics for split, found in scores.items()}
    notes = {split: found.notes for split, found in scores.items() if found.notes}
    resolved = _resolved_yaml(loaded, prepared, trained, names)
    page = report_content(
        ReportSources(spec, run_id, prepared, trained, fitted, scores, resolved),
        failures,
        [*stages, _own_stage(scores, time.monotonic() - started)],
    )
    for split, found in scores.items():
        if found.predictions is not None:
            draft.add(f"predictions/{split}.parquet", parquet_bytes(found.predictions))
    draft.add_json("metrics.json", {"metrics": metrics, "notes": notes})
    draft.add("spec.yaml", resolved.encode())
    draft.add("report.html", render_report(page).encode())
    draft.add("MODEL_CARD.md", render_model_card(page).encode())
    said = confusion_notes(page.confusion)
    return {"metrics": metrics, "failures": [*map(str, failures)], "notes": said}


def _shipped_scorer(
    loaded: LoadedSpec,
    trained: TrainedModel,
    fitted: FittedPreprocessor,
    allow_code: Sequence[str],
) -> Shipped[Scorer]:
    """The model with its best weights, for any process."""
    spec = loaded.spec
    target = spec.model.target if isinstance(spec.model, CustomModel) else None
    code = CustomCode(target, tuple(allow_code), loaded.path.parent)
    key = f"{trained.artifact.url} {trained.artifact.manifest.digest} {code}"
    return Shipped(key, partial(best_scorer, trained, fitted, code))


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
    rows = sum(found.num_rows for found in scores.values())
    return StageRow("evaluate", "built", rows, round(seconds, 3))


def _failures(require: Mapping[Any, str], scores: Mapping[str, SplitScores]) -> list[Failure]:
    """The thresholds that the test split misses; without a test split all are missed."""
    test = scores.get("test")
    values = test.metrics if test else {}
    return check_requirements(require, values, test.notes if test else {})
