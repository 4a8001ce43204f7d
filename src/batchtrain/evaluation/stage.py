"""The evaluate stage as others call it: return the published report, or make and publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.artifacts import BuildStatus, Draft, RunLayout, reuse_or_build
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EVALUATION_REPORT, EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine
from batchtrain.progress import Progress
from batchtrain.reporting.content import StageRow
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.load import LoadedSpec

__all__ = ["evaluate"]


def evaluate(
    loaded: LoadedSpec,
    prepared: PreparedData,
    trained: TrainedModel,
    layout: RunLayout,
    progress: Progress,
    *,
    stages: Sequence[StageRow] = (),
    allow_code: Sequence[str] = (),
    engine: Engine | None = None,
) -> tuple[EvaluationReport, BuildStatus]:
    """Measure a trained model on all splits, once for one `evaluation` section.

    Args:
        loaded: The spec.
        prepared: The rows.
        trained: The model.
        layout: Where the run lies.
        progress: Hears how far it is.
        stages: What ran before.
        allow_code: The packages whose code a custom model may run.
        engine: Carries the scoring to the rows; left out, this process does it. Metrics and
            predictions are the same bytes.
    """
    inputs = {
        "stage": "evaluate",
        "format": EVALUATION_REPORT.format,
        "trained": trained.artifact.manifest.fingerprint,
        "evaluation": loaded.spec.evaluation.model_dump(mode="json"),
    }

    def build(draft: Draft) -> Mapping[str, Any]:
        # Imported here, since a run that reuses its report needs neither torch nor matplotlib.
        from batchtrain.evaluation.evaluate import evaluate_model

        return evaluate_model(
            loaded,
            prepared,
            trained,
            draft,
            progress,
            run_id=layout.run_id,
            stages=stages,
            allow_code=allow_code,
            engine=engine or EmbeddedEngine(),
        )

    key = layout.report(fingerprint_of(inputs))
    artifact, status = reuse_or_build(
        layout.storage, key, EVALUATION_REPORT, inputs=inputs, build=build
    )
    return EvaluationReport(artifact), status
