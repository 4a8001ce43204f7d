"""The page on training: its examples are specs, and it names what can be chosen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from batchtrain.spec.load import parse_spec
from batchtrain.spec.model import ModelSpec
from batchtrain.spec.optimizers import OptimizerSpec
from batchtrain.spec.schedules import ScheduleSpec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
HEAD = "version: 1\nname: page\ndata: {source: rows.csv, target: y}\n"
SECTIONS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def kinds(choices: object) -> set[str]:
    """The values of `kind` of a union of sections."""
    union, _discriminator = get_args(choices)
    return {get_args(each.model_fields["kind"].annotation)[0] for each in get_args(union)}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_of_the_page_is_a_spec(section: str) -> None:
    spec = parse_spec(HEAD + section, "spec.yaml").spec
    assert spec.model_fields_set & {"model", "training", "evaluation"}


@pytest.mark.parametrize("choices", [ModelSpec, OptimizerSpec, ScheduleSpec])
def test_the_page_names_all_that_can_be_chosen(choices: object) -> None:
    assert {kind for kind in kinds(choices) if f"`{kind}`" not in PAGE} == set()
