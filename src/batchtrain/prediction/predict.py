"""Predict on a table and write one prediction for every row, in the order of the rows."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Block, BlockFunction, Engine, Results, Tables
from batchtrain.engines.shipped import Shipped
from batchtrain.errors import DataError, NoRowsError, StorageError, UnsafeInputError
from batchtrain.prediction.loaded import LoadedBundle, PredictionCounts
from batchtrain.progress import Progress
from batchtrain.tables import (
    Source,
    column_names,
    neutralise_formulas,
    num_files,
    open_source,
    source_contains,
)
from batchtrain.tables.types import ARROW_TYPES

__all__ = ["Predicted", "predict_file"]

WriteTable = Callable[[pa.Table], None]

COLUMN_COUNTS = pa.schema([("what", pa.string()), ("column", pa.string()), ("count", pa.int64())])


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        path: The file that was written.
        counts: What happened to the rows.
        neutralised: CSV cells and names that a spreadsheet would have run, now quoted.
    """

    path: Path
    counts: PredictionCounts
    neutralised: int


def predict_file(
    bundle: LoadedBundle,
    source: str,
    out: Path,
    *,
    base: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> Predicted:
    """Predict on every row of a source; memory does not grow with its size.

    An input without rows gives an output without rows. The output appears under its name when it
    is whole. It is never written over a file that exists, nor among the input's own files.

    Args:
        bundle: The model.
        source: As `data.source` of a spec.
        out: A .parquet or .csv file.
        base: What a relative source starts from.
        progress: Hears how far it is.
        engine: Carries the work to the rows; left out, this process does it. The output is the
            same bytes.

    Raises:
        DataError: If the input cannot be read, or the output exists or has another ending.
        UnsafeInputError: If the output would be one of the input's files.
    """
    _check_output(source, out, base)
    engine = engine or EmbeddedEngine()
    found = open_source(source, base=base, null_values=bundle.content["null_values"])
    opened = replace(found, for_bundle=True)
    counts = PredictionCounts(ignored=bundle.ignored(column_names(opened)))
    neutralised = 0
    work = partial(_predict_block, bundle.shipped(), source, out.suffix == ".csv")
    with (
        closing(_results(engine, opened, bundle, work)) as results,
        _new_file(out) as temporary,
        _writer(temporary, out.suffix) as write,
    ):
        for table, numbers, columns in results:
            counts.add(_read_counts(numbers, columns))
            neutralised += numbers["neutralised"][0].as_py()
            write(table)
            progress.working("rows predicted", counts.rows, None)
    return Predicted(out, counts, neutralised)


def _results(engine: Engine, source: Source, bundle: LoadedBundle, work: BlockFunction) -> Results:
    """What comes of each block; of a source without rows that of one block without rows."""
    with closing(
        engine.map_blocks(source, bundle.columns, work, at_most=bundle.block_rows)
    ) as results:
        try:
            yield from results
        except NoRowsError:
            if source.kind == "csv" and num_files(source) > 1:
                raise  # one file is empty, which says nothing about the others
            arrays = {
                name: pa.array([], ARROW_TYPES[kind]) for name, kind in bundle.columns.items()
            }
            yield work(Block(0, pa.table(arrays), np.empty(0, np.uint8)))


def _predict_block(
    bundle: Shipped[LoadedBundle], source: str, for_csv: bool, block: Block
) -> Tables:
    """The predictions for a block, and what happened to its rows; for any process."""
    try:
        table, counts = bundle.get().predict_block(block.table, first_row=block.first_row)
    except DataError as error:
        raise type(error)(f"{source}: {error}") from error
    neutralised = 0
    if for_csv:
        table, neutralised = neutralise_formulas(table)
    numbers = {
        "rows": [counts.rows],
        "unusable": [counts.unusable],
        "not_finite": [counts.not_finite],
        "neutralised": [neutralised],
    }
    columns = [
        {"what": what, "column": column, "count": count}
        for what, found in (("filled", counts.filled), ("unseen", counts.unseen))
        for column, count in found.items()
    ]
    return table, pa.table(numbers), pa.Table.from_pylist(columns, schema=COLUMN_COUNTS)


def _read_counts(numbers: pa.Table, columns: pa.Table) -> PredictionCounts:
    (row,) = numbers.to_pylist()
    counts = PredictionCounts(row["rows"], row["unusable"], row["not_finite"])
    for each in columns.to_pylist():
        getattr(counts, each["what"])[each["column"]] += each["count"]
    return counts


def _check_output(source: str, out: Path, base: Path) -> None:
    if out.suffix not in {".parquet", ".csv"}:
        raise DataError(
            f"--out: expected a file that ends in .parquet or .csv, found {str(out)!r}. Rename it"
        )
    if out.exists():
        raise DataError(
            f"--out: expected a file that does not exist yet, found {str(out)!r}. "
            "Remove it, or choose another name"
        )
    if not out.parent.is_dir():
        raise DataError(
            f"--out: expected an existing folder, found no {str(out.parent)!r}. Make it first"
        )
    if source_contains(source, base, out):
        raise UnsafeInputError(
            f"--out: {str(out)!r} lies among the files of the input {source!r}, so that the next "
            "run would read it as rows. Choose another folder"
        )


@contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """A temporary file that gets the name `out` when the block ends well, and goes otherwise."""
    temporary = out.with_name(f".{out.stem}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, out)
    except FileExistsError as error:
        raise DataError(
            f"--out: {str(out)!r} appeared while the rows were predicted. Choose another name"
        ) from error
    except OSError as error:
        raise StorageError(
            f"--out: expected to write {str(out)!r}, found {error.strerror or error}. "
            "Choose a folder that may be written to and has space"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _writer(path: Path, suffix: str) -> Iterator[WriteTable]:
    """A function that appends tables of one schema to a new file."""
    opened: list[pq.ParquetWriter | pa_csv.CSVWriter] = []

    def write(table: pa.Table) -> None:
        if not opened:
            kind = pa_csv.CSVWriter if suffix == ".csv" else pq.ParquetWriter
            opened.append(kind(str(path), table.schema))
        opened[0].write_table(table)

    try:
        yield write
    finally:
        for writer in opened:
            writer.close()
