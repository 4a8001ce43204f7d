"""Every bad table is refused with a typed error that says where, what was found and what to do."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchtrain.errors import (
    BatchtrainError,
    DataError,
    NoRowsError,
    SchemaMismatchError,
    UnsafeInputError,
)
from batchtrain.tables import open_source, read_blocks, scan

NULLS = ("", "NA")


def parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


GOOD_PARQUET = parquet(a=list(range(1000)), b=["x"] * 1000)
CHECKED = io.BytesIO()
pq.write_table(pa.table({"a": list(range(1000))}), CHECKED, write_page_checksum=True)
BIT_FLIP = bytearray(CHECKED.getvalue())
BIT_FLIP[200] ^= 1

Files = dict[str, bytes]

BAD_SCANS: dict[str, tuple[Files, type[BatchtrainError], list[str]]] = {
    "empty csv": ({"t.csv": b""}, DataError, ["t.csv", "empty file (0 bytes)"]),
    "blank lines only": ({"t.csv": b"\n\n"}, DataError, ["blank lines only"]),
    "header only": ({"t.csv": b"a,b\n"}, NoRowsError, ["t.csv", "0 rows"]),
    "header without line end": ({"t.csv": b"a,b"}, NoRowsError, ["0 rows"]),
    "header and blank lines": ({"t.csv": b"a,b\n\n\n"}, NoRowsError, ["0 rows"]),
    "empty gzip": ({"t.csv.gz": gzip.compress(b"")}, DataError, ["blank lines only"]),
    "no gzip at all": ({"t.csv.gz": b"a,b\n1,2\n"}, DataError, ["whole gzip", "damage"]),
    "cut gzip": ({"t.csv.gz": gzip.compress(b"a,b\n1,2\n")[:-9]}, DataError, ["whole gzip"]),
    "short row": ({"t.csv": b"a,b\n1,2\n3\n"}, DataError, ["line 3", "2 cells", "found 1: '3'"]),
    "long row": ({"t.csv": b"a,b\n1,2\n\n3,4,5\n"}, DataError, ["line 4", "found 3: '3,4,5'"]),
    "long row below a quoted line break": (
        {"t.csv": b'a,b\n"x\ny",2\n3,4,5\n'},
        DataError,
        ["line 4", "found 3"],
    ),
    "latin-1 byte": ({"t.csv": b"a,b\n1,caf\xe9\n"}, DataError, ["b'\\xe9'", "byte 9", "UTF-8"]),
    "latin-1 byte in the header": ({"t.csv": b"\xe9,b\n1,2\n"}, DataError, ["byte 0"]),
    "character cut at the end": ({"t.csv": b"a,b\n1,\xc3"}, DataError, ["byte 6"]),
    "late latin-1 byte": (
        {"t.csv": b"a,b\n" + b"1,x\n" * 50_000 + b"1,\xe9\n"},
        DataError,
        ["byte 200006"],
    ),
    "utf-16": ({"t.csv": "a,b\n1,2\n".encode("utf-16")}, DataError, ["UTF-16", "UTF-8"]),
    "utf-16 without a mark": ({"t.csv": "a,b\n1,2\n".encode("utf-16-le")}, DataError, ["NUL"]),
    "nul byte": ({"t.csv": b"a,b\n1,x\0y\n"}, DataError, ["NUL byte at byte 7"]),
    "repeated name": ({"t.csv": b"a,b,a\n1,2,3\n"}, DataError, ["found 'a' 2 times"]),
    "empty name": ({"t.csv": b"a,,c\n1,2,3\n"}, DataError, ["'' for column 2 of 3"]),
    "blank name": ({"t.csv": b"a, \n1,2\n"}, DataError, ["' ' for column 2"]),
    "name of two lines": ({"t.csv": b'a,"b\nc"\n1,2\n'}, DataError, ["'b\\nc'", "one line"]),
    "open quote in the header": ({"t.csv": b'a,"b\n1,2\n'}, DataError, ["unclosed quote"]),
    "open quote": (
        {"t.csv": b'a,b\n1,"open\n2,3\n4,5\n'},
        DataError,
        ["line 2", "never closed"],
    ),
    "semicolons": ({"t.csv": b"a;b\n1;2\n"}, DataError, ["separated by ','", "'a;b'", "';'"]),
    "commas in a tsv": ({"t.tsv": b"a,b\n1,2\n"}, DataError, ["separated by '\\t'", "','"]),
    "endless row": (
        {"t.csv": b"a,b\n1,2\n3," + b"x" * (9 << 20) + b"\n"},
        DataError,
        ["line 3", "more than"],
    ),
    "0-byte parquet": ({"t.parquet": b""}, DataError, ["t.parquet", "0 bytes"]),
    "csv called parquet": ({"t.parquet": b"a,b\n1,2\n3,4\n5,6\n"}, DataError, ["ending", "PAR1"]),
    "cut parquet": ({"t.parquet": GOOD_PARQUET[:-20]}, DataError, ["t.parquet", "PAR1"]),
    "encrypted parquet": (
        {"t.parquet": GOOD_PARQUET[:-4] + b"PARE"},
        DataError,
        ["encrypted"],
    ),
    "footer longer than the file": (
        {"t.parquet": b"PAR1" + b"x" * 20 + (999).to_bytes(4, "little") + b"PAR1"},
        DataError,
        ["footer of 999 bytes"],
    ),
    "garbage footer": (
        {"t.parquet": b"PAR1" + b"x" * 20 + (20).to_bytes(4, "little") + b"PAR1"},
        DataError,
        ["t.parquet", "damage"],
    ),
    "flipped bit in a page": ({"t.parquet": bytes(BIT_FLIP)}, DataError, ["t.parquet", "damage"]),
    "parquet without rows": ({"t.parquet": parquet(a=pa.array([], pa.int64()))}, NoRowsError, []),
    "uint64 beyond int64": (
        {"t.parquet": parquet(a=pa.array([1, 2**63], pa.uint64()))},
        SchemaMismatchError,
        ["'a'", "expected integer", "9223372036854775808", "row_id 1"],
    ),
    "new column in a later file": (
        {"1.csv": b"a\n1\n", "2.csv": b"a,b\n1,2\n"},
        SchemaMismatchError,
        ["column 'b'", "2.csv but not in", "1.csv"],
    ),
    "column missing from a later file": (
        {"1.parquet": parquet(a=[1], b=[1]), "2.parquet": parquet(a=[1])},
        SchemaMismatchError,
        ["column 'b'", "1.parquet but not in", "2.parquet"],
    ),
    "integers, then text": (
        {"1.csv": b"a,b\n1,1\n", "2.csv": b"a,b\nx,1\n"},
        SchemaMismatchError,
        ["'a'", "numeric values in", "1.csv", "string values in", "2.csv"],
    ),
    "numbers, then flags": (
        {"1.parquet": parquet(a=[1.5]), "2.parquet": parquet(a=[True])},
        SchemaMismatchError,
        ["numeric", "boolean"],
    ),
    "decimal, then integer": (
        {"1.parquet": parquet(a=[Decimal("1.5")]), "2.parquet": parquet(a=[1])},
        SchemaMismatchError,
        ["unsupported(decimal128(2, 1))", "numeric"],
    ),
    "one empty file among good ones": (
        {"1.csv": b"a\n1\n", "2.csv": b"a\n"},
        NoRowsError,
        ["2.csv", "0 rows"],
    ),
}


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("files", "error", "fragments"), BAD_SCANS.values(), ids=BAD_SCANS.keys())
def test_a_scan_refuses_a_bad_table(
    tmp_path: Path, files: Files, error: type[BatchtrainError], fragments: list[str]
) -> None:
    source = open_source(".", base=write(tmp_path, files), null_values=NULLS)
    with pytest.raises(error) as caught:
        scan(source)
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert [
        each for each in [*fragments, "expected", "found"] if each not in str(caught.value)
    ] == []


BAD_READS: dict[str, tuple[str, bytes, str, str, list[str]]] = {
    "text for a number": (
        "t.csv",
        b"a,b\n1,2\nx,3\ny,4\n",
        "a",
        "number",
        [
            "column 'a'",
            "t.csv, row 2 (after the header; row_id 1)",
            "expected number, found 'x' (and in at least 1 more row)",
            "data.null_values",
        ],
    ),
    "nan that is no null value": ("t.csv", b"a,b\nnan,2\n", "a", "number", ["found 'nan'"]),
    "number beyond float64": ("t.csv", b"a,b\n1e400,2\n", "a", "number", ["found '1e400'"]),
    "integer text beyond 2**53": (
        "t.csv",
        b"a,b\n9007199254740993,2\n",
        "a",
        "number",
        ["found '9007199254740993'", "whole numbers up to 2**53: declare the column categorical"],
    ),
    "hexadecimal": ("t.csv", b"a,b\n0x10,2\n", "a", "integer", ["found '0x10'"]),
    "fraction for an integer": ("t.csv", b"a,b\n1,2\n1.5,3\n", "a", "integer", ["found '1.5'"]),
    "overflow for an integer": (
        "t.csv",
        b"a,b\n9223372036854775808,2\n",
        "a",
        "integer",
        ["found '9223372036854775808'"],
    ),
    "word for a flag": ("t.csv", b"a,b\ntrue,2\nyes,3\n", "a", "boolean", ["found 'yes'"]),
    "missing column": ("t.csv", b"Age,b\n1,2\n", "age", "number", ["'Age' differs in upper"]),
    "misspelt column": ("t.csv", b"price,b\n1,2\n", "prize", "number", ["mean 'price'?"]),
    "missing parquet column": ("t.parquet", parquet(a=[1]), "z", "number", ["'z'", "only 'a'"]),
    "float for text": ("t.parquet", parquet(a=[1.5]), "a", "string", ["1.5 of type double"]),
    "flag for a number": ("t.parquet", parquet(a=[True]), "a", "number", ["found True", "bool"]),
    "two for a flag": ("t.parquet", parquet(a=[0, 1, 2]), "a", "boolean", ["found 2", "row_id 2"]),
    "fraction in a float": ("t.parquet", parquet(a=[1.0, 2.5]), "a", "integer", ["found 2.5"]),
    "infinity for an integer": (
        "t.parquet",
        parquet(a=[float("inf")]),
        "a",
        "integer",
        ["found inf"],
    ),
    "wide integer for a float": (
        "t.parquet",
        parquet(a=[2**53 + 1]),
        "a",
        "number",
        ["9007199254740993", "too large to be exact"],
    ),
    "decimal": ("t.parquet", parquet(a=[Decimal("1.5")]), "a", "number", ["decimal128"]),
    "timestamp": (
        "t.parquet",
        parquet(a=pa.array([0], pa.timestamp("s"))),
        "a",
        "integer",
        ["timestamp"],
    ),
    "list": ("t.parquet", parquet(a=[[1, 2]]), "a", "number", ["found [1, 2]", "list"]),
}


@pytest.mark.parametrize(
    ("name", "content", "column", "wanted", "fragments"), BAD_READS.values(), ids=BAD_READS.keys()
)
def test_a_read_refuses_a_value_that_does_not_fit(
    tmp_path: Path, name: str, content: bytes, column: str, wanted: str, fragments: list[str]
) -> None:
    write(tmp_path, {name: content})
    source = open_source(name, base=tmp_path, null_values=NULLS)
    with pytest.raises(SchemaMismatchError) as caught:
        list(read_blocks(source, {column: wanted}))
    assert [each for each in [*fragments, "expected"] if each not in str(caught.value)] == []


def mixed(folder: Path) -> str:
    write(folder, {"a.csv": b"a\n1\n", "b.parquet": parquet(a=[1])})
    return "."


def foreign(folder: Path) -> str:
    write(folder, {"a.csv": b"a\n1\n", "notes.txt": b"hello"})
    return "."


def misspelt(folder: Path) -> str:
    write(folder, {"drug200.csv": b"a\n1\n"})
    return "drug20.csv"


def empty_folder(folder: Path) -> str:
    (folder / "rows").mkdir()
    return "rows"


def only_skipped(folder: Path) -> str:
    write(folder, {"_part.csv": b"a\n1\n"})
    return "*.csv"


BAD_SOURCES: list[tuple[Callable[[Path], str], list[str]]] = [
    (mixed, ["one format", "a.csv", "b.parquet"]),
    (foreign, ["notes.txt", "glob"]),
    (misspelt, ["drug20.csv", "Did you mean 'drug200.csv'?"]),
    (empty_folder, ["empty folder"]),
    (only_skipped, ["'_part.csv'", "skipped"]),
    (lambda folder: "no/such/*.csv", ["no folder"]),
    (lambda folder: "gone/*.csv", ["gone", "found nothing"]),
    (lambda folder: "s3://bucket/rows.csv", ["not built yet"]),
    (lambda folder: "hf:org/name", ["no revision", "hf:NAME@REVISION"]),
    (lambda folder: "sample:drugs200", ["Did you mean 'drug200'?"]),
]


@pytest.mark.parametrize(("make", "fragments"), BAD_SOURCES)
def test_a_source_that_cannot_be_opened_says_why(
    tmp_path: Path, make: Callable[[Path], str], fragments: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        open_source(make(tmp_path), base=tmp_path, null_values=NULLS)
    assert [each for each in [*fragments, "expected"] if each not in str(caught.value)] == []
    assert not isinstance(caught.value, UnsafeInputError)
