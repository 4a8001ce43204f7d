"""Stage 1: from raw rows to prepared data. Split first, fit on train, then transform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.artifacts import Draft
from batchtrain.artifacts.parquet_bytes import parquet_bytes
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import BlockFunction, Engine, Results, Tables
from batchtrain.errors import DataError
from batchtrain.points import passed
from batchtrain.preparation.block_work import (
    fit_block,
    fitted_block,
    transform_block,
    transformed_block,
)
from batchtrain.preparation.look import block_rows_of, column_types
from batchtrain.preparation.resolve import Change
from batchtrain.preparation.shards import (
    ShardWriter,
    auto_lanes,
    packed_row_bytes,
    shard_names,
)
from batchtrain.preparation.survey import Survey
from batchtrain.preparation.values import require_squares
from batchtrain.preprocessing import FittedPreprocessor, FittedTarget, fit_preprocessor
from batchtrain.preprocessing.statistics import (
    ColumnStatistics,
    NumericStatistics,
    WideStatistics,
    merge_statistics,
    merge_tree,
)
from batchtrain.progress import Progress
from batchtrain.row_order import WINDOW_ROWS
from batchtrain.spec.data import SPLITS, NumericColumn

__all__ = ["build_prepared_data", "fit", "planned_content"]

GOLDEN_ROWS = 64
"""How many raw rows go into a bundle for its self-test."""

MANY_CATEGORIES = 1000


def build_prepared_data(
    found: Survey, draft: Draft, progress: Progress, *, engine: Engine | None = None
) -> Mapping[str, Any]:
    """Fit, transform and write everything; returns the manifest's content.

    Args:
        found: What was decided about the rows.
        draft: Where to write.
        progress: Hears how far it is.
        engine: Carries the work to the blocks; left out, this process does it.

    Raises:
        DataError: If a row cannot be used and its policy does not say what to do.
    """
    passed("prepare.surveyed")
    engine = engine or EmbeddedEngine()
    fitted, statistics = fit(found, progress, engine)
    passed("prepare.fitted")
    lanes = _training_lanes(found, fitted)
    written = _write_splits(found, fitted, {"train": lanes}, draft, progress, engine)
    _require_weights(found, written)
    passed("prepare.written")
    draft.add_json("preprocess.json", fitted.to_json())
    draft.add_json("profile.json", _profile(found, fitted, statistics, written))
    draft.add("golden.parquet", parquet_bytes(written.golden))
    draft.add_json("golden_row_ids.json", _golden_row_ids(found).tolist())
    return _content(found, fitted, statistics, lanes, written.shards)


def planned_content(found: Survey, *, engine: Engine | None = None) -> dict[str, Any]:
    """What `build_prepared_data` would return, from a pass over the rows that writes nothing."""
    fitted, statistics = fit(found, Progress(), engine or EmbeddedEngine())
    lanes = _training_lanes(found, fitted)
    shards = {
        split: shard_names(split, found.rows(split), lanes=lanes if split == "train" else 1)
        for split in SPLITS
    }
    return _content(found, fitted, statistics, lanes, shards)


def _content(
    found: Survey,
    fitted: FittedPreprocessor,
    statistics: Mapping[str, ColumnStatistics],
    lanes: int,
    shards: Mapping[str, list[str]],
) -> dict[str, Any]:
    """The content of the manifest."""
    return {
        "task": fitted.target.task,
        "num_classes": len(fitted.target.classes),
        "classes": list(fitted.target.classes),
        "class_rows": [found.class_counts["train"][name] for name in fitted.target.classes],
        "target_statistics": _target_statistics(found, statistics),
        "weight": found.data.weight,
        "num_numeric": fitted.num_numeric,
        "cardinalities": list(fitted.cardinalities),
        "lanes": lanes,
        "shards_per_lane": len(shards["train"]) // lanes,
        "window_rows": WINDOW_ROWS,
        "input_rows": found.schema.num_rows,
        "splits": {split: {"rows": found.rows(split), "shards": shards[split]} for split in SPLITS},
    }


def fit(
    found: Survey, progress: Progress, engine: Engine
) -> tuple[FittedPreprocessor, dict[str, ColumnStatistics]]:
    """Learn fill values, scales and categories from the training rows, and from no others.

    The statistics are those of the columns, and of the target of a regression.
    """
    columns = dict(found.data.columns)
    if found.task == "regression":
        columns[found.data.target] = NumericColumn(kind="numeric")
    classes: set[str] = set()

    def statistics_of(tables: Tables) -> dict[str, ColumnStatistics]:
        statistics, present = fitted_block(columns, tables)
        classes.update(present)
        return statistics

    work = partial(fit_block, columns, found.data.target, found.task)
    with closing(_over_blocks(found, work, "rows fitted", progress, engine)) as results:
        statistics = merge_tree(map(statistics_of, results), merge_statistics)
    target = FittedTarget(
        name=found.data.target,
        task=found.task,
        classes=tuple(sorted(classes, key=str.encode)),
    )
    return fit_preprocessor(found.data.columns, statistics, target), statistics


def _target_statistics(
    found: Survey, statistics: Mapping[str, ColumnStatistics]
) -> dict[str, float] | None:
    """Mean and deviation of the training rows' targets; None for a classification.

    Raises:
        DataError: See `require_squares`.
    """
    target = statistics.get(found.data.target)
    if not isinstance(target, NumericStatistics):
        return None
    if target.minimum == target.maximum:
        # The deviation of equal values is rarely exactly 0: their mean is rounded.
        return {"mean": target.minimum, "deviation": 1.0}
    require_squares(found.data.target, target.minimum, target.maximum, target.m2)
    return {"mean": target.mean, "deviation": target.deviation or 1.0}


@dataclass(frozen=True)
class _Written:
    """What the transforming pass produced."""

    shards: dict[str, list[str]]
    filled: Counter[str]
    unseen: Counter[str]
    golden: pa.Table
    weighing: frozenset[str]
    """The splits with a row that weighs more than 0."""


def _training_lanes(found: Survey, fitted: FittedPreprocessor) -> int:
    """V: what `data.lanes` says, else what the size of the training rows asks for."""
    if found.data.lanes is not None:
        return found.data.lanes
    row_bytes = packed_row_bytes(
        fitted.num_numeric,
        len(fitted.cardinalities),
        has_weight=found.data.weight is not None,
    )
    return auto_lanes(found.rows("train"), row_bytes)


def _write_splits(
    found: Survey,
    fitted: FittedPreprocessor,
    lanes: Mapping[str, int],
    draft: Draft,
    progress: Progress,
    engine: Engine,
) -> _Written:
    """Transform every block and write its rows; a split that `lanes` does not name has one."""
    writers = {
        split: ShardWriter(draft, split, found.rows(split), lanes=lanes.get(split, 1))
        for split in SPLITS
    }
    filled: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    golden: list[pa.Table] = []
    weighing: set[str] = set()
    work = partial(transform_block, fitted, found.data.weight, _golden_row_ids(found))
    with closing(_over_blocks(found, work, "rows written", progress, engine)) as results:
        for tables in results:
            block = transformed_block(fitted, tables)
            filled.update(block.filled)
            unseen.update(block.unseen)
            golden.append(block.golden)
            for split, rows in block.rows.items():
                writers[split].add(rows)
                if rows.weight is None or rows.weight.any():
                    weighing.add(split)
    not_raw = [name for name in (found.data.target, found.data.weight) if name is not None]
    return _Written(
        shards={split: writers[split].names for split in SPLITS},
        filled=filled,
        unseen=unseen,
        golden=pa.concat_tables(golden).drop_columns(not_raw),
        weighing=frozenset(weighing),
    )


def _over_blocks(
    found: Survey, work: BlockFunction, what: str, progress: Progress, engine: Engine
) -> Results:
    """Carry work to all blocks, with all columns that are used and each row's split as its mark."""
    types = {**column_types(dict(found.data.columns)), found.data.target: found.target_type}
    if found.data.weight is not None:
        types[found.data.weight] = "number"
    at_most = block_rows_of(found.data.columns)
    results = engine.map_blocks(
        found.source,
        types,
        work,
        rows_of_files=found.schema.rows_of_files,
        marks=found.split_of_row,
        at_most=at_most,
    )
    with closing(results):
        for place, tables in enumerate(results):
            yield tables
            done = min((place + 1) * min(engine.block_rows, at_most), found.schema.num_rows)
            progress.working(what, done, found.schema.num_rows)


