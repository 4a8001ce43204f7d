"""Bring a table to the types that are asked for, without loss, or say which cell does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.errors import SchemaMismatchError
from batchtrain.tables.names import require_columns
from batchtrain.tables.parse import (
    MAX_EXACT,
    Mask,
    is_wide_text,
    mask,
    parse_booleans,
    parse_integers,
    parse_numbers,
    try_cast,
)
from batchtrain.tables.times import is_temporal, parse_times, temporal_to_times
from batchtrain.tables.types import ARROW_TYPES, ColumnType, Unsupported, column_type
from batchtrain.tables.wide import WIDE_MISFITS, to_images, to_vectors

__all__ = ["conform", "other_rows", "plain_values"]

FOR_A_BUNDLE = (
    "Correct the value, or make it a missing one: a bundle reads a column as its training did"
)


def conform(
    table: pa.Table,
    columns: Mapping[str, ColumnType],
    *,
    first_row: int,
    where: str,
    row_in_file: int | None = None,
    has_header: bool = True,
    for_bundle: bool = False,
) -> pa.Table:
    """Give the asked columns, in the asked order, in their one Arrow type each.

    Only casts without loss are made: a whole number becomes a float up to 2**53, a float without
    a fraction becomes an integer, 0 and 1 become flags, text that spells a value becomes it, and
    integers and flags become their text; floats without a fraction too, since pandas keeps whole
    numbers as such where one is missing. Dates and times lose what is finer than a microsecond, the
    numbers of lists what is finer than float32.
    NaN is a missing value: it comes back as null. Columns that are not asked for are ignored.

    Args:
        table: Any rows with plain Arrow types (see `refuse_unsafe_types`).
        columns: Name to type.
        first_row: The `row_id` of the table's first row, for messages.
        where: The file or place, for messages.
        row_in_file: How many rows of its text file come before the table, for messages.
        has_header: Whether column names stand before the rows of that file.
        for_bundle: Whether the types are those of a bundle, which nobody can change, for messages.

    Returns:
        The same number of rows; one chunk a column.

    Raises:
        SchemaMismatchError: If a column is missing, or a cell does not fit its type.
    """
    require_columns(table.column_names, columns, where)
    arrays = {}
    for name, wanted in columns.items():
        if wanted == "image":
            values, converted, bad = to_images(table.column(name))
        else:
            values = plain_values(table.column(name))
            converted, bad = _convert(values, wanted)
        if bad.any():
            row = int(np.argmax(bad))
            place = f"row_id {first_row + row}"
            if row_in_file is not None:
                after = "after the header; " if has_header else ""
                place = f"row {row_in_file + row + 1} ({after}{place})"
            raise _misfit(name, wanted, values, bad, f"{where}, {place}", for_bundle)
        arrays[name] = converted
    return pa.table(arrays)


def plain_values(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array of null, int64, float64 (NaN as null), bool or string.

    An unsupported type, and unsigned integers beyond int64, come back as they are.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # more than 2 GB of text
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found = column_type(values.type)
    if found is None or isinstance(found, Unsupported):
        return values
    plain = try_cast(values, ARROW_TYPES[found])
    if plain is None:
        return values
    if found == "number" and pc.any(pc.is_nan(plain)).as_py():
        plain = pc.if_else(pc.is_nan(plain), pa.scalar(None, pa.float64()), plain)
    return plain


def _convert(values: pa.Array, wanted: ColumnType) -> tuple[pa.Array, Mask]:
    """The values in the wanted type, and which of them do not fit it."""
    arrow_type = ARROW_TYPES[wanted]
    present = mask(pc.is_valid(values))
    if not present.any():
        return pa.nulls(len(values), arrow_type), present
    if wanted == "vector":
        return to_vectors(values)
    if values.type == arrow_type:
        return values, np.zeros(len(values), dtype=np.bool_)
    for found, convert in CONVERSIONS[wanted].items():
        if values.type == ARROW_TYPES[found]:
            return convert(values)
    if wanted == "time" and is_temporal(values.type):
        return temporal_to_times(values)
    if pa.types.is_uint64(values.type):
        return values, mask(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())))
    return values, present


def _integers_to_numbers(values: pa.Array) -> tuple[pa.Array, Mask]:
    exact = pc.and_(pc.less_equal(values, MAX_EXACT), pc.greater_equal(values, -MAX_EXACT))
    return values.cast(pa.float64(), safe=False), ~mask(pc.fill_null(exact, True))


def _numbers_to_integers(values: pa.Array) -> tuple[pa.Array, Mask]:
    floats = np.asarray(pc.fill_null(values, 0.0))
    bad = ~((floats == np.trunc(floats)) & (np.abs(floats) < 2.0**63))
    return values.cast(pa.int64(), safe=False), bad


def _to_booleans(values: pa.Array) -> tuple[pa.Array, Mask]:
    true = pc.equal(values, 1)
    return true, ~mask(pc.fill_null(pc.or_(true, pc.equal(values, 0)), True))


def _to_text(values: pa.Array) -> tuple[pa.Array, Mask]:
    return values.cast(pa.string()), np.zeros(len(values), dtype=np.bool_)


def _numbers_to_text(values: pa.Array) -> tuple[pa.Array, Mask]:
    """The text of the integers that they are; beyond 2**53 a float may be another one, rounded."""
    integers, bad = _numbers_to_integers(values)
    bad |= np.abs(np.asarray(pc.fill_null(values, 0.0))) >= MAX_EXACT
    return integers.cast(pa.string()), bad


Conversion = Callable[[pa.Array], tuple[pa.Array, Mask]]

CONVERSIONS: Mapping[ColumnType, Mapping[ColumnType, Conversion]] = {
    "integer": {"number": _numbers_to_integers, "string": parse_integers},
    "number": {"integer": _integers_to_numbers, "string": parse_numbers},
    "boolean": {"integer": _to_booleans, "number": _to_booleans, "string": parse_booleans},
    "string": {"integer": _to_text, "number": _numbers_to_text, "boolean": _to_text},
    "time": {"string": parse_times},
}
"""Wanted type to found type to how one becomes the other; what is not listed does not."""


TOO_WIDE = (
    "It is too large to be exact, since a number holds whole numbers up to 2**53: declare the "
    "column categorical, or exclude it"
)


def _misfit(
    name: str, wanted: ColumnType, values: pa.Array, bad: Mask, where: str, for_bundle: bool
) -> SchemaMismatchError:
    cell = values[int(np.argmax(bad))]
    if wanted in WIDE_MISFITS:
        expected, said, advice = WIDE_MISFITS[wanted](cell)
        advice = FOR_A_BUNDLE if for_bundle else advice
        return SchemaMismatchError(
            f"column {name!r} of {where}: expected {expected}, found {said}"
            f"{other_rows(bad)}. {advice}"
        )
    try:
        found = cell.as_py()
    except (OverflowError, ValueError):  # a time that Python cannot hold
        found = cell.cast(pa.int64()).as_py()
    kind = column_type(values.type)
    if for_bundle:
        advice = FOR_A_BUNDLE
    elif kind == "string" and wanted == "number" and is_wide_text(found):
        advice = TOO_WIDE
    elif wanted == "time":
        advice = "Write times as 2026-11-21 or 2026-11-21T08:30:00Z, or as numbers"
    elif kind == "string":
        advice = (
            "Correct the cell; or list it under `data.null_values` if it means that the value is "
            "missing; or declare another kind for the column"
        )
    elif wanted == "string" and kind == "number":
        advice = (
            "Only whole numbers below 2**53 have one text: declare the column numeric, or write it "
            "as text"
        )
    elif kind == "integer" and wanted in {"number", "integer"}:
        advice = TOO_WIDE
    else:
        advice = "Convert the column, declare another kind for it, or exclude it"
    return SchemaMismatchError(
        f"column {name!r} of {where}: expected {wanted}, found {found!r}"
        f"{'' if kind == 'string' else f' of type {values.type}'}{other_rows(bad)}. {advice}"
    )


def other_rows(bad: Mask) -> str:
    """Where else a value is bad, after the first row that a message names; empty for nowhere."""
    more = int(bad.sum()) - 1
    return f" (and in at least {more} more row{'s' if more > 1 else ''})" if more else ""
