"""Units of a read plan: every block once, every file's end once, whatever the sizes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchtrain.tables.read_plan import FileRows, ReadUnit, plan_units

SIZES = st.lists(st.integers(0, 40), max_size=12)
BLOCKS = st.integers(1, 9)


def plan(sizes: list[int], block_rows: int, unit_blocks: int, *, enters: bool) -> list[ReadUnit]:
    return plan_units(sizes, block_rows=block_rows, unit_blocks=unit_blocks, enters_files=enters)


@given(SIZES, BLOCKS, BLOCKS, st.booleans())
def test_units_follow_one_another_in_whole_blocks(
    sizes: list[int], block_rows: int, unit_blocks: int, enters: bool
) -> None:
    units = plan(sizes, block_rows, unit_blocks, enters=enters)
    assert units[0].first_row == 0
    assert units[-1].stop_row == sum(sizes)
    assert [unit.is_last for unit in units] == [False] * (len(units) - 1) + [True]
    for unit, after in pairwise(units):
        assert unit.stop_row == after.first_row > unit.first_row
        assert after.first_row % block_rows == 0
        assert unit.stop_row - unit.first_row >= block_rows * unit_blocks
        assert not enters or unit.stop_row - unit.first_row == block_rows * unit_blocks


@given(SIZES, BLOCKS, BLOCKS, st.booleans())
def test_a_unit_reads_the_files_that_hold_its_rows_and_every_file_ends_in_one_unit(
    sizes: list[int], block_rows: int, unit_blocks: int, enters: bool
) -> None:
    units = plan(sizes, block_rows, unit_blocks, enters=enters)
    ended: list[int] = []
    for unit in units:
        rows = 0
        for part in unit.files:
            assert part.num_rows == sizes[part.place]
            assert part.first_row == sum(sizes[: part.place])
            inside = min(part.stop_row, unit.stop_row) - max(part.first_row, unit.first_row)
            assert inside > 0 or part.num_rows == 0
            rows += inside
            if part.stop_row <= unit.stop_row:
                ended.append(part.place)
        assert rows == unit.stop_row - unit.first_row
    assert ended == list(range(len(sizes)))


@given(SIZES, BLOCKS, BLOCKS)
def test_where_files_cannot_be_entered_less_than_a_block_is_skipped_at_the_head(
    sizes: list[int], block_rows: int, unit_blocks: int
) -> None:
    for unit in plan(sizes, block_rows, unit_blocks, enters=False)[1:]:
        assert unit.first_row - unit.files[0].first_row < block_rows
        # So it is the first block that begins in this file.
        assert unit.files[0].first_row > unit.first_row - block_rows


def test_small_files_are_read_together_and_a_large_one_alone() -> None:
    units = plan([3, 3, 3, 3, 20, 2], 4, 2, enters=False)
    assert [(unit.first_row, unit.stop_row) for unit in units] == [(0, 8), (8, 32), (32, 34)]
    assert [[part.place for part in unit.files] for unit in units] == [[0, 1, 2], [2, 3, 4], [5]]
    assert units[1].files[0] == FileRows(2, 6, 3)


def test_a_parquet_file_is_many_units() -> None:
    units = plan([100], 4, 5, enters=True)
    assert [unit.first_row for unit in units] == [0, 20, 40, 60, 80]


def test_without_rows_there_is_one_unit_that_looks_at_all_files() -> None:
    (unit,) = plan([0, 0], 4, 2, enters=True)
    assert [part.place for part in unit.files] == [0, 1]
    assert unit.is_last
