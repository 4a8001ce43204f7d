"""The page on sources and splits: its examples are read, and it names all there is."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from batchtrain.spec.data import SplitSpec
from batchtrain.spec.load import parse_spec
from batchtrain.tables.formats import FORMATS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def spec_of(example: str) -> str:
    return f"version: 1\nname: example\ndata:\n{textwrap.indent(example, '  ')}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: " ".join(text.split())[:50])
def test_an_example_is_a_good_spec(example: str) -> None:
    assert parse_spec(spec_of(example), "spec.yaml").spec.data.source


def test_every_kind_of_split_has_an_example() -> None:
    kinds = {get_args(each.model_fields["kind"].annotation)[0] for each in _rules()}
    shown = {
        split.kind
        for example in EXAMPLES
        if (split := parse_spec(spec_of(example), "spec.yaml").spec.data.split) is not None
    }
    # `source` is what a folder of splits means without a word.
    assert shown == kinds - {"source"}


def test_every_ending_is_named() -> None:
    assert [end for end in FORMATS if end.removesuffix(".gz") not in PAGE] == []


def _rules() -> tuple[type, ...]:
    return get_args(get_args(SplitSpec)[0])
