"""The same rows in any format are the same blocks, whoever reads which part of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.errors import DataError
from batchtrain.tables import (
    ColumnType,
    Source,
    content_hashes,
    count_rows,
    open_source,
    read_blocks,
    require_unchanged,
    scan,
)
from tests.support.builders import mixed_table, write_table
from tests.support.sources import write_arrow, write_hugging_face, write_json_lines
from tests.support.units import TYPES, assert_units_are_one_pass, numbered_rows

ENDINGS = ["jsonl", "arrow", "feather", "hf"]


def written(folder: Path, sizes: list[int], ending: str, bad: frozenset[int]) -> Source:
    folder.mkdir()
    tables = []
    for place, size in enumerate(sizes):
        tables.append(numbered_rows(sum(sizes[:place]), size, bad))
    if ending == "hf":
        write_hugging_face(folder, tables)
        return open_source(f"hf:./{folder.name}", base=folder.parent, null_values=())
    for place, table in enumerate(tables):
        path = folder / f"{place:03d}.{ending}"
        if ending == "jsonl":
            write_json_lines(path, table)
        else:
            write_arrow(path, table, stream=place % 2 == 1, batch_rows=1 + place % 5)
    return open_source(folder.name, base=folder.parent, null_values=())


@pytest.mark.parametrize("ending", ["jsonl", "arrow", "hf"])
@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
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
    source = written(tmp_path_factory.mktemp("units") / "in", sizes, ending, bad)
    assert_units_are_one_pass(source, sizes, block_rows, unit_blocks, bad)
    assert [count_rows(source, place) for place in range(len(sizes))] == [
        (size, True) for size in sizes
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_formats_give_the_schema_and_the_blocks_of_csv(tmp_path: Path, ending: str) -> None:
    table = mixed_table(90)
    write_table(tmp_path / "rows.csv", table)
    csv = open_source("rows.csv", base=tmp_path, null_values=("",))
    if ending == "hf":
        write_hugging_face(tmp_path / "rows", [table.slice(0, 40), table.slice(40)])
        source = open_source("hf:./rows", base=tmp_path, null_values=("",))
    else:
        path = tmp_path / f"rows.{ending}"
        write_json_lines(path, table) if ending == "jsonl" else write_arrow(path, table)
        source = open_source(path.name, base=tmp_path, null_values=("",))
    mine, theirs = scan(source), scan(csv)
    assert (mine.columns, mine.num_rows, mine.missing) == (
        theirs.columns,
        theirs.num_rows,
        theirs.missing,
    )
    types: dict[str, ColumnType] = {name: str(kind) for name, kind in theirs.columns.items()}
    for block, other in zip(
        read_blocks(source, types, block_rows=16),
        read_blocks(csv, types, block_rows=16),
        strict=True,
    ):
        assert block.equals(other)


@pytest.mark.parametrize("ending", ENDINGS)
def test_d20_a_file_that_changes_is_refused(tmp_path: Path, ending: str) -> None:
    source = written(tmp_path / "in", [4, 5], ending, frozenset())
    before = content_hashes(source)
    blocks = read_blocks(source, TYPES, block_rows=2)
    next(blocks)
    os.utime(source.files[1].path, ns=(1, 1))
    with pytest.raises(DataError, match="changed"):
        list(blocks)
    with pytest.raises(DataError, match="changed"):
        require_unchanged(source.files[1])
    again = open_source(source.text, base=tmp_path, null_values=())
    assert content_hashes(again) == before
    path = source.files[1].path
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    again = open_source(source.text, base=tmp_path, null_values=())
    assert [mine == other for mine, other in zip(content_hashes(again), before, strict=True)] == [
        True,
        False,
    ]


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="found csv and jsonl"):
        open_source(".", base=tmp_path, null_values=())
