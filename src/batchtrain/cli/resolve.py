"""The whole spec with every value in force, for `check --resolved`."""

from __future__ import annotations

from typing import Any

from batchtrain.metrics.require import metric_names
from batchtrain.models.losses import resolve_loss
from batchtrain.preparation.survey import Survey
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.resolved import resolved_document, spec_yaml
from batchtrain.training.machine import choose_machine
from batchtrain.training.plan import global_batch_rows

__all__ = ["resolve"]


def resolve(loaded: LoadedSpec, found: Survey) -> tuple[dict[str, Any], str]:
    """Fill in what the rows and this machine decide.

    Returns:
        The document, and the same as YAML.
    """
    spec = loaded.spec
    task = found.task
    document = resolved_document(
        spec,
        data=found.data.model_dump(mode="json"),
        batch_rows=global_batch_rows(spec.training, num_rows=found.rows("train")),
        loss=resolve_loss(spec.training.loss, task),
        metrics=metric_names(spec.evaluation.metrics, task),
        device=choose_machine(spec.resources).device,
        workers=1 if spec.resources.workers == "auto" else spec.resources.workers,
    )
    return document, spec_yaml(document)
