"""Refuse Arrow types that can run code, before any data of theirs is read."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from batchtrain.errors import DataError, UnsafeInputError

__all__ = ["refuse_unsafe_footer", "refuse_unsafe_types"]

EXTENSION_KEY = b"ARROW:extension:name"
SCHEMA_KEY = b"ARROW:schema"

SAFE_LEAVES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_temporal,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def refuse_unsafe_types(schema: pa.Schema, where: str) -> None:
    """Let a schema pass only if every type in it, at any depth, is on the list of plain types.

    An extension type names a class that turns bytes into objects. Once a library has registered
    such a class (`ray.data` does), reading a value can run code that came with the file. A field
    that only carries the name of an extension is refused too: it is inert until someone imports
    the class.

    Args:
        schema: The schema of a file or an in-memory table.
        where: What is read, for the message.

    Raises:
        UnsafeInputError: It names the column and the type.
    """
    for column in schema:
        for path, found in _unsafe(column, column.name):
            raise UnsafeInputError(
                f"{where}: expected plain Arrow types, found {found} in column {path!r}. Such a "
                "type can run code when it is read. Write the table again with plain numbers, "
                "text or lists"
            )


def refuse_unsafe_footer(file: BinaryIO, where: str) -> None:
    """Let a Parquet file pass only if the Arrow schema in its footer names no extension type.

    Merely opening such a file with pyarrow calls the registered class with bytes of the file, so
    the footer is searched before Arrow sees it. The file is left at its beginning.

    Raises:
        UnsafeInputError: If an extension type is named, or the stored schema cannot be decoded.
        DataError: If this is no Parquet file, or its end is cut off.
    """
    footer = _footer(file, where)
    file.seek(0)
    for found in re.finditer(re.escape(SCHEMA_KEY), footer):
        schema = _decoded(footer, found.end())
        if schema is None or EXTENSION_KEY in schema:
            what = "an Arrow schema that cannot be read" if schema is None else "an extension type"
            raise UnsafeInputError(
                f"{where}: expected plain Arrow types, found {what} in the footer. Such a type "
                "can run code when it is read. Write the table again with plain numbers, text "
                "or lists"
            )


def _footer(file: BinaryIO, where: str) -> bytes:
    """The Thrift bytes between the last row group and the closing magic."""
    size = file.seek(0, os.SEEK_END)
    problem = ""
    if size == 0:
        problem = "an empty file (0 bytes)"
    elif size < 12:
        problem = f"a file of {size} bytes"
    else:
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == b"PARE":
            problem = "an encrypted file"
        elif tail[4:] != b"PAR1":
            problem = f"the ending {tail[4:]!r} in place of b'PAR1'"
        elif length > size - 12:
            problem = f"a footer of {length} bytes in a file of {size}"
    if problem:
        raise DataError(
            f"{where}: expected a whole, unencrypted Parquet file, found {problem}. "
            "Write the file again, or remove it from the input"
        )
    file.seek(size - 8 - length)
    return file.read(length)


def _decoded(footer: bytes, start: int) -> bytes | None:
    """The base64 value that follows a key: a field header, a length in 7-bit groups, the text."""
    if footer[start : start + 1] != b"\x18":  # Thrift compact: the next field, of type binary
        return None
    position, length, shift = start + 1, 0, 0
    while position < len(footer) and shift < 35:
        byte = footer[position]
        length |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            break
    try:
        return base64.b64decode(footer[position : position + length], validate=True)
    except binascii.Error:
        return None


def _unsafe(column: pa.Field, path: str) -> Iterator[tuple[str, str]]:
    """Path and description of every type below a field that is not plain."""
    if EXTENSION_KEY in (column.metadata or {}):
        name = column.metadata[EXTENSION_KEY].decode("utf-8", "replace")
        yield path, f"the extension type {name!r}"
    yield from _unsafe_type(column.type, path)


def _unsafe_type(found: pa.DataType, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, pa.BaseExtensionType):
        yield path, f"the extension type {found.extension_name!r}"
    elif pa.types.is_dictionary(found) or pa.types.is_run_end_encoded(found):
        yield from _unsafe_type(found.value_type, path)
    elif pa.types.is_nested(found):
        for place in range(found.num_fields):
            child = found.field(place)
            yield from _unsafe(child, f"{path}.{child.name}")
    elif not any(is_leaf(found) for is_leaf in SAFE_LEAVES):
        yield path, f"the unknown type {found}"
