"""Read JSON lines as text cells, block by block, and say in which line one is broken."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchtrain.errors import DataError, SchemaMismatchError
from batchtrain.tables.checked_text import CheckedText
from batchtrain.tables.delimited import with_nulls
from batchtrain.tables.infer import Evidence, evidence_of_cells
from batchtrain.tables.names import check_names, require_columns
from batchtrain.tables.source import SourceFile, opened
from batchtrain.tables.types import Unsupported

__all__ = ["JsonColumn", "count_lines", "read_json_lines", "read_keys", "scan_json_lines"]

BLOCK_LINES = 8192
"""The lines that are parsed at once."""
BLOCK_BYTES = 4 << 20
"""A block ends where it has this much text; no line may be longer."""
READ_BYTES = 1 << 20
MAX_KEYS = 100_000
"""With more keys than this they are data, such as identifiers, and no columns."""

NESTED = Unsupported("a JSON list or object")


class _Number(str):
    """A number as it stands in the file: no digit of it is lost."""

    __slots__ = ()


class _RepeatedKeyError(ValueError):
    """A key that an object has twice."""


@dataclass
class _Block:
    """Some rows that follow one another.

    Attributes:
        rows: Key to value: text, `_Number`, true, false, None, a list or an object.
        lines: The number in the file of each row's line, from 1.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class JsonColumn:
    """What the rows of a block hold under one key.

    Attributes:
        missing: The cells without a value.
        found: What the others are; `Unsupported` where one is a list or an object.
    """

    missing: int
    found: Evidence | Unsupported


def read_json_lines(
    file: SourceFile,
    columns: Sequence[str],
    null_values: Sequence[str],
    lists: Collection[str] = (),
) -> Iterator[pa.Table]:
    """Yield the rows of a file as text, in tables of at most 8192 rows.

    Each line that is not blank is one object, a row. A number is its text as it stands there,
    `true` and `false` are these words, `Infinity` is `inf`. A key that a line does not have,
    `null`, `NaN`, and a text or number that is one of `null_values` are missing cells.

    Args:
        file: A file of JSON lines.
        columns: The keys to read, in this order.
        null_values: The cells that mean "missing".
        lists: The columns whose values are lists of numbers; these come as lists of text.

    Raises:
        DataError: If the file is not UTF-8, has no rows, or a line is no object.
        SchemaMismatchError: If no line has one of the keys, a value is an object, or it is a list
            where none should be, or none where one should be.
    """
    keys: dict[str, Any] = {}
    nulls = _nulls(null_values)
    for block in _blocks(file, keys):
        cells = [
            _lists(file, block, name, null_values)
            if name in lists
            else _cells(file, block, name, nulls)
            for name in columns
        ]
        yield pa.table(cells, names=list(columns))
    require_columns(list(keys), columns, str(file.path))


def scan_json_lines(
    file: SourceFile, null_values: Sequence[str]
) -> Iterator[tuple[int, dict[str, JsonColumn]]]:
    """Yield how many rows each block has, and what they hold under all keys met so far.

    A text says that its column is text, whatever it spells; else cells are judged as those of a
    CSV file.

    Raises:
        DataError: If the file is not UTF-8, has no rows, a line is no object, or a key is no name.
    """
    keys: dict[str, Any] = {}
    nulls = _nulls(null_values)
    for block in _blocks(file, keys):
        yield len(block.rows), {name: _judged(file, block, name, nulls) for name in keys}
    check_names(list(keys), str(file.path))


def read_keys(file: SourceFile) -> list[str]:
    """All keys of a file in the order of their first appearance; the whole file is read.

    Raises:
        DataError: As `scan_json_lines`.
    """
    keys: dict[str, Any] = {}
    for _block in _blocks(file, keys):
        pass
    check_names(list(keys), str(file.path))
    return list(keys)


def count_lines(file: SourceFile) -> Iterator[int]:
    """Yield 1 for each row of a file; no row is looked at."""
    for _number, _line in _lines(file):
        yield 1


def _blocks(file: SourceFile, keys: dict[str, Any]) -> Iterator[_Block]:
    """The rows of a file; `keys` gets all keys of a block before the block comes."""
    block = _Block()
    size = num_rows = 0
    for number, line in _lines(file):
        row = _parsed(file, number, line)
        block.rows.append(row)
        block.lines.append(number)
        keys.update(row)
        size += len(line)
        num_rows += 1
        if len(block.rows) == BLOCK_LINES or size >= BLOCK_BYTES:
            _check_keys(file, keys, number)
            yield block
            block, size = _Block(), 0
    if block.rows:
        _check_keys(file, keys, block.lines[-1])
        yield block
    if num_rows == 0:
        what = "an empty file (0 bytes)" if file.size == 0 else "blank lines only (0 rows)"
        raise DataError(
            f"{file.path}: expected one JSON object a line, found {what}. "
            "Write the file again, or remove it from the input"
        )


