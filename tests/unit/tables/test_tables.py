"""Types are found over all rows, and blocks are the same however the files are cut."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.errors import DataError
from batchtrain.tables import (
    Source,
    Unsupported,
    column_names,
    content_hashes,
    open_source,
    read_blocks,
    scan,
)

NULLS = ("", "NA", "?")


def source_of(folder: Path, **files: str | bytes) -> Source:
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.csv").write_bytes(data)
    return open_source("*.csv", base=folder, null_values=NULLS)


def read(source: Source, **columns: str) -> dict[str, list[object]]:
    return pa.concat_tables(list(read_blocks(source, columns))).to_pydict()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "NA"], "integer"),
        (["9223372036854775807"], "integer"),
        (["9007199254740993", "1"], "integer"),
        (["+5", "3"], "integer"),
        ([" 5 ", "3"], "integer"),
        (["9223372036854775808", "1"], "string"),
        (["9007199254740993", "1.5"], "string"),
        (["007", "8"], "string"),
        (["007", "1.5"], "string"),
        (["0", "1.5", "-0.25"], "number"),
        (["1", "2.5"], "number"),
        (["1e5"], "number"),
        (["inf", "-Infinity", "1"], "number"),
        (["1e400"], "string"),
        (["nan", "1.5"], "string"),
        (["0x10"], "string"),
        (["1,5"], "string"),
        (["true", "FALSE", "?"], "boolean"),
        (["true", "1"], "string"),
        (["1", "true"], "string"),
        (["yes", "no"], "string"),
        (["NA", " ? ", ""], "string"),
    ],
)
def test_a_type_holds_every_cell_exactly(tmp_path: Path, cells: list[str], expected: str) -> None:
    text = "a;b\n".replace(";", ",") + "".join(f'"{cell}",x\n' for cell in cells)
    schema = scan(source_of(tmp_path, t=text))
    assert schema.columns == {"a": expected, "b": "string"}
    assert schema.num_rows == len(cells)
    assert schema.missing == {"a": sum(cell.strip() in NULLS for cell in cells), "b": 0}


@pytest.mark.parametrize(
    ("late", "expected"),
    [("1.5", "number"), ("x", "string"), ("007", "string"), ("true", "string"), ("2", "integer")],
)
def test_a_type_that_changes_after_the_first_megabytes_is_found(
    tmp_path: Path, late: str, expected: str
) -> None:
    rows = "1,xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n" * 150_000
    source = source_of(tmp_path, t=f"a,b\n{rows}{late},y\n")
    assert source.files[0].size > 5 << 20
    schema = scan(source)
    assert schema.columns["a"] == expected
    assert schema.num_rows == 150_001


@pytest.mark.parametrize(
    ("second", "expected"),
    [("2", "integer"), ("2.5", "number"), ("007", "string"), ("NA", "integer")],
)
def test_files_may_differ_where_nothing_is_lost(tmp_path: Path, second: str, expected: str) -> None:
    source = source_of(tmp_path, f1="a,b\n1,x\n", f2=f"b,a\ny,{second}\n")
    schema = scan(source)
    assert schema.columns == {"a": expected, "b": "string"}
    assert column_names(source) == ("a", "b")
    assert read(source, b="string") == {"b": ["x", "y"]}


def test_parquet_types_are_normalised(tmp_path: Path) -> None:
    columns = {
        "i32": pa.array([1, None], pa.int32()),
        "u8": pa.array([1, 2], pa.uint8()),
        "u64": pa.array([1, 2], pa.uint64()),
        "f32": pa.array([1.5, float("nan")], pa.float32()),
        "large": pa.array(["a", "b"], pa.large_string()),
        "dict": pa.array(["a", None]).dictionary_encode(),
        "nothing": pa.nulls(2),
        "when": pa.array([0, 1], pa.timestamp("ms")),
        "list": pa.array([[1], [2]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    source = open_source(".", base=tmp_path, null_values=())
    schema = scan(source)
    assert {name: str(found) for name, found in schema.columns.items()} == {
        **dict.fromkeys(("i32", "u8", "u64"), "integer"),
        **dict.fromkeys(("large", "dict", "nothing"), "string"),
        "f32": "number",
        "when": "unsupported(timestamp[ms])",
        "list": "unsupported(list<element: int64>)",
    }
    assert isinstance(schema.columns["when"], Unsupported)
    assert schema.missing == {
        **dict.fromkeys(("u8", "u64", "large"), 0),
        **dict.fromkeys(("i32", "f32", "dict"), 1),
        "nothing": 2,
    }
    block = next(read_blocks(source, {"f32": "number", "i32": "string", "u64": "number"}))
    assert block.to_pydict() == {"f32": [1.5, None], "i32": ["1", None], "u64": [1.0, 2.0]}


def test_a_column_whose_name_extends_another_is_not_mixed_up(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": [1], "a": [2], "c": [3]}), tmp_path / "1.parquet")
    source = open_source("1.parquet", base=tmp_path, null_values=())
    assert scan(source).columns == dict.fromkeys(("a.b", "a", "c"), "integer")
    assert read(source, a="integer") == {"a": [2]}
    assert read(source, **{"a.b": "integer"}) == {"a.b": [1]}


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,x\n2,y\n",
        "\ufeffa,b\n1,x\n2,y\n",
        "a,b\r\n1,x\r\n2,y\r\n",
        "a,b\r1,x\r2,y",
        "\n\na,b\n\n1,x\n\n2,y\n\n",
        '"a","b"\n"1","x"\n"2","y"\n',
        "b,a\nx,1\ny,2",
    ],
    ids=["plain", "mark", "crlf", "cr", "blank lines", "quotes", "order"],
)
def test_the_ways_to_write_one_table_read_the_same(tmp_path: Path, text: str) -> None:
    source = source_of(tmp_path, t=text)
    assert set(scan(source).columns.items()) == {("a", "integer"), ("b", "string")}
    assert read(source, a="integer", b="string") == {"a": [1, 2], "b": ["x", "y"]}


def test_tabs_and_gzip_are_told_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "1.tsv").write_text("a\tb\n1\tx,y\n")
    (tmp_path / "2.TSV.gz").write_bytes(gzip.compress(b"a\tb\n2\tz\n"))
    source = open_source(".", base=tmp_path, null_values=())
    assert read(source, a="integer", b="string") == {"a": [1, 2], "b": ["x,y", "z"]}


def test_quoted_cells_keep_line_breaks_quotes_and_spaces(tmp_path: Path) -> None:
    source = source_of(tmp_path, t='a,b\n"x\n\ny",1\n"say ""hi""",2\n  z ,3\n6" pipe,4\n')
    expected = ["x\n\ny", 'say "hi"', "  z ", '6" pipe']
    assert read(source, a="string") == {"a": expected}


