"""Units read the very blocks, and raise the very errors, of one pass over all files."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import DataError
from batchtrain.tables import (
    Source,
    count_rows,
    open_source,
    plan_units,
    read_blocks,
    read_unit,
    scan,
)
from batchtrain.tables.scan import merge_scans, scan_item, scan_items
from tests.support.builders import write_table
from tests.support.units import TYPES, assert_units_are_one_pass, by_units, numbered_rows


def written(folder: Path, sizes: list[int], ending: str, bad: frozenset[int]) -> Source:
    folder.mkdir()
    first = 0
    for place, size in enumerate(sizes):
        path = folder / f"{place:03d}.{ending}"
        if ending == "parquet":
            pq.write_table(numbered_rows(first, size, bad), path, row_group_size=1 + place % 5)
        else:
            write_table(path, numbered_rows(first, size, bad))
        first += size
    return open_source(folder.name, base=folder.parent, null_values=())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    block_rows=st.integers(1, 12),
    unit_blocks=st.integers(1, 4),
    bad=st.frozensets(st.integers(0, 100), max_size=2),
)
def test_d24_units_give_the_blocks_and_the_error_of_one_pass(
    tmp_path_factory: pytest.TempPathFactory,
    ending: str,
    sizes: list[int],
    block_rows: int,
    unit_blocks: int,
    bad: frozenset[int],
) -> None:
    if ending == "csv":
        sizes = [max(size, 1) for size in sizes]
    source = written(tmp_path_factory.mktemp("units") / "in", sizes, ending, bad)
    assert_units_are_one_pass(source, sizes, block_rows, unit_blocks, bad)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_are_counted_without_a_look_at_the_cells(tmp_path: Path, ending: str) -> None:
    source = written(tmp_path / "in", [4, 1, 30], ending, frozenset({2}))
    assert [count_rows(source, place) for place in range(3)] == [(4, True), (1, True), (30, True)]
    sample = open_source("sample:drug200", base=tmp_path, null_values=())
    assert count_rows(sample, 0) == (200, True)


def test_a_broken_file_counts_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    source = written(tmp_path / "in", [4, 5], "csv", frozenset())
    (tmp_path / "in/001.csv").write_text('"t","n"\n')
    assert count_rows(open_source("in", base=tmp_path, null_values=()), 1) == (0, False)
    # And so does one that changed.
    assert count_rows(source, 1) == (0, False)


def test_d20_a_file_that_has_other_rows_than_planned_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "in", [7, 9, 4], "parquet", frozenset())
    for wrong in ([6, 9, 4], [7, 10, 4], [7, 8, 4], [7, 9, 3], [7, 9, 5]):
        _blocks, error = by_units(source, wrong, 2, 2)
        assert "DataError" in str(error)
        assert "it changed in between" in str(error)


def test_d20_a_file_that_changes_while_a_unit_reads_its_head_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "in", [7, 900], "parquet", frozenset())
    units = plan_units([7, 900], block_rows=5, unit_blocks=2, enters_files=True)
    blocks = read_unit(source, TYPES, units[0], block_rows=5)
    next(blocks)
    path = tmp_path / "in/001.parquet"
    next(blocks)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="changed"):
        next(blocks)


def test_d20_elsewhere_a_copy_may_have_another_time_but_not_another_size(tmp_path: Path) -> None:
    source = written(tmp_path / "in", [7], "parquet", frozenset())
    file = replace(source.files[0], machine="another", mtime_ns=1, inode=1)
    assert sum(block.num_rows for block in read_blocks(replace(source, files=(file,)), TYPES)) == 7
    longer = replace(file, size=file.size + 1)
    with pytest.raises(DataError, match="changed"):
        list(read_blocks(replace(source, files=(longer,)), TYPES))
    here = replace(source.files[0], inode=1)
    with pytest.raises(DataError, match="changed"):
        list(read_blocks(replace(source, files=(here,)), TYPES))


@pytest.mark.parametrize("at_most", [1, 60, 500, 10**9])
def test_a_large_parquet_file_is_scanned_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    source = written(tmp_path / "in", [7, 40, 0, 13], "parquet", frozenset({3, 50}))
    whole = scan(source)
    assert whole.rows_of_files == (7, 40, 0, 13)
    # The package has a function of the module's name.
    monkeypatch.setattr(import_module("batchtrain.tables.scan"), "SCAN_BYTES", at_most)
    items = scan_items(source)
    assert len(items) > 4 or at_most == 10**9
    parts = [scan_item(source, item) for item in reversed(items)][::-1]
    assert merge_scans(source, items, parts) == whole == scan(source)
