"""The one way in which rows enter batchtrain: files, samples and in-memory tables."""

from __future__ import annotations

from batchtrain.tables.blocks import BLOCK_ROWS, count_rows, read_blocks, read_unit
from batchtrain.tables.conform import conform, other_rows
from batchtrain.tables.discovery import source_contains
from batchtrain.tables.formulas import neutralise_formulas
from batchtrain.tables.frames import Rows, frame_to_table
from batchtrain.tables.hashes import HashCache, content_hashes, hash_file
from batchtrain.tables.names import extra_columns
from batchtrain.tables.read_plan import ReadUnit, plan_units
from batchtrain.tables.safety import refuse_unsafe_footer, refuse_unsafe_types
from batchtrain.tables.samples import SAMPLES, write_sample
from batchtrain.tables.scan import column_names, merge_scans, scan, scan_item, scan_items
from batchtrain.tables.source import (
    Source,
    SourceFile,
    num_files,
    open_source,
    require_unchanged,
)
from batchtrain.tables.split_files import open_splits
from batchtrain.tables.types import ColumnType, TableSchema, Unsupported

__all__ = [
    "BLOCK_ROWS",
    "SAMPLES",
    "ColumnType",
    "HashCache",
    "ReadUnit",
    "Rows",
    "Source",
    "SourceFile",
    "TableSchema",
    "Unsupported",
    "column_names",
    "conform",
    "content_hashes",
    "count_rows",
    "extra_columns",
    "frame_to_table",
    "hash_file",
    "merge_scans",
    "neutralise_formulas",
    "num_files",
    "open_source",
    "open_splits",
    "other_rows",
    "plan_units",
    "read_blocks",
    "read_unit",
    "refuse_unsafe_footer",
    "refuse_unsafe_types",
    "require_unchanged",
    "scan",
    "scan_item",
    "scan_items",
    "source_contains",
    "write_sample",
]
