"""Read CSV and TSV files as text cells, block by block, and say in which line one is broken."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from batchtrain.errors import DataError, NoRowsError
from batchtrain.tables.checked_text import CheckedText
from batchtrain.tables.lending import Lender
from batchtrain.tables.names import check_names, require_columns
from batchtrain.tables.source import SourceFile, opened

__all__ = ["read_names", "read_text", "with_nulls"]

BLOCK_BYTES = 4 << 20
"""The text that is parsed at once; no row may be longer."""
MAX_HEADER_BYTES = 4 << 20
FIRST_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class _Dialect:
    """What the end of a file's name says about its text."""

    delimiter: str
    compressed: bool

    @classmethod
    def of(cls, file: SourceFile) -> _Dialect:
        name = file.name.lower()
        tabs = name.endswith((".tsv", ".tsv.gz"))
        return cls(delimiter="\t" if tabs else ",", compressed=name.endswith(".gz"))


def read_names(file: SourceFile) -> list[str]:
    """The column names of a file, from its first line that is not blank.

    Raises:
        DataError: If there is no header, or a name is empty, repeated or spans lines.
    """
    dialect = _Dialect.of(file)
    with opened(file) as handle:
        text = CheckedText(handle, str(file.path), compressed=dialect.compressed)
        return _take_header(text, file, dialect)


