"""Columns that are probably not what they were inferred as: identifiers, and text of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.preparation.survey import Survey
from batchtrain.tables import ColumnType, read_blocks

__all__ = ["suspicions"]

FEWEST_ROWS = 20
"""Among fewer rows all values may differ by chance."""

DAY = r"([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})"
AS_NUMBERS = "write them as plain numbers, such as 1234.5, to have them learned as numbers"
AS_PARTS = "exclude it, or write what matters of it (year, month, weekday) as numbers"
LOOKS: Mapping[str, tuple[str, str]] = {
    "dates": (rf"^\s*{DAY}([ T][0-9:.]+(Z|[+-][0-9:]+)?)?\s*$", AS_PARTS),
    "percentages": (r"^\s*[+-]?[0-9]+([.,][0-9]+)?\s*%\s*$", AS_NUMBERS),
    "numbers with thousands separators": (
        r"^\s*[+-]?[0-9]{1,3}((,[0-9]{3})+(\.[0-9]+)?|([.' ][0-9]{3})+(,[0-9]+)?)\s*$",
        AS_NUMBERS,
    ),
    "numbers with a decimal comma": (r"^\s*[+-]?[0-9]+,[0-9]+\s*$", AS_NUMBERS),
}
"""What text looks like, to the pattern of a cell and what to do about it."""


def suspicions(found: Survey) -> list[str]:
    """One sentence for each such column, from the first rows (at most 65,536).

    Args:
        found: What was decided about the rows.
    """
    types: dict[str, ColumnType] = {}
    for name, column in found.data.columns.items():
        held = found.schema.columns[name]
        if column.kind == "categorical" and held == "string":
            types[name] = "string"
        elif column.kind in {"numeric", "categorical"} and held == "integer":
            types[name] = "integer"
    if not types:
        return []
    table = next(read_blocks(found.source, types))
    first = "the first " if table.num_rows < found.schema.num_rows else ""
    return [note for name in types for note in _notes(name, table[name].drop_null(), first)]


def _notes(name: str, values: pa.ChunkedArray, first: str) -> Iterator[str]:
    if pa.types.is_string(values.type):
        looks = next((look for look in LOOKS if _most(values, LOOKS[look][0])), None)
        if looks is not None:
            pattern, advice = LOOKS[looks]
            cell = values.filter(pc.match_substring_regex(values, pattern))[0].as_py()
            yield (
                f"column {name!r} holds text, most of which looks like {looks} ({cell!r}): each is "
                f"a name without order; {advice}"
            )
            return
    if len(values) >= FEWEST_ROWS and _all_differ(values):
        yield (
            f"column {name!r} has another value in each of {first}{len(values):,} rows: if it is "
            f"an identifier, add `exclude: [{name}]` under data"
        )


def _most(values: pa.ChunkedArray, pattern: str) -> bool:
    matching = pc.sum(pc.match_substring_regex(values, pattern)).as_py() or 0
    return bool(2 * matching > len(values))


def _all_differ(values: pa.ChunkedArray) -> bool:
    """Whether no value comes twice; of whole numbers, which may be a quantity, if they count."""
    if pa.types.is_integer(values.type):
        steps = np.diff(values.to_numpy())
        return bool((steps > 0).all() or (steps < 0).all())
    return len(pc.unique(values)) == len(values)
