"""Arrow IPC files and streams: plain types only, whole or refused, every batch validated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from batchtrain.errors import BatchtrainError, DataError, SchemaMismatchError, UnsafeInputError
from batchtrain.tables import Source, Unsupported, open_source, read_blocks, scan
from tests.support.sources import write_arrow

TABLE = pa.table({"a": [1, 2, 3], "t": ["x", "y", None]})


def source_of(folder: Path, data: bytes | None = None, name: str = "t.arrow") -> Source:
    if data is not None:
        (folder / name).write_bytes(data)
    return open_source(name, base=folder, null_values=())


def bytes_of(folder: Path, table: pa.Table, *, stream: bool = False) -> bytes:
    write_arrow(folder / "made", table, stream=stream, batch_rows=2)
    return (folder / "made").read_bytes()


@pytest.fixture
def registered() -> Iterator[list[bytes]]:
    """An extension type that notes with which bytes it was called, as a harmful one could be."""
    called: list[bytes] = []

    class Harmful(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.int64(), "test.harmful")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"payload"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> Harmful:
            called.append(data)
            return cls()

    pa.register_extension_type(Harmful())
    called.clear()
    yield called
    pa.unregister_extension_type("test.harmful")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_the_layout_is_that_of_the_content(tmp_path: Path, stream: bool, name: str) -> None:
    source = source_of(tmp_path, bytes_of(tmp_path, TABLE, stream=stream), name)
    assert source.kind == "arrow"
    blocks = list(read_blocks(source, {"t": "string", "a": "number"}, block_rows=2))
    assert [block.to_pydict() for block in blocks] == [
        {"t": ["x", "y"], "a": [1.0, 2.0]},
        {"t": [None], "a": [3.0]},
    ]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_files_are_read(tmp_path: Path, compression: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), TABLE.schema, options=options) as writer:
        writer.write_table(TABLE)
    assert scan(source_of(tmp_path)).columns == {"a": "integer", "t": "string"}


def test_a_list_is_unsupported_and_dictionaries_are_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "l": [[1], [2]],
            "d": pa.array(["p", "q"]).dictionary_encode(),
            "e": pa.array(["r", None]).dictionary_encode(),
            "u": pa.array([1, 2], pa.uint64()),
        }
    )
    source = source_of(tmp_path, bytes_of(tmp_path, table, stream=True))
    assert scan(source).columns == {
        "l": Unsupported("list<item: int64>"),
        "d": "string",
        "e": "string",
        "u": "integer",
    }
    (block,) = read_blocks(source, {"e": "string"})
    assert block.to_pydict() == {"e": ["r", None]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_an_extension_type_is_refused_before_arrow_sees_it(
    tmp_path: Path, registered: list[bytes], stream: bool, nested: bool
) -> None:
    array = pa.ExtensionArray.from_storage(_harmful_type(), pa.array([1, 2]))
    column = pa.StructArray.from_arrays([array], ["inner"]) if nested else array
    data = bytes_of(tmp_path, pa.table({"a": column}), stream=stream)
    registered.clear()
    source = source_of(tmp_path, data)
    with pytest.raises(UnsafeInputError, match=r"t\.arrow: expected plain Arrow types"):
        scan(source)
    assert registered == []


def _harmful_type() -> pa.DataType:
    """The registered type, taken from a stream that has it."""
    field = pa.field(
        "x",
        pa.int64(),
        metadata={
            b"ARROW:extension:name": b"test.harmful",
            b"ARROW:extension:metadata": b"payload",
        },
    )
    return pa.ipc.read_schema(pa.schema([field]).serialize()).field(0).type


def cut(data: bytes) -> bytes:
    return data[:-9]


BAD_FILES: dict[str, tuple[bool, Callable[[bytes], bytes], list[str]]] = {
    "cut file": (False, cut, ["ARROW1", "ending"]),
    "cut stream": (True, cut, ["end mark"]),
    "stream cut between batches": (True, lambda data: data[:-8], ["end mark"]),
    "two streams": (True, lambda data: data + data, ["more bytes behind"]),
    "no arrow": (False, lambda data: b"a,b\n1,2\n3,4\n", ["beginning b'a,b"]),
    "feather 1": (False, lambda data: b"FEA1" + data, ["Feather version 1"]),
    "empty": (False, lambda data: b"", ["0 bytes"]),
    "magic only": (False, lambda data: b"ARROW1\0\0ARROW1", ["footer"]),
    "footer longer than the file": (
        False,
        lambda data: data[:-10] + (10**6).to_bytes(4, "little") + b"ARROW1",
        ["footer of 1000000 bytes"],
    ),
    "garbage footer": (
        False,
        lambda data: b"ARROW1\0\0" + b"\7" * 80 + (40).to_bytes(4, "little") + b"ARROW1",
        ["damage"],
    ),
}


@pytest.mark.parametrize(("stream", "spoil", "fragments"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_not_whole_is_refused(
    tmp_path: Path, stream: bool, spoil: Callable[[bytes], bytes], fragments: list[str]
) -> None:
    source = source_of(tmp_path, spoil(bytes_of(tmp_path, TABLE, stream=stream)))
    with pytest.raises(DataError) as caught:
        scan(source)
    message = str(caught.value)
    assert [each for each in [*fragments, "t.arrow", "expected"] if each not in message] == []


@pytest.mark.parametrize("stream", [False, True])
def test_no_flipped_byte_reads_beyond_a_buffer(tmp_path: Path, stream: bool) -> None:
    """Arrow trusts offsets; without the validation a text could begin outside of its buffer."""
    table = pa.table({"t": ["abcdefgh"] * 5, "d": pa.array(["u", "v"] * 2 + ["u"])})
    table = table.set_column(1, "d", table["d"].combine_chunks().dictionary_encode())
    data = bytes_of(tmp_path, table, stream=stream)
    refused = 0
    for place in range(8, len(data), len(data) // 80):
        spoilt = bytearray(data)
        spoilt[place] ^= 0x7F
        try:
            source = source_of(tmp_path, bytes(spoilt))
            for block in read_blocks(source, {"t": "string", "d": "string"}):
                block.to_pylist()
        except BatchtrainError:
            refused += 1
    assert refused > 5


def test_columns_of_one_name_and_unknown_columns_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="'a' 2 times"):
        scan(source_of(tmp_path, bytes_of(tmp_path, twice)))
    source = source_of(tmp_path, bytes_of(tmp_path, TABLE))
    with pytest.raises(SchemaMismatchError, match="only 'a'"):
        list(read_blocks(source, {"z": "number"}))
