"""The page on what is seen of a training: true examples, and the tags of a run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batchtrain.cli.epoch_line import epoch_line
from batchtrain.spec.load import parse_spec
from tests.support.builders import layout_for, mixed_table, run, spec_for, storage_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
HEAD = "version: 1\nname: page\ndata: {source: rows.csv, target: y}\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("section", blocks("yaml"))
def test_every_section_of_the_page_is_a_spec(section: str) -> None:
    tracking = parse_spec(HEAD + section, "spec.yaml").spec.tracking
    assert tracking.model_fields_set


def test_the_defaults_of_the_page_are_those_of_the_spec() -> None:
    profile = parse_spec(HEAD, "spec.yaml", ["tracking.profile={}"]).spec.tracking.profile
    assert profile is not None
    (section,) = (each for each in blocks("yaml") if "profile" in each)
    assert parse_spec(HEAD + section, "spec.yaml").spec.tracking.profile == profile
    name = f"rank-0-steps-{profile.start_step}-{profile.start_step + profile.steps - 1}.json.gz"
    assert name in PAGE


def test_an_epoch_looks_as_on_the_page() -> None:
    record = {"epoch": 3, "lr": 0.001, "train_loss": 0.4321, "valid_loss": 0.3987}
    assert f"{epoch_line({**record, 'valid_accuracy': 0.852}, 10)}, 1,204,113 rows/s" in PAGE


def test_the_tags_of_the_page_are_those_of_a_run_and_the_examples_are_true(tmp_path: Path) -> None:
    loaded = spec_for(
        tmp_path, mixed_table(60), tracking={"tensorboard": True, "log_every_steps": 1}
    )
    result = run(loaded, last="evaluate")
    assert result.trained is not None
    folder = storage_of(loaded).root / layout_for(loaded).tensorboard

    found = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    assert {path.name for path in found - {folder}} == {"loss_training", "loss_validation"}
    tags = {tag for path in found for tag in EventAccumulator(str(path)).Reload().Tags()["scalars"]}
    splits, metric = "(train|valid|test)", "[a-z0-9_]+"
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)
    patterns = [row.replace("<split>", splits).replace("<metric>", metric) for row in rows]
    for tag in tags:
        assert any(re.fullmatch(pattern, tag) for pattern in patterns), tag
    for pattern in patterns:
        is_there = any(re.fullmatch(pattern, tag) for tag in tags)
        assert is_there or pattern.startswith(("R2/", metric)), pattern

    names = {"folder": str(folder), "best_epoch": result.trained.content["best_epoch"]}
    (block,) = blocks("python")
    said: list[str] = []
    examples = doctest.DocTestParser().get_doctest(block, names, "page", None, 0)
    doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert "".join(said) == ""
