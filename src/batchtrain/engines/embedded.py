"""The engine of small work: this process, one block after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from batchtrain.engines.engine import (
    BlockFunction,
    EngineName,
    Marks,
    Results,
    Tables,
    numbered,
)
from batchtrain.tables import BLOCK_ROWS, ColumnType, Source, read_blocks

__all__ = ["EmbeddedEngine"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class EmbeddedEngine:
    """Starts nothing and holds a few blocks at a time; see `Engine`."""

    block_rows: int = BLOCK_ROWS

    @property
    def name(self) -> EngineName:
        """Which engine this is."""
        return "embedded"

    def map_items(self, items: Sequence[Item], function: Callable[[Item], Tables]) -> Results:
        """See `Engine.map_items`."""
        yield from map(function, items)

    def map_blocks(
        self,
        source: Source,
        columns: Mapping[str, ColumnType],
        function: BlockFunction,
        *,
        rows_of_files: Sequence[int] | None = None,
        marks: Marks | None = None,
        at_most: int = BLOCK_ROWS,
    ) -> Results:
        """See `Engine.map_blocks`."""
        tables = read_blocks(source, columns, block_rows=min(self.block_rows, at_most))
        yield from map(function, numbered(tables, marks))
