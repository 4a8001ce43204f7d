"""Dates and times to microseconds since 1970 in UTC, whole columns at a time."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.tables.parse import Mask, mask, try_cast

__all__ = ["MICROSECONDS", "is_temporal", "parse_times", "temporal_to_times"]

MICROSECONDS = pa.timestamp("us")
IN_UTC = pa.timestamp("us", "UTC")
ZONED_CELL = r"[T ][0-9:.]+(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
FINER_DIGITS = r"(\.[0-9]{6})[0-9]+"


def is_temporal(arrow_type: pa.DataType) -> bool:
    """Whether values of a type are points in time: dates and timestamps of any unit."""
    return bool(pa.types.is_date(arrow_type) or pa.types.is_timestamp(arrow_type))


def temporal_to_times(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Bring dates and timestamps to one unit; what is finer than a microsecond is cut off.

    Returns:
        timestamp[us] `[n]`, and which values lie beyond its 290,000 years.
    """
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = pc.floor_temporal(values, unit="microsecond")
    times = _cast(values, MICROSECONDS)
    return times, mask(pc.is_null(times)) & mask(pc.is_valid(values))


def parse_times(cells: pa.Array) -> tuple[pa.Array, Mask]:
    """Read text of ISO 8601: `2026-11-21`, `2026-11-21 08:30`, `2026-11-21T08:30:00.5+01:00`.

    A time without a zone counts as UTC.

    Returns:
        timestamp[us] `[n]`, null where the text is null or does not fit, and which do not fit.
    """
    cells = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), FINER_DIGITS, r"\1")
    is_zoned = pc.fill_null(pc.match_substring_regex(cells, ZONED_CELL), False)
    nothing = pa.scalar(None, pa.string())
    plain = _cast(pc.if_else(is_zoned, nothing, cells), MICROSECONDS)
    times = plain
    if pc.any(is_zoned).as_py():
        zoned = _cast(pc.if_else(is_zoned, cells, nothing), IN_UTC)
        times = pc.coalesce(plain, zoned.cast(MICROSECONDS))
    return times, mask(pc.is_null(times)) & mask(pc.is_valid(cells))


def _cast(values: pa.Array, arrow_type: pa.DataType) -> pa.Array:
    """The times, null also where a value is none."""
    times = try_cast(values, arrow_type)
    if times is None:
        # Slow, but it is met only on the way to an error.
        each = [try_cast(values.slice(place, 1), arrow_type) for place in range(len(values))]
        times = pa.concat_arrays([pa.nulls(1, arrow_type) if one is None else one for one in each])
    return times