def test_an_odd_number_of_quotes_alone_is_no_error(tmp_path: Path) -> None:
    assert read(source_of(tmp_path, t='a,b\n6" pipe,1\nx,2\n'), b="integer") == {"b": [1, 2]}


def test_a_blank_line_in_a_table_of_one_column_is_a_missing_cell(tmp_path: Path) -> None:
    source = source_of(tmp_path, t="a\n1\n\n3\n")
    assert read(source, a="integer") == {"a": [1, None, 3]}


def test_names_with_any_other_character_work(tmp_path: Path) -> None:
    names = ["a b", 'q"x', "\U0001f600", "__x", "=1", "b.c", *(f"c{n}" for n in range(3000))]
    header = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    source = source_of(tmp_path, t=f"{header}\n{','.join(['1'] * len(names))}\n")
    assert list(scan(source).columns) == names
    assert read(source, **{'q"x': "integer"}) == {'q"x': [1]}


def test_large_identifiers_stay_exact(tmp_path: Path) -> None:
    ids = ["007", "9007199254740993", "9223372036854775808"]
    source = source_of(tmp_path, t="id,b\n" + "".join(f"{each},1\n" for each in ids))
    assert read(source, id="string") == {"id": ids}
    source = source_of(tmp_path, t="id,b\n9007199254740993,1\n+7,1\n12.0,1\n1e3,1\n")
    assert read(source, id="integer") == {"id": [9007199254740993, 7, 12, 1000]}


def test_flags_are_read_in_any_spelling(tmp_path: Path) -> None:
    source = source_of(tmp_path, t="a,b\nTrue,1\n false,1\n1,1\n0,1\nNA,1\n")
    assert read(source, a="boolean") == {"a": [True, False, True, False, None]}


def test_a_scan_is_not_fooled_by_padding_around_numbers_and_nulls(tmp_path: Path) -> None:
    source = source_of(tmp_path, t="a,b\n 1.5, ?\n2 ,x \n\tNA,y\n")
    assert scan(source).missing == {"a": 1, "b": 1}
    assert read(source, a="number", b="string") == {"a": [1.5, 2.0, None], "b": [None, "x ", "y"]}


# ----------------------------------------------------------------------------------------------
# Blocks

# A letter in front: cells that look like numbers in one file and like text in another are refused.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4).map("x{}".format)
cells = st.tuples(
    st.one_of(st.none(), st.integers(-(2**53), 2**53)),
    st.one_of(st.none(), st.floats(allow_nan=False)),
    st.one_of(st.none(), st.booleans()),
    st.one_of(st.none(), texts),
)
TYPES = {"i": "integer", "f": "number", "b": "boolean", "s": "string"}
ARROW = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": pa.string()}


def table_of(rows: list[tuple[object, ...]]) -> pa.Table:
    values = zip(*rows, strict=True) if rows else [()] * 4
    pairs = zip(ARROW.items(), values, strict=True)
    return pa.table({name: pa.array(list(column), each) for (name, each), column in pairs})


