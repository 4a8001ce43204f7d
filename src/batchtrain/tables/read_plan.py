"""Which process reads which rows: runs of whole blocks, as a pure function of the files' rows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["FileRows", "ReadUnit", "plan_units"]


@dataclass(frozen=True)
class FileRows:
    """Where the rows of one file stand among all rows.

    Attributes:
        place: The file's place in the source.
        first_row: The number of its first row in the source.
        num_rows: How many it has.
    """

    place: int
    first_row: int
    num_rows: int

    @property
    def stop_row(self) -> int:
        """The number of the row after its last."""
        return self.first_row + self.num_rows


@dataclass(frozen=True)
class ReadUnit:
    """Rows that one process reads in one go: whole blocks of the source.

    Attributes:
        first_row: The first of them; blocks start at multiples of their size.
        stop_row: The row after the last.
        files: The files that hold them. The first may begin with rows of the unit before, and the
            last may go on with rows of the unit after. A file without rows is in one unit too,
            since it must be looked at.
        is_last: Whether no unit follows; it reads its files to their ends.
    """

    first_row: int
    stop_row: int
    files: tuple[FileRows, ...]
    is_last: bool


def plan_units(
    rows_of_files: Sequence[int], *, block_rows: int, unit_blocks: int, enters_files: bool
) -> list[ReadUnit]:
    """Deal all blocks of a source to units; the units in their order are the rows in theirs.

    Args:
        rows_of_files: The rows of each file, in the order of the source.
        block_rows: R; block b is rows [b*R, (b+1)*R).
        unit_blocks: The blocks of a unit; the last has fewer, and where files cannot be entered
            one has as many more as its last file asks for.
        enters_files: Whether reading can begin in the middle of a file. Where it cannot, a unit
            begins with the first block that begins in a file, and what is read twice is less than
            one block at its head and one at its end.

    Returns:
        At least one unit.
    """
    ends = list(accumulate(rows_of_files))
    starts = [0, *ends][:-1]
    total = ends[-1] if ends else 0
    step = block_rows * unit_blocks
    edges = [0]
    blocks: Iterable[int] = range(0, total, step)
    if not enters_files:
        blocks = (-(-start // block_rows) * block_rows for start in starts)
    for edge in blocks:
        if edge - edges[-1] >= step and edge < total:
            edges.append(edge)
    units = []
    for first, stop in zip(edges, [*edges[1:], total], strict=True):
        is_last = stop == total
        lowest = min(bisect_right(ends, first), bisect_left(starts, first))
        highest = len(starts) if is_last else bisect_left(starts, stop)
        files = tuple(
            FileRows(place, starts[place], rows_of_files[place]) for place in range(lowest, highest)
        )
        units.append(ReadUnit(first, stop, files, is_last))
    return units
