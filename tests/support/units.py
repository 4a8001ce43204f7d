"""Whether units read what one pass over all files reads, for the tests of every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from batchtrain.errors import BatchtrainError
from batchtrain.tables import ColumnType, Source, plan_units, read_blocks, read_unit

__all__ = ["TYPES", "assert_units_are_one_pass", "by_units", "numbered_rows"]

TYPES: Mapping[str, ColumnType] = {"n": "integer", "t": "string"}


def numbered_rows(first: int, count: int, bad: frozenset[int] = frozenset()) -> pa.Table:
    """Rows with their numbers as text, but for the bad ones, which hold no number."""
    numbers = ["x" if row in bad else str(row) for row in range(first, first + count)]
    return pa.table({"t": [f"t{row}" for row in range(first, first + count)], "n": numbers})


def by_units(
    source: Source, sizes: list[int], block_rows: int, unit_blocks: int
) -> tuple[list[pa.Table], str]:
    """What each unit gives, up to the first that ends in an error, and that error."""
    units = plan_units(
        sizes,
        block_rows=block_rows,
        unit_blocks=unit_blocks,
        enters_files=source.kind == "parquet",
    )
    blocks: list[pa.Table] = []
    for unit in units:
        assert len(blocks) == unit.first_row // block_rows
        some, error = _outcome(read_unit(source, TYPES, unit, block_rows=block_rows))
        blocks += some
        if error:
            return blocks, error
    return blocks, ""


def assert_units_are_one_pass(
    source: Source, sizes: list[int], block_rows: int, unit_blocks: int, bad: frozenset[int]
) -> None:
    """Compare blocks and error of both; there is an error where there is a bad row."""
    blocks, error = _outcome(read_blocks(source, TYPES, block_rows=block_rows))
    found, found_error = by_units(source, sizes, block_rows, unit_blocks)
    assert found_error == error
    assert bool(error) == any(row < sum(sizes) for row in bad)
    # Blocks before an error may come or not: nobody sees them.
    assert [block.to_pydict() for block in found][: len(blocks)] == [
        block.to_pydict() for block in blocks
    ][: len(found)]
    if not error:
        assert len(found) == len(blocks)
        assert all(mine.equals(other) for mine, other in zip(found, blocks, strict=True))


def _outcome(blocks: Iterator[pa.Table]) -> tuple[list[pa.Table], str]:
    """The blocks that come, and the error that ends them."""
    found: list[pa.Table] = []
    try:
        found.extend(iter(blocks))
    except BatchtrainError as error:
        return found, f"{type(error).__name__}: {error}"
    return found, ""
