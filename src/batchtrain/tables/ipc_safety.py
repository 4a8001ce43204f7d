"""Refuse Arrow IPC files that name an extension type, or are cut off, before Arrow sees them."""

from __future__ import annotations

import os
from typing import BinaryIO, Literal, TypeAlias

from batchtrain.errors import DataError, UnsafeInputError

__all__ = ["IpcLayout", "refuse_unsafe_ipc"]

IpcLayout: TypeAlias = Literal["file", "stream"]

# The layouts of https://arrow.apache.org/docs/format/Columnar.html
# #serialization-and-interprocess-communication-ipc
MAGIC = b"ARROW1"
CONTINUATION = b"\xff\xff\xff\xff"
END_OF_STREAM = CONTINUATION + b"\0\0\0\0"
FEATHER_1 = b"FEA1"
EXTENSION_KEY = b"ARROW:extension:name"


def refuse_unsafe_ipc(file: BinaryIO, where: str) -> IpcLayout:
    """Let an Arrow IPC file or stream pass only if its schema names no extension type.

    Merely opening such a file with pyarrow calls the registered class with bytes of the file. The
    schema stands uncompressed in the first message, and in a file once more in the footer; both
    are searched. The file is left at its beginning.

    Returns:
        Which of the two layouts it has.

    Raises:
        UnsafeInputError: If an extension type is named.
        DataError: If this is neither of the two, or its end is cut off.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if head.startswith(MAGIC):
        layout: IpcLayout = "file"
        metadata = _message(file, 8, size) + _footer(file, size, where)
    else:
        layout = "stream"
        metadata = _message(file, 0, size)
        if not metadata or not head.startswith(CONTINUATION):
            raise _no_arrow(head, size, where)
        _require_end(file, where)
    file.seek(0)
    if EXTENSION_KEY in metadata:
        raise UnsafeInputError(
            f"{where}: expected plain Arrow types, found an extension type in the schema. Such a "
            "type can run code when it is read. Write the table again with plain numbers, text "
            "or lists"
        )
    return layout


def _message(file: BinaryIO, start: int, size: int) -> bytes:
    """The metadata of the message at a place; empty where there is none."""
    file.seek(start)
    length = file.read(4)
    if length == CONTINUATION:
        length = file.read(4)
    count = int.from_bytes(length, "little")
    return file.read(count) if len(length) == 4 and 0 < count <= size - file.tell() else b""


def _footer(file: BinaryIO, size: int, where: str) -> bytes:
    """The metadata at the end of a file, before its length and the closing magic."""
    file.seek(max(size - 10, 0))
    tail = file.read(10)
    length = int.from_bytes(tail[:4], "little")
    problem = ""
    if len(tail) < 10 or not tail.endswith(MAGIC):
        problem = f"the ending {tail[-6:]!r} in place of {MAGIC!r}"
    elif length > size - 18:
        problem = f"a footer of {length} bytes in a file of {size}"
    if problem:
        raise DataError(
            f"{where}: expected a whole Arrow IPC file, found {problem}. "
            "Write the file again, or remove it from the input"
        )
    file.seek(size - 10 - length)
    return file.read(length)


def _require_end(file: BinaryIO, where: str) -> None:
    """A stream may end without its mark, but then nobody can tell that it is whole."""
    file.seek(-len(END_OF_STREAM), os.SEEK_END)
    tail = file.read()
    if tail != END_OF_STREAM:
        raise DataError(
            f"{where}: expected an Arrow stream with its end mark, found the ending {tail!r}: it "
            "is cut off, or its writer was not closed. Write the file again"
        )


def _no_arrow(head: bytes, size: int, where: str) -> DataError:
    if size == 0:
        what = "an empty file (0 bytes)"
    elif head.startswith(FEATHER_1):
        what = "Feather version 1"
    else:
        what = f"the beginning {head!r}"
    return DataError(
        f"{where}: expected an Arrow IPC file or stream, found {what}. Write the file again, such "
        "as with `pyarrow.feather.write_feather(table, path)`"
    )
