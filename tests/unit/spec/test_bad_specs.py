"""Bad specs: each gets one problem, at its key and line, with a sentence that helps."""

from __future__ import annotations

import re

import pytest

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import parse_spec

HEAD = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"
"""Five lines; what a case adds starts at line 6."""


def problems_in(text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "spec.yaml", overrides)
    return caught.value.problems


def replaced(line: str, by: str) -> str:
    assert line in HEAD
    return HEAD.replace(line, by)


ADDED: list[tuple[str, str, int, str]] = [
    # No such key, and where it belongs.
    ("trainning: {}", "trainning", 6, "Did you mean `training`?"),
    ("Training: {}", "Training", 6, "Did you mean `training`?"),
    ("epochs: 3", "epochs", 6, "Did you mean `training.epochs` or `training.warmup.epochs`?"),
    ("optimiser: {kind: adam}", "optimiser", 6, "did you mean `training.optimizer`?"),
    ("training:\n  lr: 1", "training.lr", 7, "did you mean `training.optimizer.lr`?"),
    ("training:\n  optimiser: {}", "training.optimiser", 7, "Did you mean `training.optimizer`?"),
    ("training:\n  patience: 3", "training.patience", 7, "or `training.early_stopping.patience`"),
    (
        "training: {optimizer: {kind: adam, momentum: 0.9}}",
        "training.optimizer.momentum",
        6,
        "It belongs to the kind sgd or rmsprop, not to adam",
    ),
    ("quux: 1", "quux", 6, "The keys here are version, name, seed, data, model"),
    ("model: {kind: linear, hidden: [3]}", "model.hidden", 6, "belongs to the kind mlp or cnn"),
    ("model: {kind: mlp, width: 3}", "model.width", 6, "belongs to the kind resnet, not to mlp"),
    # The wrong kind.
    ("model: {kind: mpl}", "model.kind", 6, "linear, mlp, resnet, cnn or custom, found 'mpl'"),
    ("model: {kind: mpl}", "model.kind", 6, "Did you mean 'mlp'?"),
    ("model: {kind: 3}", "model.kind", 6, "found 3"),
    ("model: {hidden: [3]}", "model.kind", 6, "the key 'kind' is missing; expected linear, mlp"),
    ("model: mlp", "model", 6, "Write {kind: mlp}"),
    ("training: {loss: bec}", "training.loss", 6, "Did you mean 'bce'?"),
    ("evaluation: {metrics: [acuracy]}", "evaluation.metrics.0", 6, "Did you mean 'accuracy'?"),
    ("evaluation: {require: {accuracy: '>= 2'}}", "evaluation.require", 6, "is at most 1"),
    ("evaluation: {require: {f1_micro: '>1'}}", "evaluation.require", 6, "f1_micro can reach"),
    ("evaluation: {require: {r2: '> 1.0'}}", "evaluation.require", 6, "is at most 1"),
    ("evaluation: {require: {mae: '<= -1'}}", "evaluation.require", 6, "is at least 0"),
    ("evaluation: {require: {rmse: '< 0'}}", "evaluation.require", 6, "is at least 0"),
    ("evaluation: {require: {f1: '> 1'}}", "evaluation.require.f1", 6, "f1_macro, f1_micro"),
    # The wrong type.
    ("training:\n  epochs: '12'", "training.epochs", 7, "found '12' (text)  Remove the quotes"),
    ("training: {epochs: twelve}", "training.epochs", 6, "a whole number from 1 to 10000000"),
    ("training: {epochs: 1e1}", "training.epochs", 6, "found 10.0  Write 10"),
    ("training: {epochs: 1_000}", "training.epochs", 6, "Write 1000"),
    ("training: {epochs: true}", "training.epochs", 6, "found true"),
    ("training: {epochs: 12:30:45}", "training.epochs", 6, "found '12:30:45' (text)"),
    ("training:", "training", 6, "expected a section, found nothing"),
    ("training: [1]", "training", 6, "expected a section, found a list of 1"),
    ("training: {schedule: no}", "training.schedule", 6, "Remove the key, or write null"),
    ("tracking: {tensorboard: no}", "tracking.tensorboard", 6, "found 'no' (text)  Write false"),
    ("tracking: {tensorboard: {}}", "tracking.tensorboard.dir", 6, "the key 'dir' is missing"),
    ("model: {kind: mlp, hidden: 64}", "model.hidden", 6, "Write a list in brackets"),
    ("model: {kind: mlp, hidden: [8, a]}", "model.hidden.1", 6, "found 'a' (text)"),
    (
        "training: {optimizer: {kind: adam, betas: [0.9]}}",
        "training.optimizer.betas",
        6,
        "expected a list of 2, each a number",
    ),
    ("export: {formats: []}", "export.formats", 6, "a list of at least 1, each safetensors"),
    ("storage: 3", "storage", 6, "found 3  Put it in quotes"),
    ("resources: {workers: 1.0}", "resources.workers", 6, "from 1 to 4096, found 1.0"),
    # Impossible values (J02); a union gets one sentence.
    ("training: {batch_size: 0}", "training.batch_size", 6, "auto, full or a whole number from 1"),
    ("training: {batch_size: half}", "training.batch_size", 6, "auto, full or a whole number"),
    ("training: {epochs: 0}", "training.epochs", 6, "from 1 to 10000000, found 0"),
    ("training: {epochs: 1000000000000}", "training.epochs", 6, "found 1000000000000"),
    ("seed: -1", "seed", 6, "at least 0 and below 9223372036854775808, found -1"),
    ("seed: 1e999", "seed", 6, "a number that a 64-bit float can hold, found 1e999"),
    (f"seed: {'9' * 200}", "seed", 6, "at most 100 digits"),
    ("resources: {workers: -1}", "resources.workers", 6, "from 1 to 4096, found -1"),
    (
        "training: {optimizer: {kind: sgd, lr: .inf}}",
        "training.optimizer.lr",
        6,
        "expected a finite number, found .inf",
    ),
    (
        "training: {optimizer: {kind: sgd, lr: NaN}}",
        "training.optimizer.lr",
        6,
        "above 0 and at most 1000000, found 'NaN' (text)",
    ),
    ("training: {optimizer: {kind: sgd, lr: 0}}", "training.optimizer.lr", 6, "above 0"),
    ("model: {kind: mlp, dropout: 1}", "model.dropout", 6, "at least 0 and below 1, found 1"),
    ("resources:\n  cpus_per_worker: 010", "resources.cpus_per_worker", 7, "as octal, found 010"),
    ("resources: {cpus_per_worker: 0o10000}", "resources.cpus_per_worker", 6, "found 4096"),
    # Keys that disagree.
    (
        "training:\n  optimizer:\n    kind: sgd\n    nesterov: true",
        "training.optimizer.nesterov",
        9,
        "`nesterov: true` needs a `momentum` above 0",
    ),
    (
        "evaluation: {metrics: [mse], require: {accuracy: '> 0.5'}}",
        "evaluation.metrics",
        6,
        "required but not in `metrics`: accuracy",
    ),
    ("evaluation: {require: {mse: 0.5}}", "evaluation.require.mse", 6, "found 0.5"),
    ("evaluation: {require: {mse: good}}", "evaluation.require.mse", 6, 'such as ">= 0.9"'),
    ("model: {kind: custom, target: os}", "model.target", 6, "`package.module:Class`, found 'os'"),
    # Duplicates, and YAML that is refused.
    ("seed: 1\nseed: 2", "seed", 7, "first given at spec.yaml:6:1"),
    ("name: other", "name", 6, "the key appears twice"),
    ("seed: !!python/object/apply:os.system [ls]", "seed", 6, "found a tag"),
    ("seed: !!int 3", "seed", 6, "found a tag"),
    ("seed: &here 3", "seed", 6, "found an anchor"),
    ("seed: *there", "seed", 6, "found an alias"),
    ("1: 2", "1", 6, "keys are text, found 1 without quotes"),
    ("? [a]\n: 2", "?", 6, "expected text as a key"),
    ('storage: "\\ud800"', "storage", 6, "half of a surrogate pair"),
    ('storage: "a\\0b"', "storage", 6, "the control character U+0000"),
    ('storage: "a\\nb"', "storage", 6, "found the control character U+000A"),
]


