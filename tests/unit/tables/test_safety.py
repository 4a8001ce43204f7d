"""X11 and D19: types that run code, links that lead astray and special files are refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchtrain.errors import DataError, UnsafeInputError
from batchtrain.tables import (
    frame_to_table,
    open_source,
    read_blocks,
    refuse_unsafe_types,
    scan,
    source_contains,
)

NAME = b"ARROW:extension:name"


class ObjectType(pa.ExtensionType):
    """As `ray.data.arrow_pickled_object`: opening a file calls it with bytes of the file."""

    opened: list[bytes] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "test.arrow_pickled_object")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> ObjectType:
        cls.opened.append(serialized)
        return cls()


@pytest.fixture
def object_type() -> Iterator[ObjectType]:
    found = ObjectType()
    pa.register_extension_type(found)
    yield found
    pa.unregister_extension_type(found.extension_name)


@pytest.mark.parametrize("nest", ["plain", "list", "struct", "map"])
def test_x11_a_registered_extension_type_is_never_called(
    tmp_path: Path, object_type: ObjectType, nest: str
) -> None:
    values: Any = pa.ExtensionArray.from_storage(object_type, pa.array([b"x"], pa.large_binary()))
    if nest == "list":
        values = pa.ListArray.from_arrays([0, 1], values)
    if nest == "struct":
        values = pa.StructArray.from_arrays([values], names=["inner"])
    if nest == "map":
        values = pa.MapArray.from_arrays([0, 1], pa.array(["key"]), values)
    pq.write_table(pa.table({"id": [1], "evil": values}), tmp_path / "t.parquet")
    source = open_source("t.parquet", base=tmp_path, null_values=())
    ObjectType.opened.clear()
    with pytest.raises(UnsafeInputError, match=r"t\.parquet.*extension type"):
        scan(source)
    with pytest.raises(UnsafeInputError):
        list(read_blocks(source, {"id": "integer"}))
    assert ObjectType.opened == []


def test_x11_an_unregistered_extension_type_is_refused_too(
    tmp_path: Path, object_type: ObjectType
) -> None:
    values = pa.ExtensionArray.from_storage(object_type, pa.array([b"x"], pa.large_binary()))
    pq.write_table(pa.table({"evil": values}), tmp_path / "t.parquet")
    pa.unregister_extension_type(object_type.extension_name)
    try:
        with pytest.raises(UnsafeInputError, match="extension type"):
            scan(open_source("t.parquet", base=tmp_path, null_values=()))
    finally:
        pa.register_extension_type(object_type)


def test_a_footer_whose_schema_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    place = content.index(b"ARROW:schema") + 16
    (tmp_path / "t.parquet").write_bytes(content[:place] + b"!!!!" + content[place + 4 :])
    with pytest.raises(UnsafeInputError, match="cannot be read"):
        scan(open_source("t.parquet", base=tmp_path, null_values=()))


named = pa.field("item", pa.string(), metadata={NAME: b"test.type"})


@pytest.mark.parametrize(
    "unsafe",
    [
        ObjectType(),
        pa.list_(ObjectType()),
        pa.large_list(ObjectType()),
        pa.list_(ObjectType(), 2),
        pa.struct([("x", pa.list_(ObjectType()))]),
        pa.map_(pa.string(), ObjectType()),
        pa.dictionary(pa.int32(), ObjectType()),
        pa.run_end_encoded(pa.int32(), ObjectType()),
        pa.dense_union([pa.field("x", ObjectType())]),
        pa.list_(named),
        pa.struct([named]),
        pa.dictionary(pa.int32(), pa.struct([named])),
    ],
    ids=str,
)
def test_an_extension_type_is_found_at_any_depth(unsafe: pa.DataType) -> None:
    with pytest.raises(UnsafeInputError, match=r"here: .*'col"):
        refuse_unsafe_types(pa.schema([("id", pa.int64()), ("col", unsafe)]), "here")


def test_plain_types_pass() -> None:
    plain = [
        *(pa.null(), pa.bool_(), pa.uint64(), pa.float16(), pa.string(), pa.large_string()),
        *(pa.binary(), pa.date32(), pa.timestamp("us", "UTC"), pa.decimal128(5, 2)),
        *(pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.struct([("x", pa.float32())]))),
    ]
    refuse_unsafe_types(pa.schema([(f"c{n}", each) for n, each in enumerate(plain)]), "here")


def test_rows_in_memory_are_checked_too(object_type: ObjectType) -> None:
    values = pa.ExtensionArray.from_storage(object_type, pa.array([b"x"], pa.large_binary()))
    with pytest.raises(UnsafeInputError):
        frame_to_table(pa.table({"evil": values}))
    with pytest.raises(UnsafeInputError):
        frame_to_table({"evil": values})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files in a folder, and one outside."""
    (tmp_path / "rows" / "sub").mkdir(parents=True)
    (tmp_path / "rows" / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "rows" / "sub" / "b.csv").write_text("x,y\n3,4\n")
    (tmp_path / "outside.csv").write_text("x,y\n5,6\n")
    return tmp_path


def names(folder: Path, source: str = "rows") -> list[str]:
    return [file.name for file in open_source(source, base=folder, null_values=()).files]


@pytest.mark.parametrize("source", ["rows", "rows/**/*.csv", "rows/**"])
def test_d19_a_link_out_of_the_folder_is_refused(folder: Path, source: str) -> None:
    (folder / "rows" / "link.csv").symlink_to(folder / "outside.csv")
    with pytest.raises(UnsafeInputError, match=r"link\.csv.*outside"):
        open_source(source, base=folder, null_values=())


