"""The one way from raw rows to outputs: evaluation, the export check and prediction all use it.

Shapes: n rows of a block, F numeric features, C categorical columns, K columns of output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from batchtrain.artifacts.artifact import Artifact
from batchtrain.errors import ArtifactError
from batchtrain.models.arithmetic import plain_arithmetic
from batchtrain.models.assets import assets_of
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import activate
from batchtrain.models.target_scale import TargetScale
from batchtrain.preprocessing import Features, FittedPreprocessor, FittedTarget, transform
from batchtrain.spec.model import ModelSpec
from batchtrain.spec.training import LossName

__all__ = [
    "SCORE_ROWS",
    "CustomCode",
    "Outputs",
    "Scored",
    "Scorer",
    "largest_difference",
    "place_free",
    "prediction_table",
]

SCORE_ROWS = 2304
"""Rows are scored in blocks of exactly this many, the last one filled up with zeros: the last
bits of a matrix product depend on its shape. A multiple of 48: MKL's AVX2 kernels take six rows at
a time, and what is left at the end goes through others (with 2048 rows the last two had other
bits)."""

LANE = 16
"""float32 values of one 64-byte vector. For products that are narrower, or whose rows do not begin
at such a boundary, a BLAS takes kernels in which a row's last bits depend on its place (measured
with MKL 2024.2: 1194 of 3396 models; none once both widths were multiples of this)."""


Outputs: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
"""Probabilities are float32; values of a regression float64, as their target's are."""


@dataclass(frozen=True)
class CustomCode:
    """What an operator allows to run for a `custom` model.

    Attributes:
        target: `package.module:Class`, or None where the model is not custom.
        allow: The packages whose code may run.
        search: The spec file's folder.
    """

    target: str | None = None
    allow: Sequence[str] = ()
    search: Path | None = None


@dataclass(frozen=True)
class Scored:
    """The outputs for a block of raw rows.

    Attributes:
        outputs: float32 `[n, K]`: probabilities by class code; or float64 `[n, 1]`: values in the
            target's own units. A row that is not usable has NaN.
        features: What the rows became, with the counts of filled and unseen values.
    """

    outputs: Outputs
    features: Features


class Scorer:
    """Scores rows with a fitted preprocessor and a trained model.

    A row's outputs depend on that row alone, not on its neighbours or its place.
    """

    def __init__(
        self,
        preprocessor: FittedPreprocessor,
        model: nn.Module,
        loss: LossName,
        target_scale: TargetScale | None = None,
    ) -> None:
        """Take over a model.

        Args:
            preprocessor: What turns raw rows into the model's inputs.
            model: With its weights.
            loss: What it was trained by, which says what its outputs mean.
            target_scale: In what scale it learned its target; None for the target's own units.
        """
        self.preprocessor = preprocessor
        self._model = place_free(model.to("cpu").eval())
        self._loss = loss
        self.target_scale = target_scale

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        *,
        weights: str,
        preprocessor: FittedPreprocessor,
        code: CustomCode,
    ) -> Scorer:
        """Build the scorer of a trained model or a bundle.

        Args:
            artifact: Its content names the model's shape, widths, loss and target scale.
            weights: The name of its safetensors file.
            preprocessor: What turns raw rows into the model's inputs.
            code: The operator's word on custom code; an artifact never names any.

        Raises:
            ArtifactError: If model, weights and preprocessor do not belong together.
        """
        content = artifact.manifest.content
        inputs = ModelInputs.from_json(content["inputs"])
        widths = (preprocessor.num_numeric, preprocessor.cardinalities)
        if (inputs.num_numeric, inputs.cardinalities) != widths:
            raise ArtifactError(
                f"expected a preprocessor of the widths {inputs} in {artifact.url}, found {widths}"
                ". The artifact is damaged; make it anew"
            )
        model = build_model(
            _model_spec(content["model"], code, where=artifact.url),
            inputs,
            seed=0,
            allow_code=code.allow,
            search=code.search,
            assets=assets_of(artifact),
        )
        try:
            model.load_state_dict(safetensors.torch.load(artifact.read(weights)))
        except (RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"expected the weights of {content['model']} in {artifact.url}, found others "
                f"({error}). The artifact is damaged; make it anew"
            ) from error
        scale = TargetScale.from_json(content["target_scale"], where=artifact.url)
        return cls(preprocessor, model, cast("LossName", content["loss"]), scale)

    def score(self, table: pa.Table, *, first_row: int = 0) -> Scored:
        """Score raw rows.

        Args:
            table: The columns of the preprocessor's `input_types`, in canonical types.
            first_row: The global number of the first row, for messages.
        """
        row_id = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
        features = transform(self.preprocessor, table, row_id=row_id)
        outputs = self.score_features(features.numeric, features.codes)
        outputs[~features.usable] = np.nan
        return Scored(outputs=outputs, features=features)

    def score_features(
        self, numeric: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]
    ) -> Outputs:
        """Score rows that are transformed already; `[n, K]` as `Scored.outputs`."""
        parts = []
        # How rows are dealt to threads would show in the last bits.
        with plain_arithmetic(threads=1), torch.inference_mode():
            for start in range(0, max(len(numeric), 1), SCORE_ROWS):
                stop = min(start + SCORE_ROWS, len(numeric))
                numeric_BF = torch.zeros(SCORE_ROWS, numeric.shape[1])
                codes_BC = torch.zeros(SCORE_ROWS, codes.shape[1], dtype=torch.int64)
                numeric_BF[: stop - start] = torch.from_numpy(np.array(numeric[start:stop]))
                codes_BC[: stop - start] = torch.from_numpy(np.array(codes[start:stop]))
                outputs_BK = activate(self._model(numeric_BF, codes_BC), self._loss)
                parts.append(outputs_BK[: stop - start].numpy())
        outputs = np.concatenate(parts)
        if self.target_scale is not None:
            return self.target_scale.restored(outputs)
        is_class = self.preprocessor.target.task == "classification"
        return outputs if is_class else outputs.astype(np.float64)


