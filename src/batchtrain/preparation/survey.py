"""Look at the whole input before anything is built: columns, task, and the split of every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine
from batchtrain.errors import DataError, Problem, SchemaMismatchError, SpecError
from batchtrain.preparation.look import ColumnReader, look
from batchtrain.preparation.resolve import (
    Change,
    TargetFacts,
    resolve_columns,
    resolve_task,
)
from batchtrain.preparation.split_columns import (
    column_type_read,
    splits_by_column,
    splits_in_block,
)
from batchtrain.preparation.splits import assign_splits, file_splits
from batchtrain.preparation.values import refuse_values
from batchtrain.preprocessing.transform import class_names, missing_rows
from batchtrain.spec.data import (
    SPLITS,
    ColumnSplit,
    DataSpec,
    FilesSplit,
    GroupSplit,
    SourceSplit,
    SplitSpec,
    TimeSplit,
    may_have_rows,
)
from batchtrain.spec.task import Task
from batchtrain.tables import (
    ColumnType,
    Source,
    TableSchema,
    Unsupported,
    merge_scans,
    scan_item,
    scan_items,
)

__all__ = ["DROPPED", "Survey", "survey"]

DROPPED = 255
"""The split number of a row that is in no split."""


@dataclass(frozen=True)
class Survey:
    """All that is decided about the rows before they are transformed.

    Attributes:
        source: The input.
        schema: Its columns and their types.
        data: The `data` section with every column, the task and the split filled in.
        target_type: The canonical type in which the target is read.
        split_of_row: uint8 `[N]`, the place in `SPLITS`, or `DROPPED`.
        class_counts: Split to class to rows; empty for regression.
        changes: What was excluded and dropped.
    """

    source: Source
    schema: TableSchema
    data: DataSpec
    target_type: ColumnType
    split_of_row: npt.NDArray[np.uint8]
    class_counts: dict[str, dict[str, int]]
    changes: tuple[Change, ...]

    @property
    def task(self) -> Task:
        """The task that was decided."""
        return "regression" if self.data.task == "regression" else "classification"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the training rows, by class code; none for regression."""
        return tuple(name for name, rows in self.class_counts.get("train", {}).items() if rows)

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return int(np.count_nonzero(self.split_of_row == SPLITS.index(split)))


def survey(
    data: DataSpec,
    source: Source,
    *,
    seed: int,
    where: Callable[[str], str],
    engine: Engine | None = None,
    leave_out_unread: bool = False,
) -> Survey:
    """Scan all rows and decide on columns, task and splits.

    Args:
        data: The `data` section as it was written.
        source: The input.
        seed: The run's seed.
        where: Dotted key to `file:line:column`, for messages.
        engine: Carries the work to the rows; left out, this process does it.
        leave_out_unread: Whether to exclude the columns that no kind reads, not to refuse them.

    Raises:
        SpecError: If the section does not suit the table; it lists every problem.
        DataError: If a file cannot be read, or no row is left for a split that needs one.
    """
    engine = engine or EmbeddedEngine()
    schema = _scanned(source, engine)
    if leave_out_unread:
        data = data.model_copy(update={"exclude": (*data.exclude, *_unread(data, schema))})
    reader = ColumnReader(source, schema, engine)
    resolved = resolve_columns(data, schema, where, is_text=source.kind in {"csv", "jsonl"})
    if isinstance(resolved, list):
        raise SpecError(resolved)
    target_type, target, weights = _read_target(data, reader, where)
    decided = resolve_task(data, _facts(target_type, target), where, own_splits=source.splits)
    looked = look(resolved.columns, reader, where)
    schema = replace(schema, missing={**schema.missing, **looked.missing})
    if isinstance(decided, list) or looked.problems:
        raise SpecError([*(decided if isinstance(decided, list) else []), *looked.problems])
    task, rule = decided
    if task == "classification":
        target = _class_names(data, target_type, target)
    elif target_type == "integer":
        target_type, target = "number", reader.column(data.target, "number")
    reasons = {f"target {data.target!r} is missing": missing_rows(target), **looked.dropped}
    kept, changes = _kept_rows(reasons, schema.num_rows)
    labels, classes = _labels(target, kept, task)
    split_of_row = np.full(schema.num_rows, DROPPED, dtype=np.uint8)
    split_of_row[kept] = _splits_of_kept(rule, reader, kept, labels, seed, where)
    found = Survey(
        source=source,
        schema=schema,
        data=data.model_copy(update={"task": task, "columns": resolved.columns, "split": rule}),
        target_type=target_type,
        split_of_row=split_of_row,
        class_counts=_class_counts(labels, classes, split_of_row[kept]),
        changes=(*resolved.changes, *changes),
    )
    _require_rows(found)
    refuse_values(found.data, found.split_of_row, target, weights)
    return found


def _scanned(source: Source, engine: Engine) -> TableSchema:
    """The columns of all files, and what is in them."""
    items = scan_items(source)
    with closing(engine.map_items(items, partial(scan_item, source))) as parts:
        return merge_scans(source, items, parts)


def _unread(data: DataSpec, schema: TableSchema) -> list[str]:
    """The columns that no kind reads by itself, and that nobody has said anything about."""
    known = {data.target, data.weight, *data.columns, *data.exclude}
    return [
        name
        for name, found in schema.columns.items()
        if isinstance(found, Unsupported) and name not in known
    ]


