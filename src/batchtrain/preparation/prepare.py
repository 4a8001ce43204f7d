"""Stage 1: from raw rows to prepared data. Split first, fit on train, then transform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.artifacts import Draft
from batchtrain.artifacts.parquet_bytes import parquet_bytes
from batchtrain.artifacts.prepared import SplitRows
from batchtrain.points import passed
from batchtrain.preparation.resolve import Change
from batchtrain.preparation.shards import ShardWriter, auto_lanes, packed_row_bytes
from batchtrain.preparation.survey import Survey, column_types
from batchtrain.preprocessing import (
    Features,
    FittedPreprocessor,
    FittedTarget,
    encode_target,
    fit_preprocessor,
    transform,
)
from batchtrain.preprocessing.statistics import (
    ColumnStatistics,
    NumericStatistics,
    block_statistics,
    merge_statistics,
    merge_tree,
)
from batchtrain.preprocessing.transform import class_names
from batchtrain.progress import Progress
from batchtrain.row_order import WINDOW_ROWS
from batchtrain.spec.data import SPLITS
from batchtrain.tables import read_blocks

__all__ = ["build_prepared_data", "fit"]

GOLDEN_ROWS = 64
"""How many raw rows go into a bundle for its self-test."""

MANY_CATEGORIES = 1000


@dataclass(frozen=True)
class _Block:
    """One block of raw rows with what was decided about them."""

    first_row: int
    table: pa.Table
    splits: npt.NDArray[np.uint8]


def build_prepared_data(found: Survey, draft: Draft, progress: Progress) -> Mapping[str, Any]:
    """Fit, transform and write everything; returns the manifest's content.

    Raises:
        DataError: If a row cannot be used and its policy does not say what to do.
    """
    passed("prepare.surveyed")
    fitted, statistics = fit(found, progress)
    passed("prepare.fitted")
    lanes = _training_lanes(found, fitted)
    written = _write_splits(found, fitted, {"train": lanes}, draft, progress)
    passed("prepare.written")
    draft.add_json("preprocess.json", fitted.to_json())
    draft.add_json("profile.json", _profile(found, fitted, statistics, written))
    draft.add("golden.parquet", parquet_bytes(written.golden))
    draft.add_json("golden_row_ids.json", _golden_row_ids(found).tolist())
    return {
        "task": fitted.target.task,
        "num_classes": len(fitted.target.classes),
        "num_numeric": fitted.num_numeric,
        "cardinalities": list(fitted.cardinalities),
        "lanes": lanes,
        "shards_per_lane": len(written.shards["train"]) // lanes,
        "window_rows": WINDOW_ROWS,
        "input_rows": found.schema.num_rows,
        "splits": {
            split: {"rows": found.rows(split), "shards": written.shards[split]} for split in SPLITS
        },
    }


def fit(
    found: Survey, progress: Progress
) -> tuple[FittedPreprocessor, dict[str, ColumnStatistics]]:
    """Learn fill values, scales and categories from the training rows, and from no others."""
    parts: list[dict[str, ColumnStatistics]] = []
    classes: set[str] = set()
    for block in _blocks(found):
        train = block.splits == SPLITS.index("train")
        rows = block.table.filter(pa.array(train))
        row_id = np.flatnonzero(train) + block.first_row
        parts.append(block_statistics(rows, found.data.columns, row_id=row_id))
        if found.task == "classification":
            classes.update(class_names(rows[found.data.target]).unique().to_pylist())
        progress.working(
            "rows fitted", block.first_row + block.table.num_rows, len(found.split_of_row)
        )
    target = FittedTarget(
        name=found.data.target,
        task=found.task,
        classes=tuple(sorted(classes, key=str.encode)),
    )
    statistics = merge_tree(parts, merge_statistics)
    return fit_preprocessor(found.data.columns, statistics, target), statistics


@dataclass(frozen=True)
class _Written:
    """What the transforming pass produced."""

    shards: dict[str, list[str]]
    filled: Counter[str]
    unseen: Counter[str]
    golden: pa.Table


def _training_lanes(found: Survey, fitted: FittedPreprocessor) -> int:
    """V: what `data.lanes` says, else what the size of the training rows asks for."""
    if found.data.lanes is not None:
        return found.data.lanes
    row_bytes = packed_row_bytes(fitted.num_numeric, len(fitted.cardinalities))
    return auto_lanes(found.rows("train"), row_bytes)


def _write_splits(
    found: Survey,
    fitted: FittedPreprocessor,
    lanes: Mapping[str, int],
    draft: Draft,
    progress: Progress,
) -> _Written:
    """Transform every block and write its rows; a split that `lanes` does not name has one."""
    writers = {
        split: ShardWriter(draft, split, found.rows(split), lanes=lanes.get(split, 1))
        for split in SPLITS
    }
    filled: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    golden_ids = _golden_row_ids(found)
    golden: list[pa.Table] = []
    for block in _blocks(found):
        golden.append(_taken(block, golden_ids))
        used = block.splits < len(SPLITS)
        table = block.table.filter(pa.array(used))
        rows = np.flatnonzero(used) + block.first_row
        features = transform(fitted, table, row_id=rows)
        filled.update(features.filled)
        unseen.update(features.unseen)
        target = encode_target(fitted.target, table[fitted.target.name], row_id=rows)
        for place, split in enumerate(SPLITS):
            chosen = block.splits[used] == place
            writers[split].add(_split_rows(features, target, rows, chosen))
        progress.working(
            "rows written", block.first_row + len(block.splits), len(found.split_of_row)
        )
    return _Written(
        shards={split: writers[split].names for split in SPLITS},
        filled=filled,
        unseen=unseen,
        golden=pa.concat_tables(golden).drop_columns([found.data.target]),
    )


def _split_rows(
    features: Features,
    target: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.bool_],
) -> SplitRows:
    return SplitRows(
        numeric=features.numeric[chosen],
        codes=features.codes[chosen],
        target=target[chosen],
        row_id=rows[chosen],
    )


def _blocks(found: Survey) -> Iterator[_Block]:
    """The input's blocks with all columns that are used, and each row's split."""
    types = {**column_types(dict(found.data.columns)), found.data.target: found.target_type}
    first_row = 0
    for table in read_blocks(found.source, types):
        splits = found.split_of_row[first_row : first_row + table.num_rows]
        yield _Block(first_row=first_row, table=table, splits=splits)
        first_row += table.num_rows


def _golden_row_ids(found: Survey) -> npt.NDArray[np.int64]:
    """A few rows spread over the test split (or valid, or train): int64, ascending."""
    split = next(name for name in ("test", "valid", "train") if found.rows(name))
    candidates = np.flatnonzero(found.split_of_row == SPLITS.index(split))
    count = min(GOLDEN_ROWS, len(candidates))
    return candidates[np.arange(count) * len(candidates) // count]


def _taken(block: _Block, row_id: npt.NDArray[np.int64]) -> pa.Table:
    """Those of the named rows that this block holds."""
    places = row_id - block.first_row
    return block.table.take(pa.array(places[(places >= 0) & (places < block.table.num_rows)]))


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
            if isinstance(column, NumericStatistics)
        },
        "class_counts": found.class_counts,
        "changes": [asdict(change) for change in changes],
        "warnings": _warnings(fitted),
    }


def _filled(fitted: FittedPreprocessor, name: str, count: int) -> Change:
    column = next(column for column in fitted.columns if column.name == name)
    value = "the unknown category" if column.fill is None else f"{column.fill!r}"
    return Change("filled", name, count, f"missing: {column.missing} -> {value}")


def _warnings(fitted: FittedPreprocessor) -> list[str]:
    return [
        f"column {column.name!r} has {len(column.categories)} categories in the training rows; "
        f"if it is an identifier, list it under data.exclude"
        for column in fitted.columns
        if len(column.categories) > MANY_CATEGORIES
    ]
