"""Make a bundle and prove it on raw rows before anybody can see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.artifacts import Artifact, Draft
from batchtrain.artifacts.bundle import MODEL_BUNDLE
from batchtrain.artifacts.manifest import Manifest
from batchtrain.artifacts.parquet_bytes import parquet_bytes, table_from_bytes
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.artifacts.report import EvaluationReport
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import VerificationError
from batchtrain.models.assets import add_assets, assets_of
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.scoring import CustomCode, Scorer, largest_difference, prediction_table
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel

__all__ = ["TOLERANCE", "build_bundle"]

TOLERANCE = 1e-5
"""What the last bits of a float32 product may make of an output, relative to the value, or to 1
where that is larger; of a scaled target relative to the scaled value."""


def build_bundle(
    loaded: LoadedSpec,
    prepared: PreparedData,
    trained: TrainedModel,
    report: EvaluationReport,
    draft: Draft,
    *,
    allow_code: Sequence[str],
) -> Mapping[str, Any]:
    """Write the bundle's files and return the manifest's content.

    The golden rows are raw rows of the input. The staged bundle scores them from raw, and the
    result must be what evaluation got from the prepared rows: so a transform that differs between
    training and prediction cannot leave this function. For built-in models it is the same bit for
    bit; the tolerance is for products that a custom model makes by other means than linear layers.

    Raises:
        VerificationError: If it is not.
    """
    spec = loaded.spec
    state = prepared.preprocessing_state()
    fitted = FittedPreprocessor.from_json(state, where=prepared.artifact.url)
    content = {
        "name": spec.name,
        "task": fitted.target.task,
        "target": fitted.target.name,
        "classes": list(fitted.target.classes),
        "columns": fitted.input_types,
        "null_values": list(spec.data.null_values),
        "model": trained.content["model"],
        "inputs": trained.content["inputs"],
        "loss": trained.content["loss"],
        "target_scale": trained.content["target_scale"],
        "metrics": report.metrics,
    }
    rows, row_id = prepared.golden_rows()
    target = spec.model.target if isinstance(spec.model, CustomModel) else None
    code = CustomCode(target, allow_code, loaded.path.parent)

    draft.add("model.safetensors", trained.best_weights())
    add_assets(draft, assets_of(trained.artifact))
    draft.add_json("preprocess.json", state)
    draft.add("spec.yaml", report.artifact.read("spec.yaml"))
    draft.add_json("metrics.json", report.metrics_document())
    draft.add("report.html", report.page())
    draft.add("MODEL_CARD.md", report.artifact.read("MODEL_CARD.md"))
    draft.add("golden_rows.parquet", parquet_bytes(rows))

    staged = _staged(trained, draft, content)
    scorer = Scorer.of(staged, weights="model.safetensors", preprocessor=fitted, code=code)
    found = prediction_table(fitted.target, row_id, scorer.score(rows).outputs)
    difference = largest_difference(found, _evaluated(report, row_id), scale=scorer.target_scale)
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"the bundle {staged.url}: expected, for raw rows, the outputs of evaluation; found "
            f"others, by up to {difference:g}. A custom model must not look at the other rows of "
            "its batch; with a built-in one this is a fault of batchtrain, please report it"
        )
    draft.add("golden_predictions.parquet", parquet_bytes(found))
    return {**content, "golden_rows": len(row_id), "golden_difference": difference}


def _staged(trained: TrainedModel, draft: Draft, content: Mapping[str, Any]) -> Artifact:
    """The bundle as a reader would see it, though nobody can yet."""
    manifest = Manifest(
        kind=MODEL_BUNDLE.name,
        format=MODEL_BUNDLE.format,
        fingerprint="",
        inputs={},
        content=content,
        files=dict(draft.files),
    )
    return Artifact(storage=trained.artifact.storage, key=draft.key, manifest=manifest)


def _evaluated(report: EvaluationReport, row_id: Any) -> pa.Table:
    """What evaluation predicted for some rows, in their order."""
    names = [name for name in report.artifact.manifest.files if name.startswith("predictions/")]
    tables = [
        table_from_bytes(report.artifact.read(name), where=report.artifact.file_url(name))
        for name in sorted(names)
    ]
    table = pa.concat_tables(tables)
    places = pc.index_in(pa.array(row_id, type=pa.int64()), value_set=table["row_id"])
    return table.take(places)