def _read_target(
    data: DataSpec, reader: ColumnReader, where: Callable[[str], str]
) -> tuple[ColumnType, pa.ChunkedArray, pa.ChunkedArray | None]:
    """The whole target column in its own type, and the weights; such columns fit in memory."""
    found = reader.schema.columns[data.target]
    if data.task == "regression" and found == "integer":
        found = "number"
    if isinstance(found, Unsupported):
        raise SpecError(
            [
                Problem(
                    where("data.target"),
                    "data.target",
                    f"column {data.target!r} holds {found}, which cannot be predicted",
                    "Choose a column of numbers, names, or true and false",
                )
            ]
        )
    weight: dict[str, ColumnType] = {} if data.weight is None else {data.weight: "number"}
    table = reader.table({data.target: found, **weight})
    return found, table[data.target], None if data.weight is None else table[data.weight]


def _class_names(data: DataSpec, found: ColumnType, target: pa.ChunkedArray) -> pa.ChunkedArray:
    """The target as class names: text of whole numbers, names, `true` and `false`."""
    if found == "number":
        raise DataError(
            f"target {data.target!r}: expected classes (whole numbers, names, or true and false) "
            "for classification, found numbers with fractions. "
            "Set `data.task: regression`, or write the classes as whole numbers or names"
        )
    return class_names(target)


def _facts(target_type: ColumnType, target: pa.ChunkedArray) -> TargetFacts:
    distinct = len(pc.unique(target)) - int(target.null_count > 0)
    return TargetFacts(type=target_type, distinct=distinct)


def _kept_rows(
    reasons: Mapping[str, npt.NDArray[np.bool_]], num_rows: int
) -> tuple[npt.NDArray[np.bool_], list[Change]]:
    """Which rows are used, bool `[N]`; a row that is dropped counts under its first reason."""
    kept = np.ones(num_rows, dtype=np.bool_)
    changes = []
    for reason, rows in reasons.items():
        newly = int(np.count_nonzero(kept & rows))
        kept &= ~rows
        if newly:
            changes.append(Change("dropped", "rows", newly, reason))
    return kept, changes


def _labels(
    target: pa.ChunkedArray, kept: npt.NDArray[np.bool_], task: str
) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """The class code of each kept row `[n]` and the class names in UTF-8 order."""
    if task == "regression":
        return None, []
    present = target.filter(pa.array(kept))
    classes = sorted(pc.unique(present).to_pylist(), key=str.encode)
    codes = pc.index_in(present, value_set=pa.array(classes, type=pa.string()))
    return np.asarray(codes, dtype=np.int64), classes


def _splits_of_kept(
    rule: SplitSpec,
    reader: ColumnReader,
    kept: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64] | None,
    seed: int,
    where: Callable[[str], str],
) -> npt.NDArray[np.uint8]:
    """The split of each row that is used: uint8 `[n]`."""
    num_rows = int(kept.sum())
    if isinstance(rule, FilesSplit | SourceSplit):
        return file_splits(reader.source.splits, reader.schema.rows_of_files)[kept]
    if not isinstance(rule, ColumnSplit | GroupSplit | TimeSplit):
        return assign_splits(num_rows, labels, rule, seed=seed)
    own = rule.seed if isinstance(rule, GroupSplit) else None
    work = partial(splits_in_block, rule, seed if own is None else own)
    types = {rule.column: column_type_read(rule, reader.schema.columns[rule.column])}
    try:
        with reader.blocks(types, work, kept.astype(np.uint8)) as results:
            return splits_by_column(rule, results, num_rows, where)
    except SchemaMismatchError as error:
        key = "data.split.column"
        raise SpecError([Problem(where(key), key, str(error))]) from error


def _class_counts(
    labels: npt.NDArray[np.int64] | None, classes: list[str], splits: npt.NDArray[np.uint8]
) -> dict[str, dict[str, int]]:
    if labels is None:
        return {}
    return {
        split: dict(
            zip(
                classes,
                np.bincount(labels[splits == place], minlength=len(classes)).tolist(),
                strict=True,
            )
        )
        for place, split in enumerate(SPLITS)
    }


def _is_wanted(rule: SplitSpec, source: Source, split: str) -> bool:
    """Whether a split must have a row."""
    if isinstance(rule, FilesSplit | SourceSplit):
        return split in source.splits
    return may_have_rows(rule, split)


def _require_rows(found: Survey) -> None:
    """Refuse a split that was given a share and got no row."""
    rule = found.data.split
    if rule is None:
        return
    for split in SPLITS:
        if not _is_wanted(rule, found.source, split) or found.rows(split):
            continue
        kept = int(np.count_nonzero(found.split_of_row != DROPPED))
        share = advice = ""
        if not isinstance(rule, ColumnSplit | FilesSplit | SourceSplit):
            share = f" for its share of {rule.fractions.of(split):g}"
            advice = f", or set `data.split.fractions.{split}: 0`" if split != "train" else ""
        elif isinstance(rule, ColumnSplit):
            advice = ", or list the values of the splits that there are under `data.split`"
        raise DataError(
            f"the {split} split: expected at least one row{share}, found none among {kept} "
            f"usable rows of {found.schema.num_rows}. Use more rows, or drop fewer{advice}"
        )
    if found.task == "classification" and len(found.classes) < 2:
        raise DataError(
            f"target {found.data.target!r}: expected at least two classes among the training rows, "
            f"found {list(found.classes)}. Use a stratified split, more rows, or drop fewer"
        )