class _PlaceFreeLinear(nn.Linear):
    """A linear layer that multiplies by weights filled up with zeros to whole vectors; see `LANE`.

    Its own weights stay as they were, for a model that reads them.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, "meta")
        self.weight, self.bias = layer.weight, layer.bias
        extra = -layer.out_features % LANE
        self._spare = -layer.in_features % LANE
        self._padded_weight = F.pad(layer.weight.detach(), (0, self._spare, 0, extra))
        self._padded_bias = None if layer.bias is None else F.pad(layer.bias.detach(), (0, extra))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gave it
        """As the layer that it stands for."""
        padded = F.linear(F.pad(input, (0, self._spare)), self._padded_weight, self._padded_bias)
        return padded[..., : self.out_features].contiguous()


def place_free(model: nn.Module) -> nn.Module:
    """Replace each linear layer by one whose result for a row does not depend on its place.

    Products that a custom model makes by other means stay as they are.
    """
    if type(model) is nn.Linear:
        return _PlaceFreeLinear(model)
    for name, child in model.named_children():
        setattr(model, name, place_free(child))
    return model


def prediction_table(
    target: FittedTarget,
    row_id: npt.NDArray[np.int64],
    outputs: Outputs,
) -> pa.Table:
    """Predictions as people read them: `row_id`, `prediction`, and a probability for each class.

    A row that could not be used, or for which the model gives no finite number, has nulls.
    """
    unusable = ~np.isfinite(outputs).all(axis=1)
    columns: dict[str, pa.Array] = {"row_id": pa.array(row_id, type=pa.int64())}
    if target.task == "regression":
        columns["prediction"] = pa.array(outputs[:, 0], mask=unusable)
        return pa.table(columns)
    best = np.where(unusable, 0, outputs.argmax(axis=1))
    names = pa.array(target.classes, type=pa.string())
    columns["prediction"] = names.take(pa.array(best, mask=unusable))
    for code, name in enumerate(target.classes):
        columns[f"probability_{name}"] = pa.array(outputs[:, code], mask=unusable)
    return pa.table(columns)


def largest_difference(
    found: pa.Table, expected: pa.Table, *, scale: TargetScale | None = None
) -> float:
    """How far two prediction tables are apart, relative to 1 or to the value if it is larger.

    Tables of other columns or rows, and other rows without a prediction, are infinitely far apart.

    Args:
        found: One table; 0 comes back if it equals the other.
        expected: The other. Where it holds float32, as all did once, the found values are rounded
            to that first.
        scale: Of a target that is scaled. The model's digits are those of the scaled value: of a
            target in millions a value near 0 has no more of them than any other.
    """
    unit = 1.0 if scale is None else scale.deviation
    if found.column_names != expected.column_names or found.num_rows != expected.num_rows:
        return float("inf")
    largest = 0.0
    for name in expected.column_names:
        if not pa.types.is_floating(expected[name].type):
            continue
        kind = expected[name].type
        here = found[name].cast(kind).to_numpy().astype(np.float64)
        there = expected[name].to_numpy().astype(np.float64)
        if not np.array_equal(np.isnan(here), np.isnan(there)):
            return float("inf")
        here, there = here[~np.isnan(here)], there[~np.isnan(there)]
        if len(here):
            # What was rounded to float32 has the digits of the whole value, not of its spread.
            middle = scale.mean if scale and pa.types.is_float64(kind) else 0.0
            relative = np.abs(here - there) / np.maximum(unit, np.abs(there - middle))
            largest = max(largest, float(relative.max()))
    return largest


def _model_spec(document: Mapping[str, Any], code: CustomCode, *, where: str) -> ModelSpec:
    """The model's section; a custom class comes from the operator, never from an artifact."""
    if document.get("kind") == "custom":
        if code.target is None:
            raise ArtifactError(
                f"expected a built-in model in {where}, found a custom one, whose code no artifact "
                "names. Pass `--model package.module:Class --allow-code package`"
            )
        document = {**document, "target": code.target}
    adapter: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
    try:
        return adapter.validate_python(dict(document), strict=False)
    except ValidationError as error:
        raise ArtifactError(
            f"expected a model that this version knows in {where}, found {dict(document)}. "
            "Use the batchtrain version that wrote it"
        ) from error
