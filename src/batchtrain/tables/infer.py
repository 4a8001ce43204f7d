"""What the text cells of a column can be read as, decided over all its rows."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.tables.parse import (
    BOOLEAN_CELL,
    INTEGER_CELL,
    MAX_EXACT,
    NUMBER_CELL,
    bare,
    mask,
    parse_numbers,
    try_cast,
)
from batchtrain.tables.types import ColumnType

__all__ = [
    "Evidence",
    "column_type_of",
    "evidence_of_cells",
    "evidence_of_integers",
    "evidence_of_type",
    "family",
]

CANONICAL_INTEGER = r"^-?(0|[1-9][0-9]*)$"


class Evidence(IntFlag):
    """What has been seen in a column; flags of many blocks are joined with `|`, in any order."""

    NOTHING = 0
    INTEGER = 1
    """An int64 as one writes it: no leading zeros."""
    WIDE = 2
    """An int64 beyond 2**53, which float64 would change."""
    DIGITS = 4
    """Only digits, but no int64: leading zeros, or too many. An identifier, kept as text."""
    NUMBER = 8
    """A number with a point or an exponent, or `inf`."""
    BOOLEAN = 16
    """`true` or `false`, in any case."""
    TEXT = 32
    """Anything else, `nan` included (unless it is listed as a null value)."""


NUMERIC = Evidence.INTEGER | Evidence.WIDE | Evidence.DIGITS | Evidence.NUMBER


def evidence_of_cells(cells: pa.Array) -> Evidence:
    """What is seen in text cells `[n]`; null says nothing."""
    cells = cells.drop_null()
    if not len(cells):
        return Evidence.NOTHING
    integers = try_cast(cells, pa.int64())
    if integers is not None and pc.all(pc.equal(integers.cast(pa.string()), cells)).as_py():
        return evidence_of_integers(integers)
    numbers = try_cast(cells, pa.float64())
    if numbers is not None and _is_plain(cells, numbers):
        return Evidence.NUMBER
    return _by_pattern(bare(cells))


def evidence_of_type(column_type: ColumnType | None) -> Evidence:
    """What the type of a Parquet column says; None for a column of nulls."""
    known = {
        "integer": Evidence.INTEGER,
        "number": Evidence.NUMBER,
        "boolean": Evidence.BOOLEAN,
        "string": Evidence.TEXT,
    }
    return known[column_type] if column_type else Evidence.NOTHING


def column_type_of(evidence: Evidence) -> ColumnType:
    """The narrowest type that holds every cell exactly; "string" where there is none to hold."""
    kind = family(evidence)
    if kind == "boolean":
        return "boolean"
    is_identifier = evidence & Evidence.DIGITS or (
        evidence & Evidence.WIDE and evidence & Evidence.NUMBER
    )
    if kind != "numeric" or is_identifier:
        return "string"
    return "number" if evidence & Evidence.NUMBER else "integer"


def family(evidence: Evidence) -> str:
    """Files of one source must agree on this: numeric, boolean, string, or "" for no cell."""
    if not evidence:
        return ""
    if not evidence & ~NUMERIC:
        return "numeric"
    return "boolean" if evidence == Evidence.BOOLEAN else "string"


def evidence_of_integers(integers: pa.Array) -> Evidence:
    """What is seen in int64 values `[n]`; null says nothing."""
    extremes = pc.min_max(integers.drop_null()).as_py()
    if extremes["max"] is None:
        return Evidence.INTEGER
    is_wide = extremes["max"] > MAX_EXACT or extremes["min"] < -MAX_EXACT
    return Evidence.INTEGER | (Evidence.WIDE if is_wide else Evidence.NOTHING)


def _is_plain(cells: pa.Array, numbers: pa.Array) -> bool:
    """Whether no cell could be anything but a number; cheaper than a pattern on every cell."""
    values = np.asarray(numbers)
    if not np.isfinite(values).all() or (np.abs(values) >= MAX_EXACT).any():
        return False
    zero_first = pc.or_(
        pc.starts_with(cells, "+"), pc.or_(pc.starts_with(cells, "0"), pc.starts_with(cells, "-0"))
    )
    candidates = cells.filter(zero_first)
    candidates = candidates.filter(pc.not_equal(candidates, "0"))
    return not pc.any(pc.invert(pc.match_substring(candidates, "."))).as_py()


def _by_pattern(cells: pa.Array) -> Evidence:
    is_number = mask(pc.match_substring_regex(cells, NUMBER_CELL))
    is_boolean = mask(pc.match_substring_regex(cells, BOOLEAN_CELL))
    if not (is_number | is_boolean).all():
        return Evidence.TEXT
    found = Evidence.BOOLEAN if is_boolean.any() else Evidence.NOTHING
    is_whole = mask(pc.match_substring_regex(cells, INTEGER_CELL))
    whole = cells.filter(pa.array(is_whole))
    if len(whole):
        integers = try_cast(whole, pa.int64())
        canonical = pc.all(pc.match_substring_regex(whole, CANONICAL_INTEGER)).as_py()
        found |= (
            evidence_of_integers(integers)
            if integers is not None and canonical
            else Evidence.DIGITS
        )
    fractional = cells.filter(pa.array(is_number & ~is_whole))
    if len(fractional):
        found |= Evidence.TEXT if parse_numbers(fractional)[1].any() else Evidence.NUMBER
    return found