@settings(max_examples=60)
@given(
    files=st.lists(st.lists(cells, min_size=1, max_size=12), min_size=1, max_size=4),
    block_rows=st.integers(1, 15),
    row_group_rows=st.integers(1, 5),
    is_csv=st.booleans(),
)
def test_blocks_depend_on_row_numbers_alone(
    files: list[list[tuple[object, ...]]], block_rows: int, row_group_rows: int, is_csv: bool
) -> None:
    whole = table_of([row for rows in files for row in rows])
    with tempfile.TemporaryDirectory() as name:
        for place, rows in enumerate(files):
            table = table_of(rows)
            if is_csv:
                pa_csv.write_csv(table, f"{name}/{place}.csv")
            else:
                pq.write_table(table, f"{name}/{place}.parquet", row_group_size=row_group_rows)
        source = open_source(".", base=Path(name), null_values=("",))
        blocks = list(read_blocks(source, TYPES, block_rows=block_rows))
        assert scan(source).num_rows == whole.num_rows
    assert [block.num_rows for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert all(column.num_chunks == 1 for block in blocks for column in block.columns)
    assert pa.concat_tables(blocks).equals(whole)
    for number, block in enumerate(blocks):
        assert block.equals(whole.slice(number * block_rows, block_rows))


def test_a_block_has_the_asked_columns_in_the_asked_order(tmp_path: Path) -> None:
    source = source_of(tmp_path, t="a,b,c\n1,2,3\n")
    block = next(read_blocks(source, {"c": "number", "a": "string"}))
    assert block.schema == pa.schema([("c", pa.float64()), ("a", pa.string())])
    with pytest.raises(ValueError, match="block_rows"):
        next(read_blocks(source, {"a": "string"}, block_rows=0))


def test_rows_are_numbered_across_files_and_within_each(tmp_path: Path) -> None:
    source = source_of(tmp_path, f1="a,b\n1,1\n2,1\n", f2="a,b\n3,1\nx,1\n")
    with pytest.raises(DataError, match=r"f2\.csv, row 2 \(after the header; row_id 3\)"):
        read(source, a="integer")


# ----------------------------------------------------------------------------------------------
# Change and content


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write("9,9\n")


def replace(path: Path) -> None:
    other = path.with_suffix(".tmp")
    other.write_bytes(path.read_bytes())
    now = path.stat()
    os.utime(other, ns=(now.st_atime_ns, now.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [touch, grow, replace, Path.unlink])
def test_d20_a_file_that_changes_after_opening_is_refused(tmp_path: Path, change: object) -> None:
    source = source_of(tmp_path, f1="a,b\n1,1\n", f2="a,b\n3,1\n")
    change(tmp_path / "f2.csv")  # type: ignore[operator]
    for use in (scan, content_hashes, lambda each: read(each, a="integer")):
        with pytest.raises(DataError, match=r"f2\.csv: expected the file"):
            use(source)


def test_d20_a_file_that_changes_during_the_read_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": range(300_000)}), tmp_path / "1.parquet")
    blocks = read_blocks(open_source("1.parquet", base=tmp_path, null_values=()), {"a": "integer"})
    next(blocks)
    touch(tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet.*changed"):
        list(blocks)


class Cache(dict[str, str]):
    """A cache in memory."""

    def put(self, key: str, sha256: str) -> None:
        self[key] = sha256


def test_hashes_name_the_content_not_the_place(tmp_path: Path) -> None:
    first = content_hashes(source_of(tmp_path, f1="a,b\n1,1\n", f2="a,b\n3,1\n"))
    (tmp_path / "copy").mkdir()
    assert first == content_hashes(source_of(tmp_path / "copy", f1="a,b\n1,1\n", f2="a,b\n3,1\n"))
    assert [name for name, _ in first] == ["f1.csv", "f2.csv"]
    assert len({sha256 for _, sha256 in first}) == 2


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    cache = Cache()
    content_hashes(source_of(tmp_path, f1="a,b\n1,1\n"), cache)
    assert cache == {}  # so young a file could change again within one tick of its time stamp
    touch(tmp_path / "f1.csv")
    source = open_source("f1.csv", base=tmp_path, null_values=())
    right = content_hashes(source, cache)
    assert list(cache.values()) == [right[0][1]]
    cache.update(dict.fromkeys(cache, "remembered"))
    assert content_hashes(source, cache) == (("f1.csv", "remembered"),)
    (tmp_path / "f1.csv").write_text("a,b\n2,2\n")
    source = open_source("f1.csv", base=tmp_path, null_values=())
    assert content_hashes(source, cache)[0][1] not in {"remembered", right[0][1]}


def test_a_wide_random_float_column_comes_back_bit_for_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(5000) * 10.0 ** np.arange(-10, 10).repeat(250)
    sink = io.BytesIO()
    pa_csv.write_csv(pa.table({"a": values, "b": values}), sink)
    source = source_of(tmp_path, t=sink.getvalue())
    assert scan(source).columns["a"] == "number"
    assert read(source, a="number")["a"] == values.tolist()


def test_the_package_imports_no_slow_library() -> None:
    script = (
        "import sys, batchtrain.tables; "
        "print(*sorted({'matplotlib', 'pandas', 'ray', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
