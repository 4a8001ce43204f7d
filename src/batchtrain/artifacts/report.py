"""An evaluation report: metrics by split, predictions, the verdict, and the page for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchtrain.artifacts.artifact import Artifact, ArtifactKind

__all__ = ["EVALUATION_REPORT", "EvaluationReport"]

EVALUATION_REPORT = ArtifactKind("evaluation_report", 2)
"""2: the predictions of a regression are float64."""


@dataclass(frozen=True)
class EvaluationReport:
    """A view of a published artifact of kind `evaluation_report`."""

    artifact: Artifact

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Split to metric to value."""
        return dict(self.artifact.manifest.content["metrics"])

    @property
    def failures(self) -> list[str]:
        """The thresholds that are missed, as sentences; empty where the model is accepted."""
        return list(self.artifact.manifest.content["failures"])

    @property
    def notes(self) -> list[str]:
        """What a person should know beside the metrics; older reports have none."""
        return list(self.artifact.manifest.content.get("notes", ()))

    def page(self) -> bytes:
        """The report as one HTML file."""
        return self.artifact.read("report.html")

    def metrics_document(self) -> dict[str, Any]:
        """Metrics, notes on undefined ones, and requirements."""
        return dict(self.artifact.read_json("metrics.json"))
