"""Prepared data: the splits as shards of packed columns, and what was fitted to make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.artifacts.artifact import Artifact, ArtifactKind
from batchtrain.artifacts.parquet_bytes import parquet_bytes, table_from_bytes
from batchtrain.errors import ArtifactDamagedError
from batchtrain.spec.task import Task

__all__ = ["PREPARED_DATA", "PreparedData", "SplitRows"]

PREPARED_DATA = ArtifactKind("prepared_data", 2)

NUMERIC, CODES, TARGET, ROW_ID = "numeric", "codes", "target", "row_id"


@dataclass(frozen=True)
class SplitRows:
    """Rows that are ready for a model.

    Attributes:
        numeric: float32 `[N, F]`.
        codes: int64 `[N, C]`.
        target: int64 class codes `[N]`, or float64 values `[N]`.
        row_id: int64 `[N]`, the number of the row in the input.
    """

    numeric: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    row_id: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of rows, N."""
        return len(self.row_id)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> SplitRows:
        """Some of the rows."""
        return SplitRows(self.numeric[rows], self.codes[rows], self.target[rows], self.row_id[rows])

    @staticmethod
    def concatenate(parts: Sequence[SplitRows]) -> SplitRows:
        """Several parts as one; at least one is needed, for the widths."""
        return SplitRows(
            np.concatenate([part.numeric for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.target for part in parts]),
            np.concatenate([part.row_id for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """One shard: a Parquet file of packed columns."""
        columns: dict[str, pa.Array] = {}
        if self.numeric.shape[1]:
            columns[NUMERIC] = _packed(self.numeric)
        if self.codes.shape[1]:
            columns[CODES] = _packed(self.codes)
        columns[TARGET] = pa.array(self.target)
        columns[ROW_ID] = pa.array(self.row_id)
        return parquet_bytes(pa.table(columns))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> SplitRows:
        """Read one shard."""
        table = table_from_bytes(data, where=where)
        return cls(
            numeric=_unpacked(table, NUMERIC, np.dtype(np.float32)),
            codes=_unpacked(table, CODES, np.dtype(np.int64)),
            target=table[TARGET].to_numpy(),
            row_id=table[ROW_ID].to_numpy(),
        )


@dataclass(frozen=True)
class PreparedData:
    """A view of a published artifact of kind `prepared_data`."""

    artifact: Artifact

    @property
    def content(self) -> dict[str, Any]:
        """The manifest's content."""
        return dict(self.artifact.manifest.content)

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return "regression" if self.content["task"] == "regression" else "classification"

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 for regression."""
        return int(self.content["num_classes"])

    @property
    def num_numeric(self) -> int:
        """F."""
        return int(self.content["num_numeric"])

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """The number of codes of each categorical column."""
        return tuple(self.content["cardinalities"])

    @property
    def lanes(self) -> int:
        """V, the lanes of the training split."""
        return int(self.content["lanes"])

    @property
    def shards_per_lane(self) -> int:
        """How many shards of the training split are one lane."""
        return int(self.content["shards_per_lane"])

    @property
    def window_rows(self) -> int:
        """The rows of a lane that are permuted in one go, at most."""
        return int(self.content["window_rows"])

    def num_rows(self, split: str) -> int:
        """How many rows a split has."""
        return int(self.content["splits"][split]["rows"])

    def load(self, split: str) -> SplitRows:
        """All rows of a split, in the order in which the input had them.

        Raises:
            ArtifactDamagedError: If a shard is not what the manifest says.
        """
        names = self.content["splits"][split]["shards"]
        parts = [
            SplitRows.from_bytes(self.artifact.read(name), where=self.artifact.file_url(name))
            for name in names
        ]
        rows = SplitRows.concatenate(parts)
        if len(rows) != self.num_rows(split):
            raise ArtifactDamagedError(
                f"expected {self.num_rows(split)} rows in the {split} split of "
                f"{self.artifact.url}, found {len(rows)}. Delete that folder and prepare again"
            )
        return rows

    def preprocessing_state(self) -> dict[str, Any]:
        """The fitted preprocessor as JSON."""
        return dict(self.artifact.read_json("preprocess.json"))

    def profile(self) -> dict[str, Any]:
        """What was found in the rows and what was done to them."""
        return dict(self.artifact.read_json("profile.json"))

    def golden_rows(self) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """A few raw rows in canonical types, and their row numbers."""
        table = table_from_bytes(
            self.artifact.read("golden.parquet"), where=self.artifact.file_url("golden.parquet")
        )
        row_id = np.array(self.artifact.read_json("golden_row_ids.json"), dtype=np.int64)
        return table, row_id


def _packed(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _unpacked(table: pa.Table, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if name not in table.column_names:
        return np.empty((table.num_rows, 0), dtype=dtype)
    width = table.schema.field(name).type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    return np.concatenate(parts).astype(dtype, copy=False).reshape(-1, width)
