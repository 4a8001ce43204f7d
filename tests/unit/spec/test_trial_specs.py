"""The spec of a trial: the one that was written, with the trial's values in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchtrain.errors import Problem, SpecError
from batchtrain.spec import RunSpec
from batchtrain.spec.load import LoadedSpec, load_spec, parse_spec, with_values
from batchtrain.spec.optimizers import Sgd
from batchtrain.spec.standalone import spec_text

TEXT = """\
version: 1
search:
  space:
    training.optimizer.kind: {choice: [adam, sgd]}
    training.optimizer.momentum: {uniform: [0.5, 0.99], when: {training.optimizer.kind: sgd}}
    training.optimizer.lr: {log_uniform: [1e-5, 1]}
    training.early_stopping: {choice: [null, {patience: 3}]}
    model.hidden: {choice: [[64], [64, 32]]}
name: tiny
training:
  checkpoint: {every_seconds: null, every_steps: 5}
  optimizer: {lr: 1e-3, kind: adam}
data:
  target: y
  columns: {b: {kind: numeric}, a: {kind: categorical}}
  source: a.csv
"""


def problems_of(loaded: LoadedSpec, values: dict[str, Any]) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        with_values(loaded, values)
    return caught.value.problems


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training.optimizer.lr": 0.5},
        {"training.optimizer.kind": "sgd", "training.optimizer.momentum": 0.75},
        {"training.optimizer": {"kind": "sgd"}, "training.optimizer.lr": 0.25},
        {"training.early_stopping": None},
        {"training.early_stopping": {"patience": 3}, "training.early_stopping.min_delta": 0.5},
        {"model.hidden": [64, 32], "model.dropout": 0},
        {"training.schedule.kind": "step", "training.schedule.every_epochs": 3},
        {"data.columns.a.kind": "text", "seed": 7},
    ],
)
def test_values_are_what_overrides_would_be(values: dict[str, Any]) -> None:
    loaded = parse_spec(TEXT, "s.yaml")
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]

    trial = with_values(loaded, values).spec

    expected = parse_spec(TEXT, "s.yaml", overrides).spec.model_copy(update={"search": None})
    assert trial == expected
    assert loaded == parse_spec(TEXT, "s.yaml")


def test_values_are_set_in_their_order_and_are_never_shared() -> None:
    loaded = parse_spec(TEXT, "s.yaml")
    section = {"kind": "sgd"}

    trial = with_values(loaded, {"training.optimizer": section, "training.optimizer.lr": 0.25})

    assert trial.spec.training.optimizer == Sgd(kind="sgd", lr=0.25)
    assert section == {"kind": "sgd"}
    assert trial.where("training.optimizer.lr") == "s.yaml:6:5"
    assert trial.where("training.optimizer") == "s.yaml:3:3"
    assert trial.where("data.target") == "s.yaml:14:3"


def test_what_does_not_go_with_the_spec_is_at_the_key_of_the_space() -> None:
    loaded = parse_spec(TEXT, "s.yaml")

    (momentum,) = problems_of(loaded, {"training.optimizer.momentum": 0.9})
    lr, hidden = problems_of(loaded, {"model.hidden": [64, 0], "training.optimizer.lr": -1.0})

    assert (momentum.where, momentum.key) == (
        "s.yaml:5:5",
        "search.space.training.optimizer.momentum",
    )
    assert "It belongs to the kind sgd or rmsprop, not to adam" in momentum.hint
    assert (lr.where, lr.key) == ("s.yaml:6:5", "search.space.training.optimizer.lr")
    assert (hidden.where, hidden.key) == ("s.yaml:8:5", "search.space.model.hidden")


def test_a_value_below_what_is_no_section_is_refused() -> None:
    (problem,) = problems_of(parse_spec(TEXT, "s.yaml"), {"training.optimizer.lr.x": 1})

    assert problem.key == "search.space.training.optimizer.lr.x"
    assert "is not a section, but 0.001" in problem.message


def test_the_best_spec_reads_as_it_was_written() -> None:
    loaded = parse_spec(TEXT, "/work/s.yaml")
    values = {
        "training.optimizer.kind": "sgd",
        "training.optimizer.momentum": 0.75,
        "training.optimizer.lr": 0.0123,
        "model.hidden": [64, 32],
    }

    text = spec_text(loaded, values, header=["Trial 17 of 64: valid_loss 0.25.", "a\nb\x07"])

    assert text == (
        "# Trial 17 of 64: valid_loss 0.25.\n"
        "# a\n"
        "# b\n"
        "version: 1\n"
        "name: tiny\n"
        "training:\n"
        "  checkpoint: {every_seconds: null, every_steps: 5}\n"
        "  optimizer: {lr: 0.0123, kind: sgd, momentum: 0.75}\n"
        "data:\n"
        "  target: y\n"
        "  columns:\n"
        "    b: {kind: numeric}\n"
        "    a: {kind: categorical}\n"
        "  source: /work/a.csv\n"
        "model:\n"
        "  kind: mlp\n"
        "  hidden: [64, 32]\n"
        "storage: /work/runs\n"
    )


PLACES = """\
version: 1
name: places
data:
  target: y
  split: {kind: files, train: rows/*.csv, valid: "hf:./valid", test: /abs/t.csv}
model: {kind: custom, target: "nets:Net", params: {a: null, b: "1e-3"}, assets: {words: w.txt}}
training:
  warm_start: {bundle: bundles/one}
tracking: {tensorboard: {dir: tb}, mlflow: {uri: mlruns}}
storage: ./here
"""


def test_local_paths_are_absolute_and_all_else_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(PLACES)
    loaded = load_spec(tmp_path / "s.yaml")

    (tmp_path / "best").mkdir()
    (tmp_path / "best/best.yaml").write_text(spec_text(loaded, {}))
    best = load_spec(tmp_path / "best/best.yaml").spec.model_dump(mode="json")

    expected = loaded.spec.model_dump(mode="json")
    base = str(tmp_path)
    expected["data"]["source"] = f"{base}/rows/*.csv"
    expected["data"]["split"] |= {"train": f"{base}/rows/*.csv", "valid": f"hf:{base}/valid"}
    expected["model"]["assets"] = {"words": f"{base}/w.txt"}
    expected["training"]["warm_start"]["bundle"] = f"{base}/bundles/one"
    expected["tracking"]["tensorboard"]["dir"] = f"{base}/tb"
    expected["tracking"]["mlflow"]["uri"] = f"{base}/mlruns"
    expected["storage"] = f"{base}/here"
    assert best == expected


@pytest.mark.parametrize(
    "source", ["sample:drug200", "hf:org/name@main", "custom:mine:Rows", "/abs/a.csv"]
)
def test_what_is_no_relative_path_stays(source: str) -> None:
    text = (
        f"version: 1\nname: tiny\ndata: {{source: '{source}', target: y}}\n"
        "storage: s3://bucket/runs\ntracking: {mlflow: {uri: 'https://host'}}\n"
    )
    loaded = parse_spec(text, "s.yaml")

    assert RunSpec.model_validate(yaml.safe_load(spec_text(loaded, {}))) == loaded.spec
