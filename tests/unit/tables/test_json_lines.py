"""JSON lines: types over all rows, no digit lost, and each broken line named."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.errors import BatchtrainError, DataError, SchemaMismatchError
from batchtrain.tables import (
    Source,
    Unsupported,
    column_names,
    count_rows,
    open_source,
    read_blocks,
    scan,
)
from batchtrain.tables import json_lines as module

NULLS = ("", "NA")


def source_of(folder: Path, text: str | bytes, name: str = "t.jsonl") -> Source:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return open_source(name, base=folder, null_values=NULLS)


def read(source: Source, **columns: str) -> dict[str, list[object]]:
    return pa.concat_tables(list(read_blocks(source, columns))).to_pydict()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-2", "null"], "integer"),
        (["9223372036854775807"], "integer"),
        (["9223372036854775808"], "string"),
        (["9007199254740993", "1.5"], "string"),
        (["1", "2.5"], "number"),
        (["1E5"], "number"),
        (["1", "NaN", "2"], "integer"),
        (["Infinity", "-Infinity", "1"], "number"),
        (["1e400"], "string"),
        (["true", "false", "null"], "boolean"),
        (["true", "1"], "string"),
        (['"1"', '"2"'], "string"),
        (["1", '"x"'], "string"),
        (["1.50", '"NA"'], "number"),
        (['""', "null"], "string"),
        (["-0", "0"], "integer"),
    ],
)
def test_a_type_holds_every_value_exactly(tmp_path: Path, values: list[str], expected: str) -> None:
    lines = "".join(f'{{"a": {value}, "b": "x"}}\n' for value in values)
    schema = scan(source_of(tmp_path, lines))
    assert schema.columns == {"a": expected, "b": "string"}
    assert schema.num_rows == len(values)
    missing = sum(value in {"null", "NaN", '""', '"NA"'} for value in values)
    assert schema.missing == {"a": missing, "b": 0}


def test_numbers_among_names_keep_the_text_that_they_have_in_the_file(tmp_path: Path) -> None:
    source = source_of(tmp_path, '{"a": 1.50}\n{"a": "x"}\n{"a": true}\n{"a": 1E2}\n')
    assert scan(source).columns == {"a": "string"}
    assert read(source, a="string") == {"a": ["1.50", "x", "true", "1E2"]}


def test_a_key_that_a_line_does_not_have_is_a_missing_value(tmp_path: Path) -> None:
    source = source_of(tmp_path, '{"a": 1}\n{"b": 2, "a": 3}\n{}\n{"b": null, "c": true}\n')
    schema = scan(source)
    assert schema.columns == {"a": "integer", "b": "integer", "c": "boolean"}
    assert schema.missing == {"a": 2, "b": 3, "c": 3}
    assert column_names(source) == ("a", "b", "c")
    assert read(source, c="boolean", a="integer") == {
        "c": [None, None, None, True],
        "a": [1, 3, None, None],
    }


@pytest.mark.parametrize("late", ["x", 1.5, True, [1], {"b": 2}])
def test_a_type_that_changes_after_many_blocks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: object
) -> None:
    monkeypatch.setattr(module, "BLOCK_LINES", 7)
    lines = '{"a": 1}\n' * 100 + json.dumps({"a": late}) + "\n"
    found = scan(source_of(tmp_path, lines)).columns["a"]
    nested = Unsupported("a JSON list or object")
    assert found == {str: "string", float: "number", bool: "string"}.get(type(late), nested)


def test_a_column_with_a_list_can_be_left_out_and_names_its_line_where_it_is_read(
    tmp_path: Path,
) -> None:
    source = source_of(tmp_path, '{"a": 1, "b": 2}\n\n{"a": [1], "b": 3}\n')
    assert read(source, b="integer") == {"b": [2, 3]}
    with pytest.raises(SchemaMismatchError, match=r"column 'a' of .*t.jsonl, line 3: .*a list"):
        read(source, a="integer")


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.jsonl.gz", "T.NDJSON.GZ"])
def test_all_endings_are_read(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path, '\ufeff{"a": 1}\r\n\r\n{"a": 2}', name)
    assert source.kind == "jsonl"
    assert read(source, a="number") == {"a": [1.0, 2.0]}
    assert count_rows(source, 0) == (2, True)


BAD_LINES: dict[str, tuple[str | bytes, list[str]]] = {
    "cut": ('{"a": 1}\n{"a": \n', ["line 2", "'{\"a\":'", "character"]),
    "two on a line": ('{"a": 1} {"a": 2}\n', ["line 1", "Extra data at character 10"]),
    "a list": ('{"a": 1}\n[1, 2]\n', ["line 2", "'[1, 2]'", "object"]),
    "a number": ("7\n", ["line 1", "'7'"]),
    "one document": ('[\n{"a": 1}\n]\n', ["line 1", "one object a line"]),
    "a key twice": ('{"a": 1}\n\n{"b": 1, "a": 2, "a": 3}\n', ["line 3", "'a'", "more than once"]),
    "single quotes": ("{'a': 1}\n", ["line 1", "double quotes"]),
    "too deep": ('{"a": ' + "[" * 100_000 + "\n", ["line 1", "too deep"]),
    "half a character": ('{"a": "x"}\n{"a": "\\ud800"}\n', ["line 2", "half", "column 'a'"]),
    "half a character in a key": ('{"\\ud800": 1}\n', ["line 1", "half", "key"]),
    "an empty key": ('{"": 1}\n', ["name for every column"]),
    "a key of two lines": ('{"a\\nb": 1}\n', ["one line"]),
    "latin-1": (b'{"a": "\xe9"}\n', ["UTF-8", "byte 7"]),
    "utf-16": ('{"a": 1}\n'.encode("utf-16"), ["UTF-16"]),
    "a nul byte": (b'{"a": 1}\n\0\n', ["NUL", "byte 9"]),
    "empty": ("", ["0 bytes"]),
    "blank": ("\n \n", ["blank lines only (0 rows)"]),
}


@pytest.mark.parametrize(("text", "fragments"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_broken_line_is_named_with_its_file(
    tmp_path: Path, text: str | bytes, fragments: list[str]
) -> None:
    source = source_of(tmp_path, text)
    with pytest.raises(BatchtrainError) as caught:
        scan(source)
    message = str(caught.value)
    assert [each for each in [*fragments, "t.jsonl", "expected"] if each not in message] == []
    assert caught.value.exit_code == 2


def test_a_line_without_an_end_is_refused_and_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    source = source_of(tmp_path, '{"a": 1}\n{"a": "' + "x" * 200 + '"}\n')
    with pytest.raises(DataError, match=r"line 2: expected a JSON object of at most 100 bytes"):
        scan(source)


def test_keys_that_are_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 5)
    source = source_of(tmp_path, "".join(f'{{"k{n}": 1}}\n' for n in range(6)))
    with pytest.raises(DataError, match="6 different ones"):
        scan(source)


def test_damaged_gzip_is_damage(tmp_path: Path) -> None:
    data = gzip.compress(b'{"a": 1}\n' * 9000)
    (tmp_path / "t.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(DataError, match="gzip"):
        scan(open_source("t.jsonl.gz", base=tmp_path, null_values=()))


def test_a_key_that_no_line_has_is_a_missing_column(tmp_path: Path) -> None:
    source = source_of(tmp_path, '{"Age": 1}\n')
    with pytest.raises(SchemaMismatchError, match="'Age' differs in upper"):
        read(source, age="number")


def test_a_value_that_does_not_fit_names_its_row(tmp_path: Path) -> None:
    source = source_of(tmp_path, '{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(SchemaMismatchError, match=r"t.jsonl, row 2 \(row_id 1\): .* found 'x'"):
        read(source, a="number")


def test_files_with_other_keys_or_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"a": 1}\n')
    for other, fragment in (('{"b": 1}', "column 'a' in"), ('{"a": "x"}', "string values in")):
        (tmp_path / "2.jsonl").write_text(other + "\n")
        with pytest.raises(SchemaMismatchError, match=fragment):
            scan(open_source("*.jsonl", base=tmp_path, null_values=()))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)


@settings(max_examples=40)
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), min_size=1, max_size=30))
def test_what_is_read_is_what_python_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "t.jsonl"
    text = io.StringIO()
    for row in rows:
        text.write(json.dumps(row) + "\n")
    path.write_text(text.getvalue())
    source = open_source(path.name, base=path.parent, null_values=())
    if not any(rows):
        with pytest.raises(DataError, match="at least one column"):
            scan(source)
        return
    columns = scan(source).columns
    for name, found in columns.items():
        values = [row.get(name) for row in rows]
        present = [value for value in values if value is not None]
        back = read(source, **{name: str(found)})[name]
        assert [value is None for value in back] == [value is None for value in values]
        if found == "string":
            texts = [value if isinstance(value, str) else json.dumps(value) for value in present]
            assert [value for value in back if value is not None] == texts
        else:
            assert [value for value in back if value is not None] == present