@pytest.mark.parametrize("target", [".", "..", "../rows", "loop"])
def test_f10_a_loop_of_links_is_refused(folder: Path, target: str) -> None:
    (folder / "rows" / "loop").symlink_to(target)
    with pytest.raises(UnsafeInputError, match="loop"):
        open_source("rows", base=folder, null_values=())


def test_two_folders_that_link_to_each_other_are_refused(folder: Path) -> None:
    for here, there in (("one", "two"), ("two", "one")):
        (folder / "rows" / here).mkdir()
        (folder / "rows" / here / "link").symlink_to(f"../{there}")
    with pytest.raises(UnsafeInputError, match="link"):
        open_source("rows", base=folder, null_values=())


def test_a_link_to_nowhere_is_refused(folder: Path) -> None:
    (folder / "rows" / "gone.csv").symlink_to("nothing.csv")
    with pytest.raises(UnsafeInputError, match="nowhere"):
        open_source("rows", base=folder, null_values=())


def test_each_real_file_is_read_once_under_its_own_name(folder: Path) -> None:
    (folder / "rows" / "0.csv").symlink_to("sub/b.csv")
    (folder / "rows" / "again").symlink_to("sub")
    source = open_source("rows", base=folder, null_values=())
    assert [file.name for file in source.files] == ["a.csv", "sub/b.csv"]
    assert source.skipped == ("0.csv", "again/b.csv")


def test_a_file_that_the_user_names_may_be_a_link(folder: Path) -> None:
    (folder / "rows" / "link.csv").symlink_to(folder / "outside.csv")
    assert names(folder, "rows/link.csv") == ["link.csv"]


def test_special_files_are_refused_without_opening_them(folder: Path) -> None:
    os.mkfifo(folder / "rows" / "pipe.csv")
    for source in ("rows", "rows/*.csv", "rows/pipe.csv"):
        with pytest.raises(UnsafeInputError, match=r"pipe\.csv.*a FIFO"):
            open_source(source, base=folder, null_values=())
    with pytest.raises(UnsafeInputError, match="a device"):
        open_source("/dev/zero", base=folder, null_values=())


def test_a_socket_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "rows")  # the address of a socket may be about 100 bytes long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.csv")
        with pytest.raises(UnsafeInputError, match="a socket"):
            open_source("rows", base=folder, null_values=())


def test_d20_a_fifo_that_takes_the_place_of_a_file_does_not_hang(folder: Path) -> None:
    source = open_source("rows/a.csv", base=folder, null_values=())
    (folder / "rows" / "a.csv").unlink()
    os.mkfifo(folder / "rows" / "a.csv")
    with pytest.raises(DataError, match="changed"):
        scan(source)


def test_hidden_and_unfinished_entries_are_skipped_and_listed(folder: Path) -> None:
    (folder / "rows" / ".hidden").mkdir()
    (folder / "rows" / ".hidden" / "h.csv").write_text("x\n")
    (folder / "rows" / "_tmp").mkdir()
    for name in (".a.csv", "_SUCCESS", "part.csv.tmp"):
        (folder / "rows" / name).write_text("x\n")
    os.mkfifo(folder / "rows" / "_pipe")
    source = open_source("rows", base=folder, null_values=())
    assert [file.name for file in source.files] == ["a.csv", "sub/b.csv"]
    assert source.skipped == (
        *(".a.csv", ".hidden/", "_SUCCESS", "_pipe", "_tmp/", "part.csv.tmp"),
    )


def test_a_glob_may_name_what_the_rule_would_skip(folder: Path) -> None:
    (folder / "rows" / "_raw").mkdir()
    (folder / "rows" / "_raw" / "c.csv").write_text("x\n")
    assert names(folder, "r*/_raw/*.csv") == ["rows/_raw/c.csv"]


def test_files_come_in_the_order_of_their_utf_8_names(folder: Path) -> None:
    for name in ("Z.csv", "z.csv", "\u00e9.csv", "\U0001f600.csv", "\uffee.csv", "a-1.csv"):
        (folder / "rows" / name).write_text("x\n")
    found = names(folder)
    assert found == sorted(found, key=str.encode)
    assert len(found) == 8
    assert found.index("\uffee.csv") < found.index("\U0001f600.csv")


@pytest.mark.parametrize(
    ("source", "path", "inside"),
    [
        ("rows", "rows/out.csv", True),
        ("rows", "rows", True),
        ("rows", "rows/sub/deep/out", True),
        ("rows", "runs", False),
        ("rows", "rows2/out.csv", False),
        ("rows", "rows/../runs/x", False),
        ("rows/a.csv", "rows/a.csv", True),
        ("rows/a.csv", "rows/b.csv", False),
        ("rows/*.csv", "rows/new.csv", True),
        ("rows/*.csv", "rows/new.parquet", False),
        ("rows/*.csv", "rows/sub/new.csv", False),
        ("rows/*/*.csv", "rows/run1", True),
        ("*.csv", "runs", False),
        ("**/*.csv", "runs/1/p.csv", True),
        ("**/*.csv", "_runs/1/p.csv", False),
        ("**", "runs", True),
        ("sample:drug200", "drug200", False),
        ("gone/*.csv", "gone/x.csv", True),
    ],
)
def test_an_output_inside_the_input_is_seen(
    folder: Path, source: str, path: str, inside: bool
) -> None:
    assert source_contains(source, folder, folder / path) is inside


def test_an_output_behind_a_link_into_the_input_is_seen(folder: Path) -> None:
    (folder / "elsewhere").symlink_to("rows")
    assert source_contains("rows", folder, folder / "elsewhere" / "out.csv")
    assert source_contains("elsewhere/*.csv", folder, folder / "rows" / "out.csv")
