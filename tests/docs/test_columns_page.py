"""The page on columns: its examples are read, and it names every kind with its settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from batchtrain.preprocessing.images import FORMATS, MAX_PIXELS
from batchtrain.spec.columns import ColumnSpec, ImageColumn, TextColumn, VectorColumn
from batchtrain.spec.load import parse_spec
from tests.docs.test_sources_page import spec_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "columns.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
KINDS = {
    get_args(each.model_fields["kind"].annotation)[0]: each
    for each in get_args(get_args(ColumnSpec)[0])
}


def columns_of(example: str) -> dict[str, ColumnSpec]:
    return dict(parse_spec(spec_of(example), "spec.yaml").spec.data.columns)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: " ".join(text.split())[:50])
def test_an_example_is_a_good_spec(example: str) -> None:
    assert columns_of(example)


def test_every_kind_has_a_line_and_the_wide_ones_have_an_example_of_every_key() -> None:
    assert [kind for kind in KINDS if f"\n| `{kind}` |" not in PAGE] == []
    shown = {type(spec): spec for example in EXAMPLES for spec in columns_of(example).values()}
    assert set(shown) == {TextColumn, VectorColumn, ImageColumn}
    for kind, spec in shown.items():
        assert spec.model_fields_set == set(kind.model_fields)


def test_the_limits_are_those_in_force() -> None:
    assert f"{MAX_PIXELS / 1e6:.0f} million pixels" in PAGE
    assert " and ".join(FORMATS) in PAGE
