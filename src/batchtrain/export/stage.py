"""The export stage as others call it: return the published bundle, or make and publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.artifacts import BuildStatus, Draft, RunLayout, reuse_or_build
from batchtrain.artifacts.bundle import MODEL_BUNDLE, ModelBundle
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import ModelRejectedError
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.load import LoadedSpec

__all__ = ["export"]


def export(
    loaded: LoadedSpec,
    prepared: PreparedData,
    trained: TrainedModel,
    report: EvaluationReport,
    layout: RunLayout,
    *,
    allow_code: Sequence[str] = (),
) -> tuple[ModelBundle, BuildStatus]:
    """Publish the bundle of a model that was accepted.

    Raises:
        ModelRejectedError: If the report says that a threshold is missed.
        VerificationError: If the bundle does not give evaluation's outputs for raw rows.
    """
    if report.failures:
        reasons = "; ".join(report.failures)
        raise ModelRejectedError(
            f"the model is not exported, since it misses `evaluation.require`: {reasons}. "
            f"Read its report, {layout.storage.url(layout.report_page)}, and train a better one, "
            "or change the threshold"
        )
    inputs = {
        "stage": "export",
        "format": MODEL_BUNDLE.format,
        "report": report.artifact.manifest.fingerprint,
        "export": loaded.spec.export.model_dump(mode="json"),
    }

    def build(draft: Draft) -> Mapping[str, Any]:
        # Imported here, since a run that reuses its bundle does not need torch.
        from batchtrain.export.export import build_bundle

        return build_bundle(loaded, prepared, trained, report, draft, allow_code=allow_code)

    key = layout.bundle(fingerprint_of(inputs))
    artifact, status = reuse_or_build(layout.storage, key, MODEL_BUNDLE, inputs=inputs, build=build)
    return ModelBundle(artifact), status
