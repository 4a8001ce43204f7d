"""The page on searches: its sections are specs, its outputs are true, and it names all there is."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import get_args

import pytest
from typer.testing import CliRunner

from batchtrain.cli.app import app
from batchtrain.spec.changes import CHANGEABLE
from batchtrain.spec.load import parse_spec
from batchtrain.spec.search import METRICS, Algorithm, Asha, HyperBand, Pbt, SearchSpec
from batchtrain.training.packed import rules
from batchtrain.tuning.corners import check_space
from batchtrain.tuning.trials import TrialRecord, TrialState
from tests.support.runs import SPECS

ROOT = SPECS.parents[1]
PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
HEAD = """\
version: 1
name: page
data: {source: rows.csv, target: y, task: classification}
training: {epochs: 100}
"""
SECTIONS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PLANS = re.findall(r"^```plan (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_of_the_page_is_a_search_that_can_begin(section: str) -> None:
    check_space(parse_spec(HEAD + section, "spec.yaml"))


@pytest.mark.parametrize(("name", "wanted"), PLANS)
def test_a_plan_looks_as_on_the_page(
    name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(app, ["plan", str(SPECS / f"{name}.yaml")])
    said = [line.rstrip() for line in result.output.splitlines()]
    assert result.exit_code == 0, result.output
    assert [line for line in wanted.splitlines() if line not in said] == []


def test_the_commands_of_the_page_exist() -> None:
    commands = re.findall(r"^batchtrain (\w+) (\S+\.yaml)", PAGE, flags=re.MULTILINE)
    known = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {command for command, _ in commands} == {"check", "plan", "tune"} <= known
    assert [spec for _, spec in commands if not (ROOT / spec).is_file()] == []


def test_the_page_names_all_that_can_be_chosen_and_all_that_is_told() -> None:
    settings = {
        name
        for each in (Asha, HyperBand, Pbt)
        for name in each.model_fields
        if name not in {"kind", "resample"}
    }
    wanted = {
        "sections": set(SearchSpec.model_fields),
        "algorithms": {*get_args(Algorithm), "asha", "hyperband", "pbt"},
        "settings": settings,
        "goals": {"valid_loss", "valid_accuracy", "valid_r2", "parameters"} & set(METRICS),
        "changes": set(CHANGEABLE),
        "trials": {each.name for each in fields(TrialRecord)},
        "states": set(get_args(TrialState)),
        "packs": rules.FREE_OF_MODEL | rules.FREE_OF_OPTIMIZER | rules.FREE_OF_TRAINING,
    }
    words = set(re.findall(r"[a-z][a-z0-9_.]*[a-z0-9]", PAGE))
    assert {what: names - words for what, names in wanted.items() if names - words} == {}