def _lines(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number."""
    with opened(file) as handle:
        text = CheckedText(handle, str(file.path), compressed=file.name.lower().endswith(".gz"))
        lines = io.BufferedReader(text, READ_BYTES)
        number = 0
        while line := lines.readline(BLOCK_BYTES + 1):
            number += 1
            if len(line) > BLOCK_BYTES:
                raise DataError(
                    f"{file.path}, line {number}: expected a JSON object of at most {BLOCK_BYTES} "
                    "bytes on a line of its own, found more. Write one object a line"
                )
            if not line.isspace():
                yield number, line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return row


def _constant(token: str) -> _Number | None:
    """`NaN` is a missing value, as it is in Parquet files."""
    return None if token == "NaN" else _Number(token.replace("Infinity", "inf"))  # noqa: S105


# Numbers stay text: a float would lose digits, and Python refuses to read very long integers.
DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_constant
)


def _parsed(file: SourceFile, number: int, line: bytes) -> dict[str, Any]:
    """The object on a line."""
    text = line.decode("utf-8")
    advice = "Correct the line"
    try:
        row = DECODER.decode(text)
    except _RepeatedKeyError as error:
        raise DataError(
            f"{file.path}, line {number}: expected different keys in an object, found "
            f"{str(error)!r} more than once. Rename or remove one of them"
        ) from None
    except RecursionError:
        what = "lists or objects too deep inside each other"
    except json.JSONDecodeError as error:
        what = f"{text.strip()[:80]!r} ({error.msg} at character {error.pos + 1})"
        if number == 1 and text.lstrip().startswith(("[", "{")):
            advice += "; a file that is one JSON document must be written as one object a line"
    else:
        if isinstance(row, dict):
            return row
        what = f"{text.strip()[:80]!r}"
    raise DataError(
        f"{file.path}, line {number}: expected a JSON object on a line of its own, found {what}. "
        f"{advice}"
    ) from None


def _check_keys(file: SourceFile, keys: dict[str, Any], number: int) -> None:
    if len(keys) > MAX_KEYS:
        raise DataError(
            f"{file.path}: expected the same keys in all lines, found {len(keys)} different ones "
            f"up to line {number}. Write what the keys say as values"
        )
    for name in keys:
        keys[name] = None  # else the values of the last rows would stay in memory
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise _half_character(file, f"up to line {number}", f"the key {name!r}") from None


def _nulls(null_values: Sequence[str]) -> pa.Array:
    return pa.array(sorted(set(null_values)), type=pa.string())


def _cells(file: SourceFile, block: _Block, name: str, nulls: pa.Array) -> pa.Array:
    """The cells of a column as text, null where they are missing."""
    values = [row.get(name) for row in block.rows]
    kinds = set(map(type, values))
    for nested in (list, dict):
        if nested in kinds:
            place = next(at for at, value in enumerate(values) if isinstance(value, nested))
            raise SchemaMismatchError(
                f"column {name!r} of {file.path}, line {block.lines[place]}: expected a single "
                f"value, found a {'list' if nested is list else 'JSON object'}. Write its parts "
                "under keys of their own, or exclude the column"
            )
    return with_nulls(_text(file, block, name, values, kinds), nulls)


def _lists(file: SourceFile, block: _Block, name: str, null_values: Collection[str]) -> pa.Array:
    """The lists of a column with their numbers as text, null where one is missing."""
    values = [row.get(name) for row in block.rows]
    values = [
        None if isinstance(value, str) and value.strip(" \t") in null_values else value
        for value in values
    ]
    try:
        found = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError):
        found = None
    if found is None or not (pa.types.is_list(found.type) or pa.types.is_null(found.type)):
        place = next((at for at, value in enumerate(values) if not _is_list(value)), 0)
        shown = json.dumps(values[place])[:80]
        raise SchemaMismatchError(
            f"column {name!r} of {file.path}, line {block.lines[place]}: expected a list of "
            f"numbers, alike in all lines, found {shown}. Correct the line, or exclude the column"
        )
    return found


def _is_list(value: Any) -> bool:
    """Whether a value is missing, or a list of numbers or of such lists."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(each, _Number) or _is_list(each) for each in value)
    )


def _text(
    file: SourceFile, block: _Block, name: str, values: list[Any], kinds: set[type]
) -> pa.Array:
    if bool in kinds:
        values = [str(value).lower() if isinstance(value, bool) else value for value in values]
    try:
        return pa.array(values, type=pa.string())
    except UnicodeEncodeError:
        for value, number in zip(values, block.lines, strict=True):
            try:
                str(value).encode()
            except UnicodeEncodeError:
                what = f"{str(value)[:80]!r} in column {name!r}"
                raise _half_character(file, f"line {number}", what) from None
        raise


def _half_character(file: SourceFile, place: str, what: str) -> DataError:
    return DataError(
        f"{file.path}, {place}: expected text in Unicode, found half a character (a surrogate "
        f"without its other half) in {what}. Write the text again"
    )


def _judged(file: SourceFile, block: _Block, name: str, nulls: pa.Array) -> JsonColumn:
    values = [row.get(name) for row in block.rows]
    kinds = set(map(type, values))
    if not kinds.isdisjoint((list, dict)):
        return JsonColumn(values.count(None), NESTED)
    cells = with_nulls(_text(file, block, name, values, kinds), nulls)
    if str not in kinds:
        return JsonColumn(cells.null_count, evidence_of_cells(cells))
    is_text = pa.array([type(value) is str for value in values])
    found = evidence_of_cells(cells.filter(pc.invert(is_text)))
    if cells.filter(is_text).null_count < pc.sum(is_text).as_py():
        found |= Evidence.TEXT
    return JsonColumn(cells.null_count, found)