@pytest.mark.parametrize(("added", "key", "line", "fragment"), ADDED)
def test_j01_j02_a_bad_key_or_value_is_one_problem(
    added: str, key: str, line: int, fragment: str
) -> None:
    (problem,) = problems_in(HEAD + added + "\n")

    assert problem.key == key
    assert re.match(rf"spec\.yaml:{line}:\d+$", problem.where)
    assert fragment in f"{problem.message}  {problem.hint}"


REPLACED: list[tuple[str, str, str, str, str]] = [
    ("version: 1\n", "", "version", "spec.yaml", "Add `version: 1`"),
    ("version: 1", "version: '1'", "version", "spec.yaml:1:10", "Remove the quotes"),
    ("version: 1", "version: true", "version", "spec.yaml:1:10", "expected 1, found true"),
    ("version: 1", "version: 2", "version", "spec.yaml:1:10", "expected 1, found 2"),
    ("name: tiny\n", "", "name", "spec.yaml", "the key 'name' is missing"),
    ("  target: y\n", "", "data.target", "spec.yaml:3:1", "the key 'target' is missing"),
    ("target: y", "target: ''", "data.target", "spec.yaml:5:11", "text that is not empty"),
    ("target: y", "target: true", "data.target", "spec.yaml:5:11", "Put it in quotes"),
    ("source: a.csv", "source: ''", "data.source", "spec.yaml:4:11", "text of 1 to 4096"),
    ("source: a.csv", f"source: {'a' * 5000}", "data.source", "spec.yaml:4:11", "5000 characters"),
    ("target: y", "target: y\n  exclude: [y]", "data", "spec.yaml:3:1", "cannot be excluded"),
    (
        "target: y",
        "target: y\n  columns:\n    A.b: {kind: nummeric}",
        "data.columns.A.b.kind",
        "spec.yaml:7:17",
        "one of numeric, categorical, boolean, text, vector or image, found 'nummeric'",
    ),
    (
        "target: y",
        "target: y\n  columns:\n    A: {kind: numeric, missing: constant}",
        "data.columns.A.missing",
        "spec.yaml:7:24",
        "`missing: constant` needs a `fill_value`",
    ),
    (
        "target: y",
        "target: y\n  split: {kind: random, fractions: {train: 0.7, valid: 0.7}}",
        "data.split.fractions",
        "spec.yaml:6:25",
        "must add up to 1, found 1.4",
    ),
    (
        "target: y",
        "target: y\n  split: {kind: random, fractions: {train: 1.5}}",
        "data.split.fractions.train",
        "spec.yaml:6:44",
        "above 0 and at most 1, found 1.5",
    ),
]


