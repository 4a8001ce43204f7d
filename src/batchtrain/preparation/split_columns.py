"""Splits that a column decides: by its values, by time, or group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.engines.engine import Block, Tables
from batchtrain.errors import Problem, SpecError
from batchtrain.preparation.group_words import group_words
from batchtrain.preparation.splits import group_splits, time_splits
from batchtrain.spec.data import SPLITS, ColumnSplit, GroupSplit, TimeSplit
from batchtrain.tables import ColumnType, Unsupported

__all__ = [
    "SplitByColumn",
    "column_type_read",
    "split_column_problem",
    "splits_by_column",
    "splits_in_block",
]

SplitByColumn: TypeAlias = ColumnSplit | GroupSplit | TimeSplit

NO_SPLIT = 254
"""What stands for the split of a row until its value is found to be listed nowhere."""

MAX_VALUES = 1000
"""So many values that cannot be used are remembered; a few of them are shown."""
SHOWN_VALUES = 8

TEMPORAL = ("timestamp", "date32", "date64")


def column_type_read(rule: SplitByColumn, found: ColumnType | Unsupported) -> ColumnType:
    """The type in which the column of a split is read."""
    if not isinstance(rule, TimeSplit):
        return "string"
    return found if found == "integer" or found == "number" else "time"


def split_column_problem(
    rule: SplitByColumn, found: ColumnType | Unsupported, where: Callable[[str], str]
) -> Problem | None:
    """What kind of column cannot decide a split; single bad values are found later."""
    key = "data.split.column"
    if isinstance(rule, TimeSplit):
        is_bad = found == "boolean" or (
            isinstance(found, Unsupported) and not found.arrow_type.startswith(TEMPORAL)
        )
        wanted = "numbers, dates or times"
    else:
        is_bad = found == "number" or isinstance(found, Unsupported)
        wanted = "names, whole numbers, or true and false"
    if not is_bad:
        return None
    held = {"boolean": "true and false", "number": "numbers with fractions"}.get(str(found), found)
    return Problem(
        where(key),
        key,
        f"expected {wanted} in the column {rule.column!r}, found {held}",
        "Name another column, or convert it in the table",
    )


def splits_in_block(rule: SplitByColumn, seed: int, block: Block) -> Tables:
    """What the rows of a block say of their splits; its marks are the rows that are used.

    Returns:
        `key`, what the split of each used row follows from, in the order of the rows; and the
        values that cannot be used, with how many rows have them and the first of these.
    """
    used = block.marks.astype(np.bool_)
    values = block.table[rule.column].combine_chunks().filter(pa.array(used))
    row_id = block.row_id[used]
    if isinstance(rule, TimeSplit):
        keys = values if pa.types.is_floating(values.type) else values.cast(pa.int64())
        bad = np.asarray(pc.is_null(values))
    elif isinstance(rule, GroupSplit):
        groups = values.dictionary_encode()
        words = group_words(groups.dictionary.to_pylist(), seed=seed)
        # Where a group is missing any word will do: the row ends in an error.
        places = np.asarray(groups.indices.fill_null(0))
        keys = words[places] if len(words) else np.zeros(len(values), np.uint64)
        bad = np.asarray(pc.is_null(values))
    else:
        keys = _listed(rule, values)
        bad = keys == NO_SPLIT
    return pa.table({"key": keys}), _unusable(values, row_id, bad)


def _listed(rule: ColumnSplit, values: pa.Array) -> npt.NDArray[np.uint8]:
    """The split of each value, by its place in `SPLITS`, or `NO_SPLIT`."""
    of_value = {
        value: place for place, split in enumerate(SPLITS) for value in rule.values_of(split)
    }
    places = pc.index_in(values, value_set=pa.array(list(of_value), pa.string()))
    splits = np.array([*of_value.values(), NO_SPLIT], dtype=np.uint8)
    found: npt.NDArray[np.uint8] = splits[np.asarray(places.fill_null(len(of_value)))]
    return found


def _unusable(
    values: pa.Array, row_id: npt.NDArray[np.int64], bad: npt.NDArray[np.bool_]
) -> pa.Table:
    names = ["value", "rows", "first_row"]
    if not bad.any():
        empty = [pa.array([], each) for each in (pa.string(), pa.int64(), pa.int64())]
        return pa.table(empty, names=names)
    rows = pa.table({"value": values.filter(pa.array(bad)).cast(pa.string()), "row": row_id[bad]})
    found = rows.group_by("value", use_threads=False).aggregate([("row", "count"), ("row", "min")])
    return found.select(["value", "row_count", "row_min"]).rename_columns(names)


@dataclass
class _Unusable:
    """Rows whose value cannot be used."""

    rows: int
    first_row: int


def splits_by_column(
    rule: SplitByColumn,
    results: Iterable[Tables],
    num_rows: int,
    where: Callable[[str], str],
) -> npt.NDArray[np.uint8]:
    """Name the split of every used row, by its place in `SPLITS`.

    Args:
        rule: The rule of the spec.
        results: What `splits_in_block` gave, in the order of the rows.
        num_rows: N, the rows that are used.
        where: Dotted key to `file:line:column`, for messages.

    Returns:
        uint8 `[N]`.

    Raises:
        SpecError: If a row has no value, or one that is listed for no split.
    """
    parts: list[npt.NDArray[np.generic]] = []
    unusable: dict[str | None, _Unusable] = {}
    for keys, bad in results:
        parts.append(keys["key"].to_numpy())
        for row in bad.to_pylist():
            known = unusable.get(row["value"])
            if known is not None:
                known.rows += row["rows"]
            elif len(unusable) < MAX_VALUES:
                unusable[row["value"]] = _Unusable(row["rows"], row["first_row"])
    if unusable:
        raise SpecError([_problem(rule, unusable, where)])
    keys = np.concatenate(parts)
    if len(keys) != num_rows:
        raise ValueError(f"expected {num_rows} keys, found {len(keys)}")
    if isinstance(rule, TimeSplit):
        return time_splits(keys, rule.fractions)
    if isinstance(rule, GroupSplit):
        return group_splits(keys, rule.fractions)
    return keys


def _problem(
    rule: SplitByColumn, unusable: dict[str | None, _Unusable], where: Callable[[str], str]
) -> Problem:
    key = "data.split.column"
    shown = [
        f"{'no value' if value is None else repr(value)} ({each.rows} "
        f"row{'s' if each.rows > 1 else ''}, the first has row_id {each.first_row})"
        for value, each in list(unusable.items())[:SHOWN_VALUES]
    ]
    more = len(unusable) - len(shown)
    if more:
        shown.append(f"{more} more values")
    advice = "Give each row a value, or use a table without these rows"
    wanted = "a value in every row"
    if isinstance(rule, ColumnSplit):
        key = "data.split"
        listed = {split: rule.values_of(split) for split in SPLITS}
        wanted = "one of " + "; ".join(
            f"{', '.join(map(repr, values))} for {split}"
            for split, values in listed.items()
            if values
        )
        advice = "List each value under `train`, `valid` or `test` of `data.split`"
    return Problem(
        where(key),
        key,
        f"expected {wanted} in the column {rule.column!r}, found {', '.join(shown)}",
        advice,
    )
