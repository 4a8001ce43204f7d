"""A model bundle: all that is needed to predict on raw rows, and nothing that runs code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.artifacts.artifact import Artifact, ArtifactKind, open_artifact
from batchtrain.artifacts.parquet_bytes import table_from_bytes
from batchtrain.storage import locate

__all__ = ["MODEL_BUNDLE", "ModelBundle"]

MODEL_BUNDLE = ArtifactKind("model_bundle", 2)


@dataclass(frozen=True)
class ModelBundle:
    """A view of a published artifact of kind `model_bundle`."""

    artifact: Artifact

    @classmethod
    def open(cls, place: str | Path) -> ModelBundle:
        """Open a bundle wherever it was copied to.

        Args:
            place: A folder, or the address of one, such as `s3://bucket/models/drug200`.

        Raises:
            ArtifactMissingError: If the folder holds no manifest.
            ArtifactError: If it is not a bundle of this format.
            StorageError: If the place cannot be read.
        """
        storage, key = locate(place)
        return cls(open_artifact(storage, key, MODEL_BUNDLE))

    @property
    def content(self) -> dict[str, Any]:
        """The manifest's content: name, task, columns, model, inputs, loss, scale, metrics."""
        return dict(self.artifact.manifest.content)

    @property
    def num_golden(self) -> int:
        """How many raw rows with recorded predictions it holds."""
        return int(self.content["golden_rows"])

    def preprocessing_state(self) -> dict[str, Any]:
        """The fitted preprocessor as JSON."""
        return dict(self.artifact.read_json("preprocess.json"))

    def golden(self) -> tuple[pa.Table, npt.NDArray[np.int64], pa.Table]:
        """Raw rows, their row numbers, and the predictions that they gave at export."""
        rows = self._table("golden_rows.parquet")
        expected = self._table("golden_predictions.parquet")
        return rows, expected["row_id"].to_numpy(), expected

    def _table(self, name: str) -> pa.Table:
        return table_from_bytes(self.artifact.read(name), where=self.artifact.file_url(name))
