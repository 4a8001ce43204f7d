"""The types a column can have here, and how Arrow types map to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa

__all__ = [
    "ARROW_TYPES",
    "PLAIN_TYPES",
    "ColumnType",
    "TableSchema",
    "Unsupported",
    "column_type",
    "is_bytes",
    "is_list",
    "is_text",
]

ColumnType: TypeAlias = Literal["integer", "number", "boolean", "string", "time", "vector", "image"]
"""A scan finds the first four; "time" is how a column is read that only orders rows, "vector" and
"image" are read only where a spec declares them."""

PLAIN_TYPES: Mapping[str, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "time": pa.timestamp("us"),
}
"""The column types of single values."""

ARROW_TYPES: Mapping[str, pa.DataType] = {
    **PLAIN_TYPES,
    "vector": pa.large_list(pa.float32()),
    "image": pa.large_binary(),
}
"""Column type to the one Arrow type that stands for it in every block."""


@dataclass(frozen=True)
class Unsupported:
    """A column of no type that a scan knows, such as a timestamp, a decimal or a list."""

    arrow_type: str

    def __str__(self) -> str:
        return f"unsupported({self.arrow_type})"


@dataclass(frozen=True)
class TableSchema:
    """What a full scan found; it depends on every row, never on the first block alone.

    Attributes:
        columns: Name to type, in the order of the first file. A column without a single value
            is a "string" column whose `missing` equals `num_rows`.
        num_rows: Rows of all files together, at least 1.
        missing: Cells without a value (NaN included); unsupported columns are left out.
        rows_of_files: Rows of each file, in the order of the source.
        wide: The "integer" columns with a value beyond 2**53, which no "number" holds exactly.
    """

    columns: dict[str, ColumnType | Unsupported]
    num_rows: int
    missing: dict[str, int] = field(default_factory=dict)
    rows_of_files: tuple[int, ...] = ()
    wide: frozenset[str] = frozenset()


def column_type(arrow_type: pa.DataType) -> ColumnType | Unsupported | None:
    """The column type of an Arrow type; None for Arrow's null type, which fits any column."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if pa.types.is_null(arrow_type):
        return None
    if pa.types.is_integer(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type):
        return "number"
    if pa.types.is_boolean(arrow_type):
        return "boolean"
    if is_text(arrow_type):
        return "string"
    return Unsupported(str(arrow_type))


def is_text(arrow_type: pa.DataType) -> bool:
    """Whether an Arrow type is one of the three that hold text."""
    return bool(
        pa.types.is_string(arrow_type)
        or pa.types.is_large_string(arrow_type)
        or pa.types.is_string_view(arrow_type)
    )


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether an Arrow type is one of the three that hold lists."""
    return bool(
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
    )


def is_bytes(arrow_type: pa.DataType) -> bool:
    """Whether an Arrow type is one of the four that hold bytes."""
    return bool(
        pa.types.is_binary(arrow_type)
        or pa.types.is_large_binary(arrow_type)
        or pa.types.is_binary_view(arrow_type)
        or pa.types.is_fixed_size_binary(arrow_type)
    )
