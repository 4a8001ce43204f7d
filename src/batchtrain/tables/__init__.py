"""The one way in which rows enter batchtrain: files, samples and in-memory tables."""

from __future__ import annotations

from batchtrain.tables.blocks import BLOCK_ROWS, read_blocks
from batchtrain.tables.conform import conform
from batchtrain.tables.discovery import source_contains
from batchtrain.tables.formulas import neutralise_formulas
from batchtrain.tables.frames import Rows, frame_to_table
from batchtrain.tables.hashes import HashCache, content_hashes
from batchtrain.tables.names import extra_columns
from batchtrain.tables.safety import refuse_unsafe_footer, refuse_unsafe_types
from batchtrain.tables.samples import SAMPLES, write_sample
from batchtrain.tables.scan import column_names, scan
from batchtrain.tables.source import Source, SourceFile, open_source
from batchtrain.tables.types import ColumnType, TableSchema, Unsupported

__all__ = [
    "BLOCK_ROWS",
    "SAMPLES",
    "ColumnType",
    "HashCache",
    "Rows",
    "Source",
    "SourceFile",
    "TableSchema",
    "Unsupported",
    "column_names",
    "conform",
    "content_hashes",
    "extra_columns",
    "frame_to_table",
    "neutralise_formulas",
    "open_source",
    "read_blocks",
    "refuse_unsafe_footer",
    "refuse_unsafe_types",
    "scan",
    "source_contains",
    "write_sample",
]
