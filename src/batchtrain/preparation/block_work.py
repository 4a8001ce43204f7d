"""What is done to one block of raw rows: pure functions, for an engine to carry to the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.engines.engine import Block, Tables
from batchtrain.preprocessing import (
    FittedPreprocessor,
    FittedTarget,
    encode_target,
    row_weights,
    transform,
)
from batchtrain.preprocessing.statistics import ColumnStatistics, block_statistics
from batchtrain.preprocessing.statistics_tables import (
    statistics_from_tables,
    statistics_to_tables,
)
from batchtrain.preprocessing.transform import class_names, missing_rows
from batchtrain.preprocessing.vectors import check_sizes
from batchtrain.spec.data import SPLITS, ColumnSpec
from batchtrain.spec.task import Task

__all__ = [
    "TransformedBlock",
    "fit_block",
    "fitted_block",
    "missing_in_block",
    "table_of_block",
    "transform_block",
    "transformed_block",
]


def table_of_block(block: Block) -> Tables:
    """The rows as they are."""
    return (block.table,)


def missing_in_block(names: Sequence[str], sizes: Mapping[str, int], block: Block) -> Tables:
    """Which values of some columns are missing: flags `[n]` under the columns' names.

    Args:
        names: The columns.
        sizes: Column to the length that its lists must have.
        block: The rows.

    Raises:
        SchemaMismatchError: If a list has another length.
    """
    for name, size in sizes.items():
        check_sizes(block.table[name], size, name=name, row_id=block.row_id)
    return (pa.table({name: missing_rows(block.table[name]) for name in names}),)


def fit_block(columns: Mapping[str, ColumnSpec], target: str, task: Task, block: Block) -> Tables:
    """Statistics of the block's training rows; its marks are the rows' splits.

    The target of a regression is among `columns`, as a number.
    """
    train = block.marks == SPLITS.index("train")
    rows = block.table.filter(pa.array(train))
    if task == "regression":
        # Its values are checked as the target's, before they are taken as a column's.
        encode_target(FittedTarget(target, task), rows[target], row_id=block.row_id[train])
    statistics = block_statistics(rows, columns, row_id=block.row_id[train])
    classes = pa.array([], pa.string())
    if task == "classification":
        classes = class_names(rows[target]).unique()
    return (*statistics_to_tables(statistics), pa.table({"class": classes}))


def fitted_block(
    columns: Mapping[str, ColumnSpec], tables: Tables
) -> tuple[dict[str, ColumnStatistics], list[str]]:
    """Read what `fit_block` gave: statistics by column, and the classes that occur."""
    numeric, categories, wide, classes = tables
    statistics = statistics_from_tables(numeric, categories, wide, columns)
    return statistics, classes["class"].to_pylist()


@dataclass(frozen=True)
class TransformedBlock:
    """What became of a block.

    Attributes:
        rows: Split to its rows.
        filled: Column to the number of missing values that were replaced.
        unseen: Column to the number of values that the training rows do not have.
        golden: Those of the golden rows that the block holds, raw.
    """

    rows: dict[str, SplitRows]
    filled: dict[str, int]
    unseen: dict[str, int]
    golden: pa.Table


def transform_block(
    fitted: FittedPreprocessor,
    weight: str | None,
    golden_row_ids: npt.NDArray[np.int64],
    block: Block,
) -> Tables:
    """Transform the block's rows; its marks are their splits, and a row of none is left out.

    Args:
        fitted: What the training rows taught.
        weight: The column of the rows' weights; None where they have none.
        golden_row_ids: int64, the rows that are kept raw too.
        block: The rows.
    """
    used = block.marks < len(SPLITS)
    table, row_id = block.table.filter(pa.array(used)), block.row_id[used]
    features = transform(fitted, table, row_id=row_id)
    target = encode_target(fitted.target, table[fitted.target.name], row_id=row_id)
    weights = None if weight is None else row_weights(weight, table[weight], row_id=row_id)
    every = SplitRows(features.numeric, features.codes, target, row_id, weights)
    split_of_row = block.marks[used]
    splits = (_packed(every[split_of_row == place]) for place in range(len(SPLITS)))
    places = golden_row_ids - block.first_row
    held = places[(places >= 0) & (places < block.table.num_rows)]
    return (
        *splits,
        _counts(features.filled),
        _counts(features.unseen),
        block.table.take(pa.array(held)),
    )


def transformed_block(fitted: FittedPreprocessor, tables: Tables) -> TransformedBlock:
    """Read what `transform_block` gave."""
    *splits, filled, unseen, golden = tables
    widths = (fitted.num_numeric, len(fitted.cardinalities))
    return TransformedBlock(
        rows={split: _unpacked(splits[place], *widths) for place, split in enumerate(SPLITS)},
        filled=_read_counts(filled),
        unseen=_read_counts(unseen),
        golden=golden,
    )


def _packed(rows: SplitRows) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name, matrix in (("numeric", rows.numeric), ("codes", rows.codes)):
        if matrix.shape[1]:
            flat = pa.array(matrix.reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    if rows.weight is not None:
        columns["weight"] = pa.array(rows.weight)
    return pa.table({**columns, "target": rows.target, "row_id": rows.row_id})


def _unpacked(table: pa.Table, num_numeric: int, num_codes: int) -> SplitRows:
    row_id = table["row_id"].to_numpy()

    def matrix(name: str, width: int, dtype: type[Any]) -> npt.NDArray[Any]:
        if not width:
            return np.empty((len(row_id), 0), dtype)
        flat = table[name].combine_chunks().flatten().to_numpy()
        return np.asarray(flat, dtype).reshape(-1, width)

    return SplitRows(
        numeric=matrix("numeric", num_numeric, np.float32),
        codes=matrix("codes", num_codes, np.int64),
        target=table["target"].to_numpy(),
        row_id=row_id,
        weight=table["weight"].to_numpy() if "weight" in table.column_names else None,
    )


def _counts(counts: Mapping[str, int]) -> pa.Table:
    return pa.table(
        {
            "column": pa.array(list(counts), pa.string()),
            "count": pa.array(list(counts.values()), pa.int64()),
        }
    )


def _read_counts(table: pa.Table) -> dict[str, int]:
    return dict(zip(table["column"].to_pylist(), table["count"].to_pylist(), strict=True))
