"""The JSON Schema that editors read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from batchtrain.spec.load import LITERAL_NUMBERS
from batchtrain.spec.reading.outline import Outline
from batchtrain.spec.reading.yaml_reader import read_yaml
from batchtrain.spec.schema import json_schema, schema_text

ROOT = Path(__file__).parents[3]

MINIMAL = {"version": 1, "name": "tiny", "data": {"source": "a.csv", "target": "y"}}


def test_the_file_in_docs_is_the_schema_of_the_code() -> None:
    """If it differs: make schema."""
    assert (ROOT / "docs/spec.schema.json").read_text(encoding="utf-8") == schema_text()


def test_it_is_a_schema_of_the_2020_draft_with_descriptions() -> None:
    schema = json_schema()

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "batchtrain spec"
    assert schema["properties"]["name"]["description"].startswith("The run's name")


@pytest.mark.parametrize(
    ("added", "is_good"),
    [
        ({}, True),
        ({"model": {"kind": "mlp", "hidden": [3]}}, True),
        ({"model": {"kind": "mpl"}}, False),
        ({"epochs": 3}, False),
        ({"training": {"batch_size": "full"}}, True),
        ({"training": {"batch_size": 0}}, False),
        ({"evaluation": {"require": {"accuracy": ">= 0.9"}}}, True),
        ({"evaluation": {"require": {"acc": ">= 0.9"}}}, False),
    ],
)
def test_an_editor_sees_what_the_reader_sees(added: dict[str, Any], is_good: bool) -> None:
    assert Draft202012Validator(json_schema()).is_valid({**MINIMAL, **added}) is is_good


def test_the_shipped_specs_fit_the_schema() -> None:
    validator = Draft202012Validator(json_schema())
    for path in sorted(ROOT.glob("jobs/specs/*.yaml")):
        validator.validate(read_yaml(path.read_text(encoding="utf-8"), path.name).value)


def test_every_literal_number_is_known_to_the_reader() -> None:
    """The literal 1 would take true and 1.0 too."""
    outline = Outline(json_schema())
    numbers = [
        pattern
        for _, pattern, _ in outline.places_of_keys()
        for choice in _choices(outline, pattern)
        if not isinstance(choice, str)
    ]
    assert numbers == [".".join(loc) for loc in LITERAL_NUMBERS]


def _choices(outline: Outline, pattern: str) -> list[Any]:
    nodes = [outline.root]
    for name in pattern.split("."):
        options = [option for node in nodes for option in outline.branches(node)]
        options += [kind for option in options for kind in outline.kinds(option).values()]
        nodes = [
            option.get("properties", {}).get(name, option.get("additionalProperties"))
            for option in options
            if "properties" in option or "additionalProperties" in option
        ]
        nodes = [node for node in nodes if isinstance(node, dict)]
    leaves = [option for node in nodes for option in outline.branches(node)]
    return [choice for leaf in leaves for choice in leaf.get("enum", [leaf.get("const", "")])]
