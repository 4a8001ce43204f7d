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

__all__ = ["PREPARED_DATA", "PreparedData", "SplitRows", "near_equal_bounds"]

PREPARED_DATA = ArtifactKind("prepared_data", 3)

NUMERIC, CODES, TARGET, ROW_ID, WEIGHT = "numeric", "codes", "target", "row_id", "weight"


@dataclass(frozen=True)
class SplitRows:
    """Rows that are ready for a model.

    Attributes:
        numeric: float32 `[N, F]`.
        codes: int64 `[N, C]`.
        target: int64 class codes `[N]`, or float64 values `[N]`.
        row_id: int64 `[N]`, the number of the row in the input.
        weight: float32 `[N]`, what each row weighs in the loss; None where all weigh 1.
    """

    numeric: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    row_id: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """The number of rows, N."""
        return len(self.row_id)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> SplitRows:
        """Some of the rows."""
        return SplitRows(
            self.numeric[rows],
            self.codes[rows],
            self.target[rows],
            self.row_id[rows],
            None if self.weight is None else self.weight[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence[SplitRows]) -> SplitRows:
        """Several parts as one; at least one is needed, for the widths."""
        weights = [part.weight for part in parts if part.weight is not None]
        return SplitRows(
            np.concatenate([part.numeric for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.target for part in parts]),
            np.concatenate([part.row_id for part in parts]),
            np.concatenate(weights) if weights else None,
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
        if self.weight is not None:
            columns[WEIGHT] = pa.array(self.weight)
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
            weight=table[WEIGHT].to_numpy() if WEIGHT in table.column_names else None,
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
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by class code; none for regression."""
        return tuple(self.content["classes"])

    @property
    def class_rows(self) -> tuple[int, ...]:
        """How many training rows each class has, by class code; none for regression."""
        return tuple(self.content["class_rows"])

    @property
    def target_statistics(self) -> tuple[float, float] | None:
        """Mean and deviation of the training rows' targets; None for classification.

        The deviation is the population's, and 1 where all targets are equal. Every row counts
        once, whatever it weighs.
        """
        found = self.content["target_statistics"]
        return None if found is None else (float(found["mean"]), float(found["deviation"]))

    @property
    def has_weights(self) -> bool:
        """Whether the rows have weights, which the losses count them by."""
        return self.content["weight"] is not None

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

    def shard_names(self, split: str) -> list[str]:
        """The files of a split, in the order of its rows."""
        return list(self.content["splits"][split]["shards"])

    def shard_bounds(self, split: str) -> npt.NDArray[np.int64]:
        """The first row of each shard of a split, and the end of the last one: int64 `[S + 1]`."""
        return near_equal_bounds(self.num_rows(split), len(self.shard_names(split)))

    def shard(self, split: str, number: int) -> SplitRows:
        """The rows of one shard, checked against the manifest.

        Raises:
            ArtifactDamagedError: If the shard is not what the manifest says.
        """
        name = self.shard_names(split)[number]
        data, where = self.artifact.read(name), self.artifact.file_url(name)
        rows = SplitRows.from_bytes(data, where=where)
        self.check_shard(split, number, rows)
        return rows

    def check_shard(self, split: str, number: int, rows: SplitRows) -> None:
        """Make sure that rows can be those of one shard, whoever read them.

        Raises:
            ArtifactDamagedError: If there are more or fewer than planned, if they have another
                width, or weights where none are, or if their row numbers do not ascend.
        """
        start, end = self.shard_bounds(split)[number : number + 2]
        widths = (rows.numeric.shape[1], rows.codes.shape[1])
        expected = (self.num_numeric, len(self.cardinalities))
        problem = ""
        if len(rows) != end - start:
            problem = f"expected {end - start} rows in {{}}, found {len(rows)}"
        elif widths != expected:
            problem = (
                f"expected {expected[0]} numeric and {expected[1]} categorical columns in {{}}, "
                f"found {widths[0]} and {widths[1]}"
            )
        elif (rows.weight is not None) != self.has_weights:
            wanted, found = ("", "no ") if self.has_weights else ("no ", "")
            problem = f"expected {wanted}weights of the rows in {{}}, found {found}weights"
        elif not (np.diff(rows.row_id) > 0).all():
            place = int(np.argmin(np.diff(rows.row_id) > 0)) + 1
            problem = (
                f"expected ascending row numbers in {{}}, found {rows.row_id[place]} after "
                f"{rows.row_id[place - 1]}"
            )
        if problem:
            name = self.shard_names(split)[number]
            raise ArtifactDamagedError(
                f"{problem.format(self.artifact.file_url(name))}. The prepared data are damaged: "
                f"delete the folder {self.artifact.url} and prepare again"
            )

    def load(self, split: str) -> SplitRows:
        """All rows of a split, in the order in which the input had them.

        Raises:
            ArtifactDamagedError: If a shard is not what the manifest says.
        """
        shards = range(len(self.shard_names(split)))
        return SplitRows.concatenate([self.shard(split, number) for number in shards])

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


def near_equal_bounds(num_rows: int, num_shards: int) -> npt.NDArray[np.int64]:
    """Where each of some shards begins, and the end of the last: sizes differ by at most one row.

    Returns:
        int64 `[num_shards + 1]`: shard `j` is rows `[j*N // S, (j+1)*N // S)`.

    Example:
        >>> near_equal_bounds(10, 4).tolist()
        [0, 2, 5, 7, 10]
    """
    return np.arange(num_shards + 1, dtype=np.int64) * num_rows // num_shards


def _packed(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _unpacked(table: pa.Table, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if name not in table.column_names:
        return np.empty((table.num_rows, 0), dtype=dtype)
    width = table.schema.field(name).type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return values.astype(dtype, copy=False).reshape(-1, width)
