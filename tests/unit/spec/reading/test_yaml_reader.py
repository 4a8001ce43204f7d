"""The strict YAML reader: what it reads, what it refuses, and where it says that things are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import SpecError
from batchtrain.spec.load import parse_spec
from batchtrain.spec.reading import yaml_reader
from batchtrain.spec.reading.yaml_reader import MAX_BYTES, MAX_DEPTH, read_yaml


def value_of(text: str) -> Any:
    document = read_yaml(f"a: {text}\n", "spec.yaml")
    assert document.faults == ()
    return document.value["a"]


def problem_of(text: str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        read_yaml(text, "spec.yaml")
    (problem,) = caught.value.problems
    return problem.where, f"{problem.message}  {problem.hint}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("6.", 6.0),
        ("0", 0),
        ("-12", -12),
        ("0x1F", 31),
        ("0o17", 15),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("NaN", "NaN"),
        ("=", "="),
        ("<<", "<<"),
        ("'010'", "010"),
        ('"1e-3"', "1e-3"),
        ("''", ""),
        ('"\\u00e9\\ud83d\\ude00"', "\u00e9\U0001f600"),
        ("[1, [a, {b: 2}]]", [1, ["a", {"b": 2}]]),
        ("|\n  x\n  y", "x\ny\n"),
        ("x\n  y", "x y"),
    ],
)
def test_f12_values_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = value_of(text)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "-007", ".inf", "-.INF", ".nan", "1e999", "1e-999"])
def test_f12_numbers_that_others_read_differently_are_refused(text: str) -> None:
    (fault,) = read_yaml(f"a: {text}\n", "spec.yaml").faults

    assert (fault.place.text, fault.key) == ("spec.yaml:1:4", "a")
    assert fault.message.endswith(f"found {text}")


@pytest.mark.parametrize(
    ("text", "where", "fragment"),
    [
        ("a: b: c", "spec.yaml:1:5", "`:` stands where no key can be"),
        ("a: 1\n b: 2", "spec.yaml:2:3", "Check the indentation"),
        ("a: [1,\nb: 2", "spec.yaml:2:5", "expected `,` or `]`"),
        ("a: {b: 1\n", "spec.yaml:2:1", "expected `,` or `}`"),
        ("x: 1\na: 'b", "spec.yaml:2:4", "never closed"),
        ("a:\n\tb: 1", "spec.yaml:2:1", "Indent with spaces"),
        ("a: @b", "spec.yaml:1:4", "Put the value in quotes"),
        ('a: "\\q"', "spec.yaml:1:6", "backslash"),
        ('a: "\\UFFFFFFFF"', "spec.yaml:1:7", "cannot be read as YAML"),
        ("a: ]", "spec.yaml:1:4", "expected a value"),
        ("{a: 1}}", "spec.yaml:1:7", "after its end"),
        ("a:\n  - 1\n b: 2", "spec.yaml:3:2", "differently"),
        ("b: 1\nab\nc: 1", "spec.yaml:2:1", "expected `:` after a key"),
        ("--- {a: 1}\n--- {b: 2}", "spec.yaml:2:1", "found a second one"),
        ("", "spec.yaml", "the file is empty"),
        ("# only a comment\n", "spec.yaml", "the file is empty"),
        ("- a", "spec.yaml:1:1", "found a list of 1"),
        ("just words", "spec.yaml:1:1", "found 'just words'"),
        ("a: 1\nb: x\0y", "spec.yaml:2:5", "control character U+0000"),
        ("a: \x1b[31m", "spec.yaml:1:4", "control character U+001B"),
        ("[" * 100, f"spec.yaml:1:{MAX_DEPTH + 1}", "at most 32 levels"),
        ("a: " + "{a: " * 5000, f"spec.yaml:1:{4 * MAX_DEPTH}", "at most 32 levels"),
        ("a: " + "x" * MAX_BYTES, "spec.yaml", "at most 1048576 bytes"),
    ],
)
def test_j01_what_cannot_be_read_is_one_sentence_with_its_place(
    text: str, where: str, fragment: str
) -> None:
    found_where, sentence = problem_of(text)

    assert found_where == where
    assert fragment in sentence


def test_j01_more_values_than_a_spec_needs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reader, "MAX_VALUES", 100)

    assert len(read_yaml(f"a: [{'1,' * 98}]", "spec.yaml").value["a"]) == 98
    where, sentence = problem_of(f"a: [{'1,' * 99}]")
    assert (where, sentence[:31]) == ("spec.yaml:1:201", "expected at most 100 values, fo")


def test_j01_an_alias_bomb_is_refused_and_never_built() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]

    document = read_yaml("\n".join(lines), "spec.yaml")

    assert len(document.faults) == 60 + 2 * 59
    assert document.value["a59"] == [None, None]


def test_a_directive_is_refused() -> None:
    (fault,) = read_yaml("%YAML 1.1\n---\na: no\n", "spec.yaml").faults
    assert "directive" in fault.message


def test_json_with_tabs_and_surrogate_pairs_is_read() -> None:
    value = {"a": [1, 1e-3, None, True, "\u00e9\U0001f600\\/"], "b": {"c d": {}}}

    for indent in (None, 2, "\t"):
        text = json.dumps(value, indent=indent)
        assert read_yaml(text, "spec.json").value == value


def test_every_key_and_value_has_its_place() -> None:
    text = "a:\n  b.c: 1\n  d: [x,\n    {e: 2}]\nf: >\n  text\n"

    places = read_yaml(text, "s.yaml").places

    assert {key: (places.keys[key].text, places.values[key].text) for key in places.keys} == {
        "a": ("s.yaml:1:1", "s.yaml:2:3"),
        "a.b.c": ("s.yaml:2:3", "s.yaml:2:8"),
        "a.d": ("s.yaml:3:3", "s.yaml:3:6"),
        "a.d.0": ("s.yaml:3:7", "s.yaml:3:7"),
        "a.d.1": ("s.yaml:4:5", "s.yaml:4:5"),
        "a.d.1.e": ("s.yaml:4:6", "s.yaml:4:9"),
        "f": ("s.yaml:5:1", "s.yaml:5:4"),
    }


def test_of_two_equal_keys_the_first_keeps_its_value_and_place() -> None:
    document = read_yaml("a: {b: 1}\na: {b: 2, c: .inf}\n", "s.yaml")

    assert document.value == {"a": {"b": 1}}
    assert document.places.of_key("a.b").text == "s.yaml:1:5"
    assert [fault.place.text for fault in document.faults] == ["s.yaml:2:1", "s.yaml:2:14"]


FRAGMENTS = st.sampled_from(
    [
        *("version: 1\n", "name: x\n", "data:", "  source: a.csv\n", "  target: y\n", "model: "),
        *("{kind: mlp, hidden: [1, 2]}\n", "training:", "\n", "  ", "\t", "- ", ": ", ", ", "? "),
        *("[", "]", "{", "}", "'", '"', "&a ", "*a ", "!t ", "!!int ", "|", ">", "#", "%", "@"),
        *(
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "<<",
            "1e-3",
            "010",
            ".inf",
            "~",
            "\\",
            "\x85",
            "\ufeff",
        ),
        *("kind", "custom", "params", "optimizer", "betas", "null", "true", "9" * 400, "s3://a:b@"),
    ]
)
YAMLISH = st.lists(FRAGMENTS | st.text(max_size=4), max_size=25).map("".join)


def error_of(text: str, overrides: list[str]) -> SpecError | None:
    """Any other exception than a SpecError fails the test."""
    try:
        parse_spec(text, "spec.yaml", overrides)
    except SpecError as error:
        return error
    return None


def assert_is_printable(error: SpecError | None) -> None:
    if error:
        assert all(problem.where and problem.message for problem in error.problems)
        assert len(str(error).split("\n")) == len(error.problems) + 1


@given(YAMLISH, st.lists(YAMLISH, max_size=2))
def test_any_text_is_read_or_refused_as_a_spec(text: str, overrides: list[str]) -> None:
    assert_is_printable(error_of(text, overrides))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "mlp", "lr", "dir", "train", "0", "[key]", "a.b", ""])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *("version", "name", "data", "model", "training", "evaluation", "export", "storage"),
        *("data.columns", "data.columns.A", "data.split", "data.split.fractions", "data.source"),
        *("training.optimizer", "training.schedule", "training.early_stopping", "training.loss"),
        *("evaluation.metrics", "evaluation.require", "tracking.tensorboard", "model.hidden"),
        *("resources.workers", "export.formats", "training.batch_size", "model.kind"),
    ]
)


@given(st.dictionaries(KEYS, JSON, max_size=3))
def test_any_value_anywhere_is_taken_or_refused_with_one_line_each(values: dict[str, Any]) -> None:
    head = '{"version": 1, "name": "x", "data": {"source": "a.csv", "target": "y"}}'
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    assert_is_printable(error_of(head, overrides))