def _require_weights(found: Survey, written: _Written) -> None:
    """Refuse splits in which no row weighs anything, where there would be no loss.

    The test split may be one: nobody trains or decides by its loss.
    """
    for split in ("train", "valid"):
        if found.rows(split) and split not in written.weighing:
            raise DataError(
                f"column of weights {found.data.weight!r}: expected a row of the {split} split "
                f"that weighs more than 0, found none among {found.rows(split)}. Use another "
                "column or another split, or remove `data.weight`"
            )


def _golden_row_ids(found: Survey) -> npt.NDArray[np.int64]:
    """A few rows spread over the test split (or valid, or train): int64, ascending."""
    split = next(name for name in ("test", "valid", "train") if found.rows(name))
    candidates = np.flatnonzero(found.split_of_row == SPLITS.index(split))
    count = min(GOLDEN_ROWS, len(candidates))
    return candidates[np.arange(count) * len(candidates) // count]


def _profile(
    found: Survey,
    fitted: FittedPreprocessor,
    statistics: Mapping[str, ColumnStatistics],
    written: _Written,
) -> dict[str, Any]:
    """What the report says of the data."""
    changes = [
        *found.changes,
        *(_filled(fitted, name, count) for name, count in sorted(written.filled.items())),
        *(
            Change("unseen", name, count, "values that no training row has; they get code 0")
            for name, count in sorted(written.unseen.items())
        ),
    ]
    return {
        "data": found.data.model_dump(mode="json"),
        "input_rows": found.schema.num_rows,
        "files": [file.name for file in found.source.files],
        "missing": {name: found.schema.missing.get(name, 0) for name in found.schema.columns},
        "ranges": {
            name: [column.minimum, column.maximum]
            for name, column in statistics.items()
            if isinstance(column, NumericStatistics | WideStatistics)
            and name in found.data.columns
            and column.minimum <= column.maximum
        },
        "class_counts": found.class_counts,
        "changes": [asdict(change) for change in changes],
        "warnings": _warnings(fitted),
    }


def _filled(fitted: FittedPreprocessor, name: str, count: int) -> Change:
    column = next(column for column in fitted.columns if column.name == name)
    value = "the unknown category" if column.fill is None else f"{column.fill!r}"
    if column.wide is not None:
        value = "zeros"
    return Change("filled", name, count, f"missing: {column.missing} -> {value}")


def _warnings(fitted: FittedPreprocessor) -> list[str]:
    return [
        f"column {column.name!r} has {len(column.categories)} categories in the training rows; "
        f"if it is an identifier, list it under data.exclude"
        for column in fitted.columns
        if len(column.categories) > MANY_CATEGORIES
    ]
