"""A bundle in memory, ready to predict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.engines.shipped import Shipped
from batchtrain.preprocessing import FittedPreprocessor
from batchtrain.preprocessing.fitted_wide import rows_at_once
from batchtrain.scoring import CustomCode, Scorer, prediction_table
from batchtrain.tables import ColumnType, Rows, conform, extra_columns, frame_to_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LoadedBundle", "PredictionCounts", "load_bundle"]

BLOCK_ROWS = 65_536

NAMED_COLUMNS = 10
"""So many unused columns are named in a sentence."""


@dataclass
class PredictionCounts:
    """What happened to the rows that were predicted.

    Attributes:
        rows: All rows.
        unusable: Rows without a prediction: a value is missing whose policy was `drop`.
        not_finite: Rows without a prediction: the model gives no finite number for them.
        filled: Column to missing values that were replaced.
        unseen: Column to values that the training rows did not have; they count as unknown.
        ignored: The columns of the rows that the model does not use, its target aside.
    """

    rows: int = 0
    unusable: int = 0
    not_finite: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    ignored: list[str] = field(default_factory=list)

    def add(self, other: PredictionCounts) -> None:
        """Take the rows of another part, which has the same columns."""
        self.rows += other.rows
        self.unusable += other.unusable
        self.not_finite += other.not_finite
        self.filled.update(other.filled)
        self.unseen.update(other.unseen)

    def sentences(self) -> list[str]:
        """One sentence for each kind of treatment that happened."""
        found = [
            f"{count} missing values of {name!r} were filled" for name, count in self.filled.items()
        ]
        found += [
            f"{count} values of {name!r} do not occur in the training rows and count as unknown"
            for name, count in self.unseen.items()
        ]
        if self.unusable:
            found.append(
                f"{self.unusable} rows have no prediction: they lack a value that training needs"
            )
        if self.not_finite:
            found.append(
                f"{self.not_finite} rows have no prediction: the model gives no finite number"
            )
        if not self.rows:
            found.append("there are 0 rows to predict on")
        if self.ignored:
            names = ", ".join(map(repr, self.ignored[:NAMED_COLUMNS]))
            more = ", ..." if len(self.ignored) > NAMED_COLUMNS else ""
            found.append(f"{len(self.ignored)} columns are not used by the model: {names}{more}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object; `predict --json` prints them, too."""
        return {**asdict(self), "filled": dict(self.filled), "unseen": dict(self.unseen)}


class LoadedBundle:
    """Predicts on raw rows, as evaluation did."""

    def __init__(self, bundle: ModelBundle, code: CustomCode | None = None) -> None:
        where = bundle.artifact.url
        self._bundle = bundle
        self._code = code or CustomCode()
        self.content = bundle.content
        self.preprocessor = FittedPreprocessor.from_json(bundle.preprocessing_state(), where=where)
        self._scorer = Scorer.of(
            bundle.artifact,
            weights="model.safetensors",
            preprocessor=self.preprocessor,
            code=self._code,
        )

    @property
    def columns(self) -> dict[str, ColumnType]:
        """The raw columns that are needed, and their types."""
        return self.preprocessor.input_types

    @property
    def block_rows(self) -> int:
        """How many rows are worked on at once, at most."""
        return min(BLOCK_ROWS, rows_at_once(self.preprocessor.num_wide))

    def predict(self, rows: Rows) -> pd.DataFrame:
        """Predict on rows in memory.

        What is filled, unknown, not used or without a prediction is a warning of the logger
        `batchtrain`, one sentence for each kind.

        Args:
            rows: A DataFrame, an Arrow table, or a mapping from column to values. Columns that
                the model does not know are ignored.

        Returns:
            One row for each row given, in their order and under the index of a DataFrame:
            `row_id` (the number of the row, from 0), `prediction`, and for a classification a
            probability for each class. Its `attrs["counts"]` has the numbers
            of these warnings, as a JSON object of the fields of `PredictionCounts`.

        Raises:
            SchemaMismatchError: If a column is missing or holds values of another type.
        """
        table, counts = self.predict_table(frame_to_table(rows))
        for sentence in counts.sentences():
            logging.getLogger("batchtrain").warning("predict: %s", sentence)
        frame: pd.DataFrame = table.to_pandas()
        if hasattr(rows, "iloc"):  # pandas, without importing it
            frame.index = rows.index
        frame.attrs["counts"] = counts.to_json()
        return frame

    def predict_table(self, table: pa.Table) -> tuple[pa.Table, PredictionCounts]:
        """As `predict`, on an Arrow table of any column types that fit; with the counts."""
        counts = PredictionCounts(ignored=self.ignored(table.column_names))
        parts = []
        for start in range(0, max(table.num_rows, 1), self.block_rows):
            rows = table.slice(start, self.block_rows)
            block = conform(rows, self.columns, first_row=start, where="the rows", for_bundle=True)
            part, counted = self.predict_block(block, first_row=start)
            parts.append(part)
            counts.add(counted)
        return pa.concat_tables(parts), counts

    def predict_block(
        self, block: pa.Table, *, first_row: int
    ) -> tuple[pa.Table, PredictionCounts]:
        """Predict on a block of raw rows in canonical types.

        Args:
            block: The rows.
            first_row: The number of its first row.
        """
        scored = self._scorer.score(block, first_row=first_row)
        usable = scored.features.usable
        counts = PredictionCounts(
            rows=block.num_rows,
            unusable=int((~usable).sum()),
            not_finite=int((usable & ~np.isfinite(scored.outputs).all(axis=1)).sum()),
            filled=Counter(scored.features.filled),
            unseen=Counter(scored.features.unseen),
        )
        row_id = np.arange(first_row, first_row + block.num_rows, dtype=np.int64)
        return prediction_table(self.preprocessor.target, row_id, scored.outputs), counts

    def shipped(self) -> Shipped[LoadedBundle]:
        """This bundle, for any process; another one loads it from where it lies."""
        artifact = self._bundle.artifact
        key = f"{artifact.url} {artifact.manifest.digest} {self._code}"
        return Shipped(key, partial(LoadedBundle, self._bundle, self._code), self)

    def ignored(self, names: Sequence[str]) -> list[str]:
        """The columns of a table that the model does not use; the target is not among them."""
        target = self.preprocessor.target.name
        return [name for name in extra_columns(names, self.columns) if name != target]


def load_bundle(
    path: str | Path,
    *,
    model: str | None = None,
    allow_code: Sequence[str] = (),
) -> LoadedBundle:
    """Load a bundle that was copied anywhere.

    Args:
        path: The bundle's folder, or the address of one, such as `s3://bucket/models/drug200`.
        model: For a custom model `package.module:Class`; no bundle ever names code.
        allow_code: The packages whose code may run.

    Raises:
        ArtifactMissingError: If there is no bundle.
        ArtifactDamagedError: If a file is not what the manifest says.
        StorageError: If the place cannot be read.
    """
    code = CustomCode(target=model, allow=tuple(allow_code), search=Path.cwd())
    return LoadedBundle(ModelBundle.open(path), code)
