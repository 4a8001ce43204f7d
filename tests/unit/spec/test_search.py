"""The `search` section: what is refused, at which key and line, and with what advice."""

from __future__ import annotations

import pytest

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import parse_spec
from batchtrain.spec.search import Distribution, SearchSpec, allowed_by

HEAD = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"
SPACE = "search:\n  space:\n    model.dropout: {uniform: [0, 0.5]}\n"
"""Three lines; what a case adds to them starts at line 9."""


def problems_in(text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        parse_spec(HEAD + text, "s.yaml", overrides)
    return caught.value.problems


SECTIONS: list[tuple[str, str, str, str]] = [
    ("  scheduler: ash", "search.scheduler", "9:14", "Did you mean 'asha'?"),
    ("  scheduler: {kind: ash}", "search.scheduler.kind", "9:21", "Did you mean 'asha'?"),
    ("  scheduler: {factor: 3}", "search.scheduler.kind", "9:3", "asha, hyperband or pbt"),
    ("  scheduler: {kind: asha, factor: 1}", "search.scheduler.factor", "9:35", "from 2 to 100"),
    ("  scheduler: {kind: pbt, factor: 3}", "search.scheduler.factor", "9:26", "to the kind asha"),
    ("  algorithm: gird", "search.algorithm", "9:14", "Did you mean 'grid'?"),
    ("  algorithm: grid\n  scheduler: pbt", "search.scheduler", "10:3", "`algorithm: random`"),
    ("  trials: 1\n  scheduler: pbt", "search.trials", "9:3", "needs two at least"),
    ("  metric: loss", "search.metric", "9:3", "did you mean 'valid_loss'?"),
    ("  metric: valid_acuracy", "search.metric", "9:3", "did you mean 'valid_accuracy'?"),
    ("  metric: test_loss", "search.metric", "9:3", "no metric of a trial"),
    ("  metric: []", "search.metric", "9:11", "a list of at least 1"),
    ("  metric: [{metric: valid_los}]", "search.metric.0.metric", "9:13", "'valid_loss'?"),
    (
        "  metric: [{metric: valid_loss}, {metric: valid_loss}]",
        "search.metric",
        "9:3",
        "names 'valid_loss' twice",
    ),
    ("  max_rows: 0", "search.max_rows", "9:13", "at least 1"),
    ("  max_time: 0", "search.max_time", "9:13", "above 0"),
    # What the rest of the spec must have.
    ("  metric: valid_f1_macro", "search.metric", "9:3", "`training.early_stopping.metric` be"),
    (
        "  scheduler: {kind: asha, first_epochs: 7}\ntraining: {epochs: 7}",
        "search.scheduler.first_epochs",
        "9:27",
        "the scheduler would have no say",
    ),
]


@pytest.mark.parametrize(("added", "key", "place", "fragment"), SECTIONS)
def test_what_is_wrong_with_the_section_is_one_problem(
    added: str, key: str, place: str, fragment: str
) -> None:
    (problem,) = problems_in(f"{SPACE}{added}\n")

    assert (problem.key, problem.where) == (key, f"s.yaml:{place}")
    assert fragment in f"{problem.message}  {problem.hint}"


KEYS: list[tuple[str, str, str]] = [
    ("model.dropout: {uniform: [1, 0]}", "", "the lower bound first"),
    ("model.dropout: {uniform: [1, 1]}", "", "a higher one"),
    ("model.dropout: {log_uniform: [0, 1]}", "", "bounds above 0 for log_uniform"),
    ("training.epochs: {int: [0, 1e300]}", ".int.1", "a whole number"),
    (f"seed: {{int: [0, {10**90}]}}", "", "at most 63 bits"),
    ("model.dropout: {}", "", "exactly one of uniform, log_uniform, int, log_int, choice"),
    ("model.dropout: {uniform: [0, 1], int: [0, 1]}", "", "found uniform and int"),
    ("model.dropout: {unifrom: [0, 1]}", ".unifrom", "`search.space.model.dropout.uniform`?"),
    ("model.dropout: {choice: []}", ".choice", "a list of at least 1, found an empty list"),
    ("model.dropout: {choice: [0, 0.0]}", "", "each value once, found 0 again"),
    ("model.droput: {uniform: [0, 1]}", "", "Did you mean `model.dropout`?"),
    ("optimizer.lr: {uniform: [0, 1]}", "", "Did you mean `training.optimizer.lr`?"),
    ("model.hidden.0: {int: [1, 9]}", "", "Did you mean `model.hidden`?"),
    ("storage: {choice: [a, b]}", "", "`storage` cannot be searched: it is the same for all"),
    ("search.trials: {int: [1, 9]}", "", "cannot be searched"),
    ("data.target: {choice: [a, b]}", "", "which rows are trained or measured"),
    ("data.split.seed: {int: [1, 9]}", "", "which rows are trained or measured"),
    ("seed: {int: [1, 9]}", "", "set `data.split.seed`"),
    ("training.loss: {choice: [mse, mae]}", "", "changes what `valid_loss` measures"),
    ("training.early_stopping.metric: {choice: [a]}", "", "compared by one metric"),
    ("model.dropout: {uniform: [0, 1], when: {seed: 1}}", ".when", "stands before it"),
]


@pytest.mark.parametrize(("entry", "below", "fragment"), KEYS)
def test_what_is_wrong_with_a_key_of_the_space_is_at_its_line(
    entry: str, below: str, fragment: str
) -> None:
    (problem,) = problems_in(
        f"search:\n  space:\n    training.optimizer.lr: {{uniform: [1, 2]}}\n    {entry}\n"
    )

    assert problem.key == f"search.space.{entry.partition(':')[0]}{below}"
    assert problem.where.startswith("s.yaml:9:")
    assert fragment in f"{problem.message}  {problem.hint}"


@pytest.mark.parametrize(
    ("first", "when", "fragment"),
    [
        ("{choice: [1, 2]}", "3", "is 3, which that key never has"),
        ("{choice: [1, 2]}", "true", "is true, which that key never has"),
        ("{choice: [1, 2]}", "[1, 3]", "is 3, which that key never has"),
        ("{choice: [1, 2]}", "[]", "is an empty list"),
        ("{int: [1, 5]}", "6", "is 6, which that key never has"),
        ("{int: [1, 5]}", "1.5", "is 1.5, which that key never has"),
        ("{uniform: [1, 5]}", "2", "a range has no exact values"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(first: str, when: str, fragment: str) -> None:
    (problem,) = problems_in(
        f"search:\n  space:\n    training.epochs: {first}\n"
        f"    model.dropout: {{uniform: [0, 1], when: {{training.epochs: {when}}}}}\n"
    )

    assert problem.where == "s.yaml:9:45"
    assert problem.key == "search.space.model.dropout.when.training.epochs"
    assert fragment in problem.message


def test_a_section_after_a_key_in_it_would_overwrite_it() -> None:
    (problem,) = problems_in(
        "search:\n  space:\n    training.optimizer.lr: {uniform: [1, 2]}\n"
        "    training.optimizer: {choice: [{kind: adam}]}\n"
    )

    assert problem.where == "s.yaml:9:5"
    assert "put the section first" in problem.message


def test_trials_are_compared_by_a_validation_split() -> None:
    split = "  split: {kind: random, fractions: {train: 0.8, test: 0.2}}\n"

    (problem,) = problems_in(split + SPACE)

    assert (problem.where, problem.key) == ("s.yaml:7:1", "search")
    assert "leaves no rows for it" in problem.message
    of_size = parse_spec(f"{HEAD}{split}{SPACE}  metric: parameters\n", "s.yaml")
    assert of_size.spec.search is not None


def test_what_may_be_compared_passes() -> None:
    """The counterparts of what is refused above."""
    watched = "training: {early_stopping: {metric: valid_f1_macro}}\n"
    for text in (
        f"{watched}{SPACE}  metric: valid_f1_macro\n",
        "  split: {kind: random, seed: 3}\nsearch: {space: {seed: {int: [1, 9]}}}\n",
        "search: {metric: valid_r2, space: {training.loss: {choice: [mse, mae]}}}\n",
        "search: {space: {data.columns.a.scale: {choice: [none]}}}\n",
        "search: {space: {data.exclude: {choice: [[], [a]]}}}\n",
        "search: {space: {training.epochs: {int: [1, 9]}}, scheduler: {kind: asha}}\n",
        f"  task: regression\n{SPACE}  metric: [{{metric: valid_r2}}, {{metric: parameters}}]\n",
    ):
        assert parse_spec(HEAD + text, "s.yaml").spec.search is not None


def test_all_problems_of_the_section_come_at_once() -> None:
    text = (
        f"{SPACE}    model.kind: {{choice: [mlp], when: {{a: 1}}}}\n"
        "    training.lr: {uniform: [0, 1]}\n  metric: acc\n  algorithm: tpe\n  scheduler: pbt\n"
    )

    assert [problem.where for problem in problems_in(text)] == [
        "s.yaml:9:33",
        "s.yaml:10:5",
        "s.yaml:11:3",
        "s.yaml:13:3",
    ]


def test_an_override_sets_one_key_of_the_space_as_a_whole() -> None:
    override = "search.space.model.dropout={uniform: [0, 0.25]}"

    loaded = parse_spec(HEAD + SPACE, "s.yaml", [override])

    assert loaded.spec.search == SearchSpec(
        space={"model.dropout": Distribution(uniform=(0.0, 0.25))}
    )
    assert loaded.where("search.space.model.dropout") == f"--set {override}"
    (problem,) = problems_in(SPACE, "search.space.model.dropout.uniform=[0, 1]")
    assert problem.hint == "Did you mean `model.dropout`?"


@pytest.mark.parametrize(
    ("asked", "other", "expected"),
    [
        (2, Distribution(int=(1, 3)), (2,)),
        ([2, 3], Distribution(int=(1, 3)), (2, 3)),
        (["sgd"], Distribution(choice=("sgd", "adam")), ("sgd",)),
        ([64], Distribution(choice=([64], [32, 64])), ([64],)),
        ([[64], [32, 64]], Distribution(choice=([64], [32, 64])), ([64], [32, 64])),
    ],
)
def test_a_condition_is_a_value_or_a_list_of_them(
    asked: object, other: Distribution, expected: tuple[object, ...]
) -> None:
    assert allowed_by(asked, other) == expected
