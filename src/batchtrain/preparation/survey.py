"""Look at the whole input before anything is built: columns, task, and the split of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import BlockFunction, Engine, Marks, Results
from batchtrain.errors import DataError, Problem, SchemaMismatchError, SpecError
from batchtrain.preparation.block_work import missing_in_block, table_of_block
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
from batchtrain.preprocessing.fitted import INPUT_TYPES
from batchtrain.preprocessing.fitted_wide import rows_at_once
from batchtrain.preprocessing.transform import class_names, missing_rows
from batchtrain.spec.data import (
    SPLITS,
    ColumnSpec,
    ColumnSplit,
    DataSpec,
    FilesSplit,
    GroupSplit,
    ImageColumn,
    SourceSplit,
    SplitSpec,
    TextColumn,
    TimeSplit,
    VectorColumn,
    may_have_rows,
)
from batchtrain.spec.task import Task
from batchtrain.tables import (
    BLOCK_ROWS,
    ColumnType,
    Source,
    TableSchema,
    Unsupported,
    merge_scans,
    scan_item,
    scan_items,
)

__all__ = ["DROPPED", "Survey", "block_rows_of", "column_types", "survey"]

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
) -> Survey:
    """Scan all rows and decide on columns, task and splits.

    Args:
        data: The `data` section as it was written.
        source: The input.
        seed: The run's seed.
        where: Dotted key to `file:line:column`, for messages.
        engine: Carries the work to the rows; left out, this process does it.

    Raises:
        SpecError: If the section does not suit the table; it lists every problem.
        DataError: If a file cannot be read, or no row is left for a split that needs one.
    """
    engine = engine or EmbeddedEngine()
    items = scan_items(source)
    with closing(engine.map_items(items, partial(scan_item, source))) as parts:
        schema = merge_scans(source, items, parts)
    reader = _Reader(source, schema, engine)
    resolved = resolve_columns(data, schema, where)
    if isinstance(resolved, list):
        raise SpecError(resolved)
    target_type, target = _read_target(data, reader, where)
    decided = resolve_task(data, _facts(target_type, target), where, own_splits=source.splits)
    looked = _look(resolved.columns, reader, where)
    unreadable, dropped = looked.problems, looked.dropped
    schema = replace(schema, missing={**schema.missing, **looked.missing})
    if isinstance(decided, list) or unreadable:
        raise SpecError([*(decided if isinstance(decided, list) else []), *unreadable])
    task, rule = decided
    if task == "classification":
        target = _class_names(data, target_type, target)
    elif target_type == "integer":
        target_type, target = "number", reader.column(data.target, "number")

    reasons = {f"target {data.target!r} is missing": missing_rows(target), **dropped}
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
    return found


def column_types(columns: Mapping[str, ColumnSpec]) -> dict[str, ColumnType]:
    """The canonical type in which each declared column is read."""
    return {name: INPUT_TYPES[spec.kind] for name, spec in columns.items()}


def block_rows_of(columns: Mapping[str, ColumnSpec]) -> int:
    """How many rows of these columns a block has at most."""
    wide = (TextColumn, VectorColumn, ImageColumn)
    return rows_at_once(
        sum(spec.num_features for spec in columns.values() if isinstance(spec, wide))
    )


@dataclass(frozen=True)
class _Reader:
    """Reads columns of all rows, by an engine."""

    source: Source
    schema: TableSchema
    engine: Engine

    def blocks(
        self,
        types: Mapping[str, ColumnType],
        function: BlockFunction,
        marks: Marks | None = None,
        at_most: int = BLOCK_ROWS,
    ) -> closing[Results]:
        """What a function makes of each block of some columns."""
        return closing(
            self.engine.map_blocks(
                self.source,
                types,
                function,
                rows_of_files=self.schema.rows_of_files,
                marks=marks,
                at_most=at_most,
            )
        )

    def column(self, name: str, column_type: ColumnType) -> pa.ChunkedArray:
        """All values of one column."""
        with self.blocks({name: column_type}, table_of_block) as results:
            return pa.concat_tables([table for (table,) in results])[name]


def _read_target(
    data: DataSpec, reader: _Reader, where: Callable[[str], str]
) -> tuple[ColumnType, pa.ChunkedArray]:
    """The whole target column in its own type; one column of N values fits in memory."""
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
    return found, reader.column(data.target, found)


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


@dataclass(frozen=True)
class _Looked:
    """What was found in the columns that can lose rows, or that the scan cannot vouch for.

    Attributes:
        dropped: Reason to the rows (bool `[N]`) that lack a value whose policy is `drop`.
        missing: Column to cells without a value, for columns that the scan does not read.
        problems: One for each column with a value that does not fit its declared kind.
    """

    dropped: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _look(columns: dict[str, ColumnSpec], reader: _Reader, where: Callable[[str], str]) -> _Looked:
    """Read the columns that can lose rows, or whose declared kind the scan cannot vouch for."""
    unread = {name for name in columns if isinstance(reader.schema.columns[name], Unsupported)}
    counted = [name for name, spec in columns.items() if spec.missing == "drop" or name in unread]
    rows = {name: np.zeros(reader.schema.num_rows, dtype=np.bool_) for name in counted}
    types = {
        name: asked
        for name, asked in column_types(columns).items()
        if name in counted or _is_doubtful(asked, str(reader.schema.columns[name]))
    }
    if not types:
        return _Looked()
    sizes = {name: spec.size for name, spec in columns.items() if isinstance(spec, VectorColumn)}
    try:
        first_row = 0
        work = partial(missing_in_block, counted, sizes)
        with reader.blocks(types, work, at_most=block_rows_of(columns)) as results:
            for (flags,) in results:
                for name in counted:
                    rows[name][first_row : first_row + flags.num_rows] = flags[name].to_numpy()
                first_row += flags.num_rows
    except SchemaMismatchError:
        return _Looked(problems=list(_unreadable_columns(types, sizes, reader, where)))
    return _Looked(
        dropped={
            f"column {name!r} is missing (its policy is drop)": rows[name]
            for name in counted
            if columns[name].missing == "drop"
        },
        missing={name: int(np.count_nonzero(rows[name])) for name in unread},
    )


def _is_doubtful(asked: ColumnType, found: str) -> bool:
    """Whether a value may not fit: text for a number, or anything else for true and false."""
    return (found == "string" and asked != "string") or (asked == "boolean" and found != "boolean")


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


def _unreadable_columns(
    types: dict[str, ColumnType],
    sizes: Mapping[str, int],
    reader: _Reader,
    where: Callable[[str], str],
) -> Iterator[Problem]:
    """One problem for each column that holds a value of another type, or a list of another size."""
    for name, column_type in types.items():
        own = {name: sizes[name]} if name in sizes else {}
        try:
            with reader.blocks({name: column_type}, partial(missing_in_block, (), own)) as results:
                for _nothing in results:
                    pass
        except SchemaMismatchError as error:
            key = f"data.columns.{name}"
            yield Problem(where(key), key, str(error))


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
    reader: _Reader,
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
