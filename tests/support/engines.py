"""Work for engines, light to import in a task, and an engine that does everything in disorder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchtrain.engines.engine import Block, BlockFunction, EngineName, Marks, Tables, numbered
from batchtrain.engines.parcels import opened_in_order, packed
from batchtrain.tables import ColumnType, Source, num_files, plan_units, read_unit, scan

__all__ = ["ScrambledEngine", "fails_at", "table_and_marks"]


def table_and_marks(block: Block) -> Tables:
    """The block, and what stands beside it."""
    beside = {"first": [block.first_row], "marks": [block.marks.tobytes()]}
    return block.table, pa.table(beside)


def fails_at(row: int, block: Block) -> Tables:
    """An error that is none of ours, in the block of one row."""
    if row in block.row_id:
        raise ZeroDivisionError("by a test")
    return (block.table,)


@dataclass(frozen=True)
class ScrambledEngine:
    """Reads as Ray's tasks do, in units of any size and in any order, without Ray.

    Attributes:
        block_rows: R.
        unit_blocks: The blocks of a unit.
        seed: Of the order in which units are done.
        rows_of_files: Told instead of what a caller says; for a caller that says nothing.
    """

    block_rows: int
    unit_blocks: int = 2
    seed: int = 0
    rows_of_files: tuple[int, ...] | None = None
    enters: Literal["as the format allows", "never"] = "as the format allows"

    @property
    def name(self) -> EngineName:
        """It stands for Ray."""
        return "ray"

    def map_items(
        self, items: Sequence[Any], function: Callable[[Any], Tables]
    ) -> Iterator[Tables]:
        """See `Engine.map_items`."""
        work = [
            (place, (lambda place=place: packed(place, map(function, items[place : place + 1]))))
            for place in range(len(items))
        ]
        yield from opened_in_order(self._done(work), len(items))

    def map_blocks(
        self,
        source: Source,
        columns: Mapping[str, ColumnType],
        function: BlockFunction,
        *,
        rows_of_files: Sequence[int] | None = None,
        marks: Marks | None = None,
    ) -> Iterator[Tables]:
        """See `Engine.map_blocks`."""
        rows = self.rows_of_files or rows_of_files or scan(source).rows_of_files
        assert len(rows) == num_files(source)
        units = plan_units(
            rows,
            block_rows=self.block_rows,
            unit_blocks=self.unit_blocks,
            enters_files=source.kind == "parquet" and self.enters != "never",
        )

        def work_of(unit: Any) -> Callable[[], Iterator[pa.Table]]:
            own = None if marks is None else marks[unit.first_row : unit.stop_row]

            def work() -> Iterator[pa.Table]:
                tables = read_unit(source, columns, unit, block_rows=self.block_rows)
                blocks = numbered(tables, own, first_row=unit.first_row)
                return packed(unit.first_row // self.block_rows, map(function, blocks))

            return work

        work = [(place, work_of(unit)) for place, unit in enumerate(units)]
        count = -(-sum(rows) // self.block_rows)
        yield from opened_in_order(self._done(work), count)

    def _done(
        self, work: Sequence[tuple[int, Callable[[], Iterator[pa.Table]]]]
    ) -> Iterator[pa.Table]:
        """Do all work in a random order, some of it twice; give the parcels in the right order."""
        order = [work[place] for place in np.random.default_rng(self.seed).permutation(len(work))]
        parcels: dict[int, list[pa.Table]] = {}
        for place, each in [*order, *order[::3]]:
            parcels[place] = list(each())
        for place in sorted(parcels):
            # Ray puts small blocks together as it likes.
            yield from [pa.concat_tables(parcels[place])] if parcels[place] else []
