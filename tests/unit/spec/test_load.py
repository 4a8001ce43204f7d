"""Specs that are read: the smallest, the long form, overrides, and files that are not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from batchtrain.errors import Problem, SpecError
from batchtrain.spec import RunSpec
from batchtrain.spec.load import load_spec, parse_spec
from batchtrain.spec.model import LinearModel, MlpModel
from batchtrain.spec.optimizers import Adam, AdamW, Sgd

MINIMAL = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"

LONG = """\
version: 1
name: drug200
seed: 42
data:
  source: drug200.csv
  target: Drug
  task: classification
  columns:
    Age: {kind: numeric, missing: mean, scale: standard}
    BP:  {kind: categorical}
  exclude: [patient_id]
  null_values: ["", NA, NaN]
  split: {kind: stratified, fractions: {train: 0.7, valid: 0.1, test: 0.2}}
model: {kind: mlp, hidden: [128, 64], activation: relu, dropout: 0.3}
training:
  epochs: 100
  batch_size: 32
  loss: auto
  optimizer: {kind: adam, lr: 1e-3, weight_decay: 0}
  schedule: {kind: plateau, factor: 0.1, patience: 5}
  early_stopping: {metric: valid_loss, patience: 12}
evaluation: {metrics: [accuracy, f1_macro, log_loss], require: {accuracy: ">= 0.9"}}
export: {formats: [safetensors]}
engine: auto
determinism: order
resources: {workers: auto, cpus_per_worker: 1, device: auto}
tracking: {tensorboard: true, log_every_steps: 10, monitor: [valid]}
storage: ./runs
"""


def only_problem(path: Path | str, *overrides: str) -> Problem:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    (problem,) = caught.value.problems
    return problem


def test_the_smallest_spec_gets_all_defaults() -> None:
    spec = parse_spec(MINIMAL, "spec.yaml").spec

    data = {"source": "a.csv", "target": "y"}
    assert spec == RunSpec.model_validate({"version": 1, "name": "tiny", "data": data})


def test_the_long_form_is_read_as_it_is_written() -> None:
    spec = parse_spec(LONG, "spec.yaml").spec

    assert spec.training.optimizer == Adam(kind="adam", lr=0.001, weight_decay=0.0)
    assert spec.model == MlpModel(kind="mlp", hidden=(128, 64), activation="relu", dropout=0.3)
    assert spec.data.null_values == ("", "NA", "NaN")
    assert spec.evaluation.require == {"accuracy": ">= 0.9"}


def test_a_json_file_is_read_as_the_yaml_that_it_is(tmp_path: Path) -> None:
    from_yaml = parse_spec(LONG, "spec.yaml").spec
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(from_yaml.model_dump(mode="json"), indent="\t"))

    assert load_spec(path).spec == from_yaml


def test_the_path_is_absolute_and_messages_name_the_file_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)

    loaded = load_spec("./spec.yaml")

    assert loaded.path == tmp_path / "spec.yaml"
    assert loaded.where("data.target") == "./spec.yaml:5:3"


def test_where_gives_the_deepest_place_that_was_written() -> None:
    loaded = parse_spec(LONG, "s.yaml", ["training.epochs=3", "data.split={kind: random}"])

    assert loaded.where("data.columns.Age.scale") == "s.yaml:9:41"
    assert loaded.where("data.columns.Age.indicator") == "s.yaml:9:5"
    assert loaded.where("data.columns.Cholesterol") == "s.yaml:8:3"
    assert loaded.where("data.exclude.0") == "s.yaml:11:13"
    assert loaded.where("training.epochs") == "--set training.epochs=3"
    assert loaded.where("training") == "s.yaml:15:1"
    assert loaded.where("data.split.fractions.train") == "--set data.split={kind: random}"
    assert parse_spec(MINIMAL, "s.yaml").where("training.epochs") == "s.yaml"


def test_overrides_are_values_as_in_the_file() -> None:
    overrides = [
        "training.optimizer.lr=1e-2",
        "model = {kind: mlp, hidden: [3]}",
        "training.epochs=7",
        "training.early_stopping=null",
        "evaluation.require.accuracy='> 0.5'",
        "data.source=C:\\x=1.csv",
    ]
    spec = parse_spec(LONG, "spec.yaml", overrides).spec

    assert spec.training.optimizer == Adam(kind="adam", lr=0.01, weight_decay=0.0)
    assert spec.model == MlpModel(kind="mlp", hidden=(3,))
    assert spec.training.epochs == 7
    assert spec.training.early_stopping is None
    assert spec.evaluation.require == {"accuracy": "> 0.5"}
    assert spec.data.source == "C:\\x=1.csv"


def test_an_override_makes_the_sections_that_it_needs_with_their_default_kind() -> None:
    overrides = ["training.optimizer.lr=1e-2", "model.dropout=0", "data.split.kind=ordered"]
    loaded = parse_spec(MINIMAL, "spec.yaml", overrides)

    assert loaded.spec.training.optimizer == AdamW(kind="adamw", lr=0.01)
    assert loaded.spec.model == MlpModel(kind="mlp", dropout=0.0)
    assert loaded.where("training.optimizer.kind") == "--set training.optimizer.lr=1e-2"


def test_of_two_overrides_of_a_key_the_last_one_holds() -> None:
    overrides = ["model.dropout=0", "model={kind: linear}", "training.optimizer.kind=sgd"]
    spec = parse_spec(MINIMAL, "spec.yaml", overrides).spec

    assert isinstance(spec.model, LinearModel)
    assert isinstance(spec.training.optimizer, Sgd)


def test_an_override_mends_what_is_wrong_in_the_file() -> None:
    text = MINIMAL + "seed: .inf\nengine: ray\n"
    spec = parse_spec(text, "spec.yaml", ["seed=7", "engine=embedded"]).spec
    assert spec.seed == 7


@pytest.mark.parametrize(
    ("override", "key", "fragment"),
    [
        ("trianing.epochs=3", "trianing", "Did you mean `training`?"),
        ("training.epoch=3", "training.epoch", "Did you mean `training.epochs`?"),
        ("training.epochs='3'", "training.epochs", "found '3' (text)  Remove the quotes"),
        ("data.split.fractions.train=0.8", "data.split.kind", "the key 'kind' is missing"),
        ("model.kind=mpl", "model.kind", "Did you mean 'mlp'?"),
        ("engine=rya", "engine", "found 'rya'"),
        ("seed=.nan", "seed", "finite number"),
        ("seed=&a 1", "seed", "an anchor"),
        ("training={epochs: 1, epochs: 2}", "training.epochs", "appears twice"),
        ("seed=", "seed", "found nothing"),
        ("seed", "", "expected KEY=VALUE"),
        ("=3", "", "expected KEY=VALUE"),
        ("training..epochs=3", "", "expected KEY=VALUE"),
        ("name.first=x", "", "`name` is not a section, but 'tiny'"),
        ("training=epochs: 3", "", "Write {a: b}"),
        ("training=[", "", "expected a value"),
    ],
)
def test_a_bad_override_is_a_problem_at_that_override(
    override: str, key: str, fragment: str
) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(MINIMAL, "spec.yaml", [override])
    (problem,) = caught.value.problems

    assert (problem.where, problem.key) == (f"--set {override}", key)
    assert fragment in f"{problem.message}  {problem.hint}"


def test_problems_of_overrides_come_after_those_of_the_file() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(MINIMAL + "seed: x\n", "s.yaml", ["b", "name=A", "training.epochs=0"])

    assert [problem.where for problem in caught.value.problems] == [
        "s.yaml:6:7",
        "--set b",
        "--set name=A",
        "--set training.epochs=0",
    ]


def test_a_missing_file_suggests_one_that_is_called_alike(tmp_path: Path) -> None:
    (tmp_path / "drug200.yaml").write_text(MINIMAL)

    problem = only_problem(tmp_path / "drugs200.yaml")

    assert problem.where == str(tmp_path / "drugs200.yaml")
    assert problem.message == "there is no such file"
    assert str(tmp_path / "drug200.yaml") in problem.hint


def test_a_missing_file_without_a_neighbour_suggests_init(tmp_path: Path) -> None:
    assert "batchtrain init" in only_problem(tmp_path / "none" / "spec.yaml").hint


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    problem = only_problem(tmp_path)
    assert "found a folder" in problem.message
    assert "batchtrain init" in problem.hint

    (tmp_path / "spec.yaml").write_text(MINIMAL)
    assert str(tmp_path / "spec.yaml") in only_problem(tmp_path).hint


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in only_problem(tmp_path / "pipe").message


@pytest.mark.parametrize(
    ("data", "where", "fragment"),
    [
        (b"version: 1\nname: \xff\n", ":2:7", "expected UTF-8, found the byte 0xFF"),
        ("version: 1".encode("utf-16"), ":1:1", "expected UTF-8"),
        (b"a: 1\0", ":1:5", "U+0000"),
        (b"#" * (2**20 + 1), "", "at most 1048576 bytes"),
        (b"", "", "the file is empty"),
    ],
)
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, data: bytes, where: str, fragment: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(data)

    problem = only_problem(path)

    assert problem.where == f"{path}{where}"
    assert fragment in problem.message


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_a_problem(name: str) -> None:
    assert only_problem(name).message.startswith("the file cannot be read")


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_spec(path).spec.name == "tiny"


def test_a_loop_of_links_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "cannot be read" in only_problem(tmp_path / "loop.yaml").message


def test_the_shipped_specs_are_good() -> None:
    shipped = sorted(Path(__file__).parents[3].glob("jobs/specs/*.yaml"))
    assert shipped
    for path in shipped:
        load_spec(path)
