"""Read columns of all rows before anything is built, and say which cells do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.engines.engine import BlockFunction, Engine, Marks, Results
from batchtrain.errors import Problem, SchemaMismatchError
from batchtrain.preparation.block_work import missing_in_block, table_of_block
from batchtrain.preprocessing.fitted import INPUT_TYPES
from batchtrain.preprocessing.fitted_wide import rows_at_once
from batchtrain.spec.data import ColumnSpec, ImageColumn, TextColumn, VectorColumn
from batchtrain.tables import BLOCK_ROWS, ColumnType, Source, TableSchema, Unsupported

__all__ = ["ColumnReader", "Looked", "block_rows_of", "column_types", "look"]


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
class ColumnReader:
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
        return self.table({name: column_type})[name]

    def table(self, types: Mapping[str, ColumnType]) -> pa.Table:
        """All values of some columns."""
        with self.blocks(types, table_of_block) as results:
            return pa.concat_tables([table for (table,) in results])


@dataclass(frozen=True)
class Looked:
    """What was found in the columns that can lose rows, or that the scan cannot vouch for.

    Attributes:
        dropped: Reason to the rows (bool `[N]`) that lack a value whose policy is `drop`.
        missing: Column to cells without a value, for columns that the scan does not read.
        problems: One for each column with a value that does not fit its declared kind.
    """

    dropped: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def look(
    columns: dict[str, ColumnSpec], reader: ColumnReader, where: Callable[[str], str]
) -> Looked:
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
        return Looked()
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
        return Looked(problems=list(_unreadable_columns(types, sizes, reader, where)))
    return Looked(
        dropped={
            f"column {name!r} is missing (its policy is drop)": rows[name]
            for name in counted
            if columns[name].missing == "drop"
        },
        missing={name: int(np.count_nonzero(rows[name])) for name in unread},
    )


def _is_doubtful(asked: ColumnType, found: str) -> bool:
    """Whether a value may not fit: text for a number, a fraction as a category, flags of others."""
    if asked == "string":
        return found == "number"
    return found == "string" or (asked == "boolean" and found != "boolean")


def _unreadable_columns(
    types: dict[str, ColumnType],
    sizes: Mapping[str, int],
    reader: ColumnReader,
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
