"""Text cells to numbers and flags, whole columns at a time; what does not fit is marked."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "BOOLEAN_CELL",
    "INTEGER_CELL",
    "MAX_EXACT",
    "NUMBER_CELL",
    "Mask",
    "bare",
    "is_wide_text",
    "mask",
    "parse_booleans",
    "parse_integers",
    "parse_numbers",
    "try_cast",
]

Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_EXACT = 2**53
"""Up to here every whole number is a float64 of its own."""

INTEGER_CELL = r"^[+-]?[0-9]+$"
NUMBER_CELL = r"(?i)^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity)$"
BOOLEAN_CELL = r"(?i)^(true|false)$"

PROBE_ROWS = 64

DECIMAL = pa.decimal128(38, 0)
DECIMAL_CELL = r"^[+-]?[0-9]{1,38}$"


def parse_numbers(cells: pa.Array) -> tuple[pa.Array, Mask]:
    """Read text as float64; spaces around a number and a leading plus are allowed.

    `inf` and `infinity` are read as such. A `nan`, a finite number beyond float64, and a whole
    number that float64 cannot hold exactly do not fit.

    Args:
        cells: string `[n]`.

    Returns:
        float64 `[n]`, null where the text is, and which cells do not fit.
    """
    values = try_cast(cells, pa.float64())
    bad = np.zeros(len(cells), dtype=np.bool_)
    if values is None:
        cells = bare(cells)
        good = mask(pc.match_substring_regex(cells, NUMBER_CELL))
        bad = ~good & mask(pc.is_valid(cells))
        values = _only(cells, good).cast(pa.float64())
    bad |= mask(pc.is_nan(values))
    infinite = mask(pc.is_inf(values))
    if infinite.any():
        spelled = mask(pc.match_substring(cells, "n", ignore_case=True))
        bad |= infinite & ~spelled
    wide = mask(pc.greater_equal(pc.abs(values), float(MAX_EXACT)))
    if wide.any():
        bad |= wide & _is_inexact(cells)
    return values, bad


def parse_integers(cells: pa.Array) -> tuple[pa.Array, Mask]:
    """Read text as int64; `12.0` and `1e3` are whole numbers too.

    Returns:
        int64 `[n]`, null where the text is null or does not fit, and which cells do not fit.
    """
    values = try_cast(cells, pa.int64())
    # Arrow takes 0x10 for a number, which nobody means in a table.
    if values is not None and not pc.any(pc.match_substring(cells, "x")).as_py():
        return values, np.zeros(len(cells), dtype=np.bool_)
    cells = bare(cells)
    is_whole = mask(pc.match_substring_regex(cells, DECIMAL_CELL))
    whole = _only(cells, is_whole).cast(DECIMAL)
    fits = is_whole & _within_int64(whole)
    floats, bad = parse_numbers(_only(cells, ~is_whole))
    near = np.asarray(pc.fill_null(floats, np.nan))
    integral = ~bad & (np.abs(near) <= MAX_EXACT) & (near == np.trunc(near))
    values = pc.coalesce(
        _only(whole, fits).cast(pa.int64()), _only(floats, integral).cast(pa.int64())
    )
    return values, ~fits & ~integral & mask(pc.is_valid(cells))


def parse_booleans(cells: pa.Array) -> tuple[pa.Array, Mask]:
    """Read true and false in any case, 1 and 0.

    Returns:
        bool `[n]`, null where the text is null or does not fit, and which cells do not fit.
    """
    words = pc.ascii_lower(pc.utf8_trim_whitespace(cells))
    true = mask(pc.is_in(words, value_set=pa.array(["true", "1"])))
    false = mask(pc.is_in(words, value_set=pa.array(["false", "0"])))
    return pa.array(true, mask=~(true | false)), ~true & ~false & mask(pc.is_valid(cells))


def bare(cells: pa.Array) -> pa.Array:
    """The cells without space around them and without a leading plus before a digit or point."""
    trimmed = pc.utf8_trim_whitespace(cells)
    if not pc.any(pc.starts_with(trimmed, "+")).as_py():
        return trimmed
    return pc.replace_substring_regex(trimmed, r"^\+([0-9.]|(?i:inf))", r"\1")


def try_cast(values: pa.Array, arrow_type: pa.DataType) -> pa.Array | None:
    """The cast without loss, or None if one value does not allow it."""
    try:
        # A cast that fails is slow, since Arrow writes a message for each bad value; mostly the
        # first few values tell.
        if len(values) > PROBE_ROWS:
            pc.cast(values.slice(0, PROBE_ROWS), arrow_type)
        return pc.cast(values, arrow_type)
    except pa.ArrowInvalid:
        return None


def mask(flags: Any) -> Mask:
    """Arrow booleans as a numpy mask; null counts as False."""
    return np.asarray(pc.fill_null(flags, False), dtype=np.bool_)


def is_wide_text(cell: str) -> bool:
    """Whether a text is a whole number that is beyond 2**53."""
    return re.fullmatch(r"\s*[+-]?[0-9]+\s*", cell) is not None and abs(int(cell)) > MAX_EXACT


def _only(values: pa.Array, keep: Mask) -> pa.Array:
    return pc.if_else(pa.array(keep), values, pa.scalar(None, values.type))


def _within_int64(whole: pa.Array) -> Mask:
    low, high = (pa.scalar(limit, pa.decimal128(19, 0)) for limit in (-(2**63), 2**63 - 1))
    return mask(pc.and_(pc.greater_equal(whole, low), pc.less_equal(whole, high)))


def _is_inexact(cells: pa.Array) -> Mask:
    """Whole numbers written out in full that are beyond 2**53."""
    cells = bare(cells)
    is_whole = mask(pc.match_substring_regex(cells, INTEGER_CELL))
    exact = mask(pc.is_in(cells, value_set=pa.array([str(MAX_EXACT), str(-MAX_EXACT)])))
    return is_whole & ~exact