@pytest.mark.parametrize(("line", "by", "key", "where", "fragment"), REPLACED)
def test_j01_j02_a_bad_head_is_one_problem(
    line: str, by: str, key: str, where: str, fragment: str
) -> None:
    (problem,) = problems_in(replaced(line, by))

    assert (problem.key, problem.where) == (key, where)
    assert fragment in f"{problem.message}  {problem.hint}"


NAMES = [
    "../x",
    "/abs",
    "a/../../b",
    "..%2f",
    "C:\\x",
    "x\n",
    "a\nb",
    "a" * 64,
    "a" * 4096,
    ";rm -rf",
    "$(id)",
    "-rf",
    "UPPER",
    "",
    "a b",
    "caf\u00e9",
    "a_b",
]


@pytest.mark.parametrize("name", NAMES)
def test_j03_a_name_that_is_no_name_is_refused(name: str) -> None:
    quoted = '"' + name.replace("\\", "\\\\").replace("\n", "\\n") + '"'

    (problem,) = problems_in(replaced("name: tiny", f"name: {quoted}"))

    assert (problem.where, problem.key) == ("spec.yaml:2:7", "name")
    assert "lower-case letters, digits and hyphens, at most 63" in problem.message
    assert "\n" not in str(problem)


PLANNED: list[tuple[str, str, int]] = [
    ("resources:\n  gpus_per_worker: 2", "resources.gpus_per_worker", 7),
    ("export: {formats: [safetensors, onnx]}", "export.formats.1", 6),
    ("tracking: {wandb: true}", "tracking.wandb", 6),
]


@pytest.mark.parametrize(("added", "key", "line"), PLANNED)
def test_what_is_designed_but_not_built_says_so_and_nothing_else(
    added: str, key: str, line: int
) -> None:
    (problem,) = problems_in(HEAD + added + "\n")

    assert problem.key == key
    assert problem.where.startswith(f"spec.yaml:{line}:")
    assert "is part of the design but not built yet in this version" in problem.message
    assert problem.hint


