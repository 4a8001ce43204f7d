"""Lists of numbers and encoded images in the one form that they have in every block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.tables.parse import Mask, mask, parse_numbers
from batchtrain.tables.types import ARROW_TYPES, is_bytes, is_list, is_text

__all__ = ["WIDE_MISFITS", "to_images", "to_vectors"]

Lengths = npt.NDArray[np.int64]

MAX_SHOWN = 80


def to_vectors(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Read lists of numbers, and lists of such lists, as flat lists of float32.

    Inner lists follow one another; within a row they must be of one length at each depth.

    Args:
        values: Lists `[n]` of any width of offsets, or of a fixed size.

    Returns:
        large_list<float32> `[n]`, null where the list is; and which rows do not fit: those with a
        missing value, with a number that is not finite or beyond float32, or with inner lists of
        several lengths.
    """
    present = mask(pc.is_valid(values))
    if not is_list(values.type):
        return values, present
    bad = np.zeros(len(values), dtype=np.bool_)
    lengths = _lengths(values, missing=0)
    leaves = values.flatten()
    while is_list(leaves.type):
        inner = _lengths(leaves, missing=-1)
        lengths, uneven = _sums(inner, lengths)
        bad |= uneven
        leaves = leaves.flatten()
    numbers = _float32(leaves)
    if numbers is None:
        return values, present
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    wrong = np.flatnonzero(~np.isfinite(numbers))
    bad[np.searchsorted(bounds, wrong, side="right") - 1] = True
    offsets = pa.array(bounds, pa.int64())
    missing = pa.array(~present)
    return pa.LargeListArray.from_arrays(offsets, pa.array(numbers), mask=missing), bad


def to_images(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, Mask]:
    """Read encoded images as bytes, from bytes or from the pairs of bytes and path of `datasets`.

    Args:
        column: Bytes, or structs with a field `bytes` and perhaps one `path`.

    Returns:
        The values as they were; large_binary `[n]`, null where there is no image; and which rows
        do not fit: those that have only a path, or no bytes at all.
    """
    wanted = ARROW_TYPES["image"]
    paths: npt.NDArray[np.bool_] = np.zeros(len(column), dtype=np.bool_)
    found = column
    if pa.types.is_struct(column.type) and _has_bytes(column.type):
        found = pc.struct_field(column, "bytes")
        if column.type.get_field_index("path") >= 0:
            paths = mask(pc.is_valid(pc.struct_field(column, "path")))
    if not (is_bytes(found.type) or pa.types.is_null(found.type)):
        return _joined(column), _joined(column), mask(pc.is_valid(column))
    images = _joined(found.cast(wanted))
    bad = paths & ~mask(pc.is_valid(images))
    return (_joined(column) if bad.any() else images), images, bad


def _joined(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    return pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values


def _has_bytes(struct: pa.DataType) -> bool:
    place = struct.get_field_index("bytes")
    if place < 0:
        return False
    found = struct.field(place).type
    return is_bytes(found) or bool(pa.types.is_null(found))


def _lengths(lists: pa.Array, *, missing: int) -> Lengths:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), missing), dtype=np.int64)


def _sums(inner: Lengths, counts: Lengths) -> tuple[Lengths, Mask]:
    """How many values the lists of each row hold together, and which rows' lists differ.

    Args:
        inner: The length of each list, -1 where it is missing.
        counts: How many lists each row has.
    """
    totals = np.zeros(len(counts), dtype=np.int64)
    uneven = np.zeros(len(counts), dtype=np.bool_)
    some = counts > 0
    if some.any():
        starts = (np.cumsum(counts) - counts)[some]
        totals[some] = np.add.reduceat(np.maximum(inner, 0), starts)
        least, most = np.minimum.reduceat(inner, starts), np.maximum.reduceat(inner, starts)
        uneven[some] = (least != most) | (least < 0)
    return totals, uneven


def _float32(leaves: pa.Array) -> npt.NDArray[np.float32] | None:
    """Numbers as float32, NaN where one is missing or cannot be read; None where none are."""
    found = leaves.type
    if is_text(found):  # numbers of JSON, which keep all their digits until here
        parsed, bad = parse_numbers(leaves.cast(pa.string()))
        numbers = np.where(bad, math.nan, np.asarray(pc.fill_null(parsed, math.nan)))
        with np.errstate(over="ignore"):
            return numbers.astype(np.float32)
    if not (pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_null(found)):
        return None
    cast = leaves.cast(pa.float32(), safe=False)
    return np.asarray(pc.fill_null(cast, math.nan), dtype=np.float32)


def _vector_misfit(cell: pa.Scalar) -> tuple[str, str, str]:
    """What a cell that is no vector should be, what it is, and what to do."""
    advice = "Correct the row, or exclude the column"
    if not is_list(cell.type):
        return "a list of numbers", _shown(cell), "Store lists, or declare another kind"
    for place, leaf in enumerate(_leaves(cell.as_py())):
        if leaf is None:
            return "a number at every place", f"none at place {place}", advice
        if isinstance(leaf, bool | bytes | dict) or not _is_within_float32(leaf):
            said = f"{str(leaf)[:MAX_SHOWN]!r} at place {place}"
            return "finite numbers within float32", said, advice
    return "inner lists of one length", "some of other lengths, or missing ones", advice


def _is_within_float32(leaf: Any) -> bool:
    try:
        number = float(leaf)
    except (TypeError, ValueError):
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float64(number).astype(np.float32)))


def _leaves(value: Any) -> Iterator[Any]:
    """The values of a list in their order; of an inner list that is missing none."""
    for each in value:
        if isinstance(each, list):
            yield from _leaves(each)
        elif each is not None or not any(isinstance(other, list) for other in value):
            yield each


def _image_misfit(cell: pa.Scalar) -> tuple[str, str, str]:
    """As `_vector_misfit`, for a cell that is no image."""
    if pa.types.is_struct(cell.type) and _has_bytes(cell.type):
        return (
            "the bytes of an image",
            f"only a path, {str(cell['path'].as_py())[:MAX_SHOWN]!r}",
            "Store the bytes of the files, as `embed_table_storage` of the datasets library does",
        )
    return "the bytes of an image", _shown(cell), "Store the bytes of PNG or JPEG files"


def _shown(cell: pa.Scalar) -> str:
    return f"{str(cell.as_py())[:MAX_SHOWN]!r} of type {cell.type}"


WIDE_MISFITS: Mapping[str, Callable[[pa.Scalar], tuple[str, str, str]]] = {
    "vector": _vector_misfit,
    "image": _image_misfit,
}
"""Column type to what a bad cell should be, what it is instead, and what to do about it."""