def read_text(
    file: SourceFile, columns: Sequence[str] | None, null_values: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the rows of a file as text, in tables of a few megabytes.

    Blank lines are no rows, except in a table of one column, where they are missing cells. Cells
    keep their text, spaces included; a cell that is one of `null_values`, apart from spaces and
    tabs around it, is null. Line breaks inside quotes belong to the cell.

    Args:
        file: A file of a CSV source.
        columns: The columns to read, in this order; None reads all.
        null_values: The cells that mean "missing".

    Raises:
        DataError: If the file is not UTF-8, has no rows, or a row does not fit the header.
        SchemaMismatchError: If a column is not there.
    """
    dialect = _Dialect.of(file)
    num_rows = 0
    with opened(file) as handle:
        text = CheckedText(handle, str(file.path), compressed=dialect.compressed)
        names = _take_header(text, file, dialect)
        require_columns(names, columns or (), str(file.path))
        nulls = pa.array(sorted(set(null_values)), type=pa.string())
        for batch in _parsed(text, file, dialect, names, columns):
            num_rows += batch.num_rows
            cells = [with_nulls(column, nulls) for column in batch.columns]
            yield pa.table(dict(zip(batch.schema.names, cells, strict=True)))
    if num_rows == 0:
        raise _no_rows(file)


def _parsed(
    text: CheckedText,
    file: SourceFile,
    dialect: _Dialect,
    names: list[str],
    columns: Sequence[str] | None,
) -> Iterator[pa.RecordBatch]:
    options = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(columns or names),
        strings_can_be_null=False,
        check_utf8=False,  # CheckedText does it, and knows the offset
    )
    parsing = pa_csv.ParseOptions(
        delimiter=dialect.delimiter, newlines_in_values=True, ignore_empty_lines=len(names) > 1
    )
    reading = pa_csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES, use_threads=False)
    lender = Lender(text)
    reader = None
    try:
        with pa_csv.open_csv(
            lender.lend(), read_options=reading, parse_options=parsing, convert_options=options
        ) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return
        raise DataError(_malformed(file, dialect, len(names)) or _arrow(file, error)) from error
    finally:
        reader = None
        lender.wait()
    if text.num_quotes % 2:
        # One quote too many may swallow all rows up to the next; Arrow takes them for one cell.
        problem = _malformed(file, dialect, len(names))
        if problem:
            raise DataError(problem)


def with_nulls(cells: pa.Array, nulls: pa.Array) -> pa.Array:
    """Text cells with null for each that is one of `nulls`, apart from spaces around it."""
    is_missing = pc.is_in(cells, value_set=nulls)
    padded = pc.or_(
        pc.or_(pc.starts_with(cells, " "), pc.ends_with(cells, " ")),
        pc.or_(pc.starts_with(cells, "\t"), pc.ends_with(cells, "\t")),
    )
    if pc.any(padded).as_py():
        trimmed = pc.utf8_trim(cells, characters=" \t")
        is_missing = pc.or_(is_missing, pc.is_in(trimmed, value_set=nulls))
    if not pc.any(is_missing).as_py():
        return cells
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), cells)


def _take_header(text: CheckedText, file: SourceFile, dialect: _Dialect) -> list[str]:
    """Read the column names off the stream; what follows them stays to be read."""
    head = b""
    size = FIRST_READ_BYTES
    while True:
        more = text.read(size)
        head += more
        found = _first_record(head, file, dialect, at_end=not more)
        if found is not None:
            break
        if len(head) >= MAX_HEADER_BYTES:
            raise DataError(
                f"{file.path}: expected a line of column names, found none that ends within "
                f"{len(head)} bytes. Look for an unclosed quote in the first line"
            )
        size = len(head)
    names, length = found
    text.push_back(head[length:])
    _check_header(names, file, dialect)
    return names


def _first_record(
    head: bytes, file: SourceFile, dialect: _Dialect, *, at_end: bool
) -> tuple[list[str], int] | None:
    """The first row that is not blank and how many bytes it takes; None to ask for more."""
    # The last character may be cut in two; the check of the stream is the strict one.
    text = head.decode("utf-8", "ignore")
    lines = io.StringIO(text, newline="")
    try:
        for record in csv.reader(lines, delimiter=dialect.delimiter, strict=at_end):
            # A record at the very end of `head` may go on in the bytes that follow.
            if record and (at_end or lines.tell() < len(text)):
                return record, len(text[: lines.tell()].encode())
    except csv.Error as error:
        raise DataError(
            f"{file.path}: expected column names in the first line, found what cannot be read "
            f"({error}). Look for an unclosed quote in it"
        ) from error
    if not at_end:
        return None
    what = "an empty file (0 bytes)" if file.size == 0 else "blank lines only"
    raise DataError(
        f"{file.path}: expected a line of column names and rows below it, found {what}. "
        "Write the file again, or remove it from the input"
    )


def _check_header(names: list[str], file: SourceFile, dialect: _Dialect) -> None:
    if len(names) == 1:
        other = next((each for each in ";\t|," if each in names[0]), None)
        if other:
            raise DataError(
                f"{file.path}: expected columns separated by {dialect.delimiter!r}, as the name "
                f"ends, found one column {names[0]!r}, which looks separated by {other!r}. Save "
                "the file with commas, or with tabs as .tsv"
            )
    check_names(names, str(file.path))


def _malformed(file: SourceFile, dialect: _Dialect, num_columns: int) -> str:
    """Look for the first broken row, line by line; slow, and only done once a file is refused."""
    with opened(file) as handle:
        checked = CheckedText(handle, str(file.path), compressed=dialect.compressed)
        lines = io.TextIOWrapper(io.BufferedReader(checked, 1 << 20), "utf-8", newline="")
        limit = csv.field_size_limit(BLOCK_BYTES)
        try:
            return _broken_row(lines, file, dialect, num_columns)
        finally:
            csv.field_size_limit(limit)
            lines.detach()


def _broken_row(
    lines: io.TextIOWrapper, file: SourceFile, dialect: _Dialect, num_columns: int
) -> str:
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if len(cells) not in {num_columns, 0} or (not cells and num_columns == 1):
                shown = dialect.delimiter.join(cells)[:80]
                return (
                    f"{file.path}, line {line}: expected {num_columns} cells as in the header, "
                    f"found {len(cells)}: {shown!r}. Correct the line; a cell that holds "
                    f"{dialect.delimiter!r} must stand in double quotes"
                )
            line = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            what = f"a cell of more than {BLOCK_BYTES} bytes"
        elif "unexpected end" in str(error):
            what = "a double quote that is never closed"
        else:
            what = f"a broken pair of double quotes ({error})"
        return (
            f"{file.path}, line {line}: expected cells of plain or quoted text, found {what}. "
            "Correct the line; a double quote inside a quoted cell is written twice"
        )
    return ""


def _arrow(file: SourceFile, error: pa.ArrowInvalid) -> str:
    return (
        f"{file.path}: expected rows of at most {BLOCK_BYTES} bytes with as many cells as the "
        f"header, found: {error}. Correct the file"
    )


def _no_rows(file: SourceFile) -> NoRowsError:
    return NoRowsError(
        f"{file.path}: expected rows below the column names, found none (0 rows). "
        "Write the file again, or remove it from the input"
    )