@pytest.mark.parametrize(
    "source",
    ["s3://b/x.csv", "S3://b/x.csv", "gs://b/x.csv"],
)
def test_a_source_that_is_designed_but_not_built_says_so(source: str) -> None:
    (problem,) = problems_in(replaced("a.csv", source))

    assert (problem.where, problem.key) == ("spec.yaml:4:11", "data.source")
    assert "not built yet" in problem.message


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("file:///etc/passwd", "Write the path without file://"),
        ("https://host/rows.csv", "found an address (https://)"),
        ("simplecache::s3://b/x", "found an address (s3://)"),
        ("://", "found an address (://)"),
    ],
)
def test_j03_a_source_that_is_an_address_is_refused(source: str, fragment: str) -> None:
    (problem,) = problems_in(replaced("source: a.csv", f"source: '{source}'"))

    assert (problem.where, problem.key) == ("spec.yaml:4:11", "data.source")
    assert fragment in f"{problem.message}  {problem.hint}"


SECRETS = [
    "s3://key:SECRET@bucket/x",
    "s3://key:SEC/SECRET@bucket/x",
    "s3://key:a@SECRET@bucket/x",
    "https://host/x?token=SECRET",
    "https://SECRET@host/x",
    "postgres://u:SECRET@host",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        "data.source={}",
        "storage={}",
        "name={}",
        "seed={}",
        "model.kind={}",
        "tracking.tensorboard={{dir: '{}'}}",
        "evaluation.metrics=['{}']",
        "evaluation.require={{'{}': '> 1'}}",
        "data.exclude=[y, '{}']",
        "data.target.{}=1",
        "'{}'=1",
    ],
)
def test_j03_no_message_repeats_a_secret(secret: str, place: str) -> None:
    override = place.format(secret)
    with pytest.raises(SpecError) as caught:
        parse_spec(HEAD, "spec.yaml", [override])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None

    key, _, value = override.partition("=")
    if "SECRET" in value and key not in {"data.source", "data.exclude"}:
        section, _, name = key.rpartition(".")
        written = f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"
        with pytest.raises(SpecError) as caught:
            parse_spec(HEAD.replace("name: tiny\n", "") + written, "spec.yaml")
        assert "SECRET" not in str(caught.value)


def test_credentials_are_named_as_such() -> None:
    text = replaced("a.csv", "s3://key:secret@bucket/rows.csv")

    messages = [problem.message for problem in problems_in(text)]

    assert messages == [
        "s3:// is part of the design but not built yet in this version",
        "found credentials in an address",
    ]


def test_all_problems_are_listed_at_once_in_the_order_of_their_lines() -> None:
    text = """\
version: "1"
name: ../x
data:
  source: s3://bucket/x.csv
  target: y
  columns: {Age: {kind: numeric, missing: constant}}
model: {kind: mpl}
training:
  epochs: .inf
  lr: 1
  precision: half
  optimizer: {kind: adam, betas: [1, 0.5]}
epochs: 3
seed: 1
seed: 2
storage: &here ./runs
"""
    problems = problems_in(text)

    lines = [int(problem.where.split(":")[1]) for problem in problems]
    assert lines == [1, 2, 4, 6, 7, 9, 10, 11, 12, 13, 15, 16]
    assert str(SpecError(problems)).endswith("12 problems. Nothing was started.")


def test_sections_that_disagree_are_listed_at_once() -> None:
    text = """\
version: 1
name: tiny
data: {source: a, target: y, task: regression, split: {kind: random, fractions: {train: 1}}}
training:
  loss: bce
  early_stopping: {}
  schedule: {kind: plateau}
evaluation: {require: {mse: "< 1"}}
"""
    assert [(problem.where, problem.key) for problem in problems_in(text)] == [
        ("spec.yaml:5:3", "training.loss"),
        ("spec.yaml:6:3", "training.early_stopping"),
        ("spec.yaml:7:3", "training.schedule"),
        ("spec.yaml:8:14", "evaluation.require"),
    ]


def test_a_value_that_could_not_be_read_is_not_blamed_on_its_neighbour() -> None:
    added = "  columns: {A: {kind: numeric, missing: constant, fill_value: .nan}}\n"

    (problem,) = problems_in(HEAD + added)

    assert problem.key == "data.columns.A.fill_value"
