"""Which files can be read, by the ends of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = ["FORMATS", "SourceKind", "format_of"]

SourceKind: TypeAlias = Literal["csv", "jsonl", "parquet", "arrow", "sample"]

FORMATS: Mapping[str, SourceKind] = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""The end of a name, in lower case, to what the file holds."""


def format_of(name: str) -> SourceKind | None:
    """What a file holds, by its name; None where no format has such names."""
    folded = name.lower()
    return next((kind for end, kind in FORMATS.items() if folded.endswith(end)), None)
