"""The example specs of searches, each as it stands: what it finds, and that it is done once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from batchtrain.artifacts.bundle import ModelBundle
from batchtrain.cli.app import app
from batchtrain.export.verify import verify
from tests.support.runs import SPECS, read_json

SEARCHES = {"tune-drug200": 32, "tune-breast-cancer": 96, "tune-digits": 16}
"""Each example with a search, and its trials."""

Found = tuple[dict[str, Any], dict[str, Any], str]
"""What `--json` prints, the table, and all that the command says."""


def tuned(name: str, storage: Path, *overrides: str) -> Found:
    words = [f"--set={each}" for each in (f"storage={storage}", *overrides)]
    result = CliRunner().invoke(app, ["tune", str(SPECS / f"{name}.yaml"), *words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    return found, read_json(Path(found["table"])), result.output


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """The search of an example, made once for all tests."""
    storage = tmp_path_factory.mktemp("searches")
    return cache(lambda name: tuned(name, storage))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_runs_as_it_stands_and_is_done_the_second_time(
    searched: Callable[[str], Found], name: str
) -> None:
    found, table, _ = searched(name)
    folder = Path(found["table"]).parent
    assert found["trials"] == len(table["trials"]) == SEARCHES[name]
    assert set(found["states"]) <= {"finished", "stopped"}
    assert table["packed"]["trials"] == SEARCHES[name]
    assert verify(ModelBundle.open(found["run"]["bundle"])).exact
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again, _, _ = tuned(name, folder.parents[1])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (again["best"], again["run"]["bundle"]) == (found["best"], found["run"]["bundle"])


def test_the_readme_shows_the_first_of_them(searched: Callable[[str], Found]) -> None:
    _, table, said = searched("tune-drug200")
    readme = (SPECS.parents[1] / "README.md").read_text()
    spec = yaml.safe_load((SPECS / "tune-drug200.yaml").read_text())
    (section,) = re.findall(r"^```yaml\n(search:.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(section)["search"] == spec["search"]
    # Scores differ between machines in their last digits.
    rows = "search    32 trials: 32 finished; 154,880 rows trained"
    for line in (rows, "packed    32 trials in 1 pack"):
        assert line in said
        assert line in readme
    scores = sorted(each["scores"]["valid_loss"] for each in table["trials"])
    assert scores[0] < 0.5 * scores[len(scores) // 2]


def test_asha_stops_most_and_keeps_the_condition(searched: Callable[[str], Found]) -> None:
    _, table, _ = searched("tune-breast-cancer")
    trials = table["trials"]
    stopped = [each for each in trials if each["state"] == "stopped"]
    assert 0.8 * len(trials) < len(stopped) < len(trials)
    assert table["rows"] < 0.25 * len(trials) * 64 * 341
    for each in trials:
        is_sgd = each["values"]["training.optimizer.kind"] == "sgd"
        assert ("training.optimizer.momentum" in each["values"]) == is_sgd
    sizes = {each["scores"]["parameters"] for each in trials if each["number"] in table["front"]}
    assert len(sizes) == len(table["front"]) > 1


def test_a_population_ends_as_values_that_change(searched: Callable[[str], Found]) -> None:
    found, table, _ = searched("tune-digits")
    assert any(each["parent"] not in {None, each["number"]} for each in table["trials"])
    changes = yaml.safe_load(Path(found["best_spec"]).read_text())["training"]["changes"]
    assert {change["epoch"] % 3 for change in changes} == {0}
    assert found["run"]["stages"]


def test_more_trials_go_on_with_full_packs_and_the_same_values(tmp_path: Path) -> None:
    few = ["search.export=false", "training.epochs=1", "search.pack=4"]
    _, first, _ = tuned("tune-drug200", tmp_path, *few, "search.trials=6")
    found, second, _ = tuned("tune-drug200", tmp_path, *few, "search.trials=9")
    units = sorted(path.name[:6] for path in Path(found["table"]).parent.glob("units/*.json"))
    assert units == ["000000", "000004", "000004", "000008"]
    assert [each["values"] for each in second["trials"][:6]] == [
        each["values"] for each in first["trials"]
    ]
    assert second["trials"][:4] == first["trials"][:4]
