"""What carries pure functions to the blocks of a table, and brings back what they gave, in order.

The functions know neither Ray nor files. They may run in another process, on another machine, and
more than once, so they are module functions, or partials of some, and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.tables import BLOCK_ROWS, ColumnType, Source

__all__ = [
    "Block",
    "BlockFunction",
    "Engine",
    "EngineName",
    "Marks",
    "Results",
    "Tables",
    "numbered",
]

EngineName: TypeAlias = Literal["embedded", "ray"]

Tables: TypeAlias = tuple[pa.Table, ...]
"""What a function gives: some tables, as many each time and each with its own schema."""

Results: TypeAlias = Generator[Tables, None, None]
"""What comes of each item or block. Close it (`contextlib.closing`) where it may be left early."""

Marks: TypeAlias = npt.NDArray[np.uint8]
"""uint8 `[N]`: something small that is known of every row and travels with it."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Block:
    """Rows [b*R, (b+1)*R) of a source.

    Attributes:
        first_row: The number of its first row.
        table: The rows, n of them, in canonical types.
        marks: uint8 `[n]`, what the caller knows of each row; empty where it gave none.
    """

    first_row: int
    table: pa.Table
    marks: Marks

    @property
    def row_id(self) -> npt.NDArray[np.int64]:
        """The number of each row: int64 `[n]`."""
        return np.arange(self.first_row, self.first_row + self.table.num_rows, dtype=np.int64)


BlockFunction: TypeAlias = Callable[[Block], Tables]


class Engine(Protocol):
    """Maps functions over items and blocks; whichever does it, the results are the same bytes.

    An error of a function, or of reading a block, is raised when its place in the order comes:
    the first one in the order of the rows, whichever was met first.
    """

    @property
    def name(self) -> EngineName:
        """Which one it is."""
        ...

    @property
    def block_rows(self) -> int:
        """R, the rows of a block; always `tables.BLOCK_ROWS`, but for tests."""
        ...

    def map_items(self, items: Sequence[Item], function: Callable[[Item], Tables]) -> Results:
        """Give what the function makes of each item, in their order."""
        ...

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
        """Give what the function makes of each block, in their order, in bounded memory.

        Args:
            source: What to read; see `tables.read_blocks`.
            columns: Name to type, in the order that is wanted.
            function: From block to tables.
            rows_of_files: The rows of each file, where a scan told them; else they are counted
                where that is needed.
            marks: uint8 `[N]`, one for each row.
            at_most: The most rows of a block; fewer than the engine's own where rows are wide.

        Raises:
            BatchtrainError: As `tables.read_blocks` and the function.
            ClusterError: If the engine itself fails.
        """
        ...


def numbered(
    tables: Iterator[pa.Table], marks: Marks | None, *, first_row: int = 0
) -> Iterator[Block]:
    """Give tables that follow one another as blocks.

    Args:
        tables: The rows.
        marks: One for each row of these tables.
        first_row: The number of the first row.
    """
    seen = 0
    for table in tables:
        some = np.empty(0, np.uint8) if marks is None else marks[seen : seen + table.num_rows]
        yield Block(first_row + seen, table, some)
        seen += table.num_rows
