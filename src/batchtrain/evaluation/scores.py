"""Score prepared rows shard by shard, and keep of each split what the report needs.

Shapes: n rows of a shard, N rows of a split, K columns of output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.engine import Engine, Tables
from batchtrain.engines.shipped import Shipped
from batchtrain.evaluation.shard_work import score_shard
from batchtrain.metrics.compute import MetricSet, build_metrics
from batchtrain.metrics.confusion import confusion
from batchtrain.preprocessing import FittedPreprocessor, FittedTarget
from batchtrain.progress import Progress
from batchtrain.reporting.content import MAX_POINTS
from batchtrain.scoring import Scorer, prediction_table
from batchtrain.spec.data import SPLITS

__all__ = [
    "SplitScores",
    "has_one_number",
    "published_splits",
    "score_splits",
    "shown_split",
]


@dataclass(frozen=True)
class SplitScores:
    """What the model gave on one split; P rows of it are drawn.

    Attributes:
        num_rows: N.
        metrics: Metric to value; None where it is undefined.
        notes: Undefined metric to the reason.
        actual: float64 `[P]`, of a regression the targets of some rows spread over the split.
        predicted: float64 `[P]`, of a regression the predictions for the same rows.
        feature: float32 `[P]`, their feature where the model sees one number only; else zeros.
        predictions: The published table of all rows; None where the split's are not published.
        matrix: Counts of true by predicted class, for the split whose matrix is shown.
    """

    num_rows: int
    metrics: dict[str, float | None]
    notes: dict[str, str]
    actual: npt.NDArray[np.float64]
    predicted: npt.NDArray[Any]
    feature: npt.NDArray[np.float32]
    predictions: pa.Table | None
    matrix: list[list[int]] | None


def score_splits(
    prepared: PreparedData,
    scorer: Shipped[Scorer],
    fitted: FittedPreprocessor,
    names: Sequence[str],
    progress: Progress,
    engine: Engine,
) -> dict[str, SplitScores]:
    """Score every row of every split once; metrics are merged in the order of the shards.

    Args:
        prepared: The rows.
        scorer: The model.
        fitted: What the rows were prepared with.
        names: The metrics.
        progress: Hears how far it is.
        engine: Carries the work to the shards.

    Returns:
        Split to scores, for the splits that have rows.
    """
    shards = [
        (split, number)
        for split in SPLITS
        if prepared.num_rows(split)
        for number in range(len(prepared.shard_names(split)))
    ]
    work = partial(score_shard, prepared, scorer, has_one_number(fitted))
    with closing(engine.map_items(shards, work)) as results:
        return {
            split: _Collected(prepared, fitted.target, split, names).take(results, progress)
            for split in dict(shards)
        }


def has_one_number(fitted: FittedPreprocessor) -> bool:
    """Whether one number is all that the model sees of a row, so that a line can be drawn."""
    columns = fitted.columns
    return len(columns) == 1 and columns[0].kind == "numeric" and not columns[0].indicator


def shown_split(prepared: PreparedData) -> str:
    """The split that the page shows in detail."""
    return next(split for split in ("test", "valid", "train") if prepared.num_rows(split))


def published_splits(prepared: PreparedData) -> list[str]:
    """The splits whose predictions are kept: all that the model was not fitted on, if any."""
    return [split for split in ("valid", "test") if prepared.num_rows(split)] or ["train"]


class _Collected:
    """Takes the shards of one split in their order."""

    def __init__(
        self, prepared: PreparedData, target: FittedTarget, split: str, names: Sequence[str]
    ) -> None:
        self._target = target
        self._split = split
        self._bounds = prepared.shard_bounds(split)
        self._num_rows = prepared.num_rows(split)
        self._new_metrics = partial(build_metrics, names, target.task, len(target.classes))
        self._metrics: MetricSet = self._new_metrics()
        self._is_published = split in published_splits(prepared)
        is_class = target.task == "classification"
        self._has_matrix = is_class and split == shown_split(prepared)
        count = 0 if is_class else min(self._num_rows, MAX_POINTS)
        self._points = np.arange(count, dtype=np.int64) * self._num_rows // max(count, 1)
        self._samples: list[tuple[npt.NDArray[Any], ...]] = []
        self._predictions: list[pa.Table] = []
        self._matrix = torch.zeros(len(target.classes), len(target.classes), dtype=torch.int64)

    def take(self, results: Iterator[Tables], progress: Progress) -> SplitScores:
        """Take the next results, one for each shard."""
        for start, stop in zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True):
            (table,) = next(results)
            self._add(table, start)
            progress.working(f"{self._split} rows scored", stop, self._num_rows)
        found = self._metrics.compute()
        actual, predicted, feature = map(np.concatenate, zip(*self._samples, strict=True))
        return SplitScores(
            num_rows=self._num_rows,
            metrics=found.values,
            notes=found.notes,
            actual=actual,
            predicted=predicted,
            feature=feature,
            predictions=pa.concat_tables(self._predictions) if self._is_published else None,
            matrix=self._matrix.tolist() if self._has_matrix else None,
        )

    def _add(self, table: pa.Table, first_row: int) -> None:
        row_id = table["row_id"].to_numpy()
        target = np.array(table["target"].to_numpy())
        width = table.schema.field("outputs").type.list_size
        flat = table["outputs"].combine_chunks().flatten().to_numpy()
        outputs = np.array(flat).reshape(-1, width)
        is_class = self._target.task == "classification"
        predicted = torch.from_numpy(outputs if is_class else outputs[:, 0])
        metrics = self._new_metrics()
        metrics.update(predicted, torch.from_numpy(target))
        self._metrics.merge(metrics)
        if self._is_published:
            self._predictions.append(prediction_table(self._target, row_id, outputs))
        if self._has_matrix:
            classes = len(self._target.classes)
            self._matrix += confusion(predicted, torch.from_numpy(target), classes)
        places = self._points - first_row
        places = places[(places >= 0) & (places < len(row_id))]
        self._samples.append((target[places], outputs[places, 0], self._feature(table)[places]))

    def _feature(self, table: pa.Table) -> npt.NDArray[np.float32]:
        if "feature" in table.column_names:
            return np.asarray(table["feature"].to_numpy())
        return np.zeros(table.num_rows, np.float32)
