"""A space of which some trial could be no run is refused before the first trial."""

from __future__ import annotations

import importlib.util

import pytest

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.tuning.corners import check_space

HEAD = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"
KIND = "training.optimizer.kind: {choice: [adam, sgd]}"


def read(*entries: str, rest: str = "", search: str = "") -> LoadedSpec:
    space = "".join(f"    {entry}\n" for entry in entries)
    return parse_spec(f"{HEAD}search:\n  space:\n{space}{search}{rest}", "s.yaml")


def problems_of(loaded: LoadedSpec) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        check_space(loaded)
    return caught.value.problems


MOMENTUM = "training.optimizer.momentum: {uniform: [0, 0.9], when: {training.optimizer.kind: sgd}}"
SECTIONS = "training.optimizer: {choice: [{kind: adam}, {kind: sgd}]}"
STEPS = "training.schedule.kind: {choice: [step, exponential]}"


@pytest.mark.parametrize(
    "entries",
    [
        ["model.dropout: {uniform: [0, 0.5]}", "training.optimizer.lr: {log_uniform: [1e-5, 1]}"],
        [KIND, MOMENTUM],
        [SECTIONS, "training.optimizer.lr: {uniform: [1, 2]}"],
        [STEPS, "training.schedule.factor: {uniform: [0.1, 0.9]}"],
        ["training.early_stopping: {choice: [null, {patience: 3}]}", "seed: {int: [1, 9]}"],
        [
            "model.kind: {choice: [mlp, resnet]}",
            "model.hidden: {choice: [[64], [64, 64]], when: {model.kind: mlp}}",
            "model.residual: {choice: [true, false], when: {model.hidden: [64, 64]}}",
            "model.width: {log_int: [8, 64], when: {model.kind: [resnet]}}",
        ],
    ],
)
def test_a_good_space_passes(entries: list[str]) -> None:
    split = "  split: {kind: random, seed: 1}\n" if "seed" in entries[-1] else ""
    text = HEAD + split + "search:\n  space:\n" + "".join(f"    {each}\n" for each in entries)

    check_space(parse_spec(text, "s.yaml"))


def test_every_bound_and_choice_is_tried_and_all_problems_come_at_once() -> None:
    loaded = read(
        "model.dropout: {uniform: [-1, 2]}",
        "training.epochs: {uniform: [1, 5]}",
        "training.batch_size: {choice: [32, full, half]}",
        "model.hidden: {choice: [[64], [0]]}",
    )

    problems = problems_of(loaded)

    assert {(each.where, each.key) for each in problems} == {
        ("s.yaml:8:5", "search.space.model.dropout"),
        ("s.yaml:9:5", "search.space.training.epochs"),
        ("s.yaml:10:5", "search.space.training.batch_size"),
        ("s.yaml:11:5", "search.space.model.hidden"),
    }
    found = [each.message.rpartition("found ")[2] for each in problems]
    assert found == ["-1.0", "1.0", "2.0", "5.0", "'half' (text)", "0"]
    assert problems[1].hint == "Use `int` or `log_int`, or `choice`"


def test_a_key_that_one_kind_has_not_needs_a_condition() -> None:
    loaded = read(KIND, "training.optimizer.momentum: {uniform: [0.5, 0.99]}")

    (problem,) = problems_of(loaded)

    assert (problem.where, problem.key) == (
        "s.yaml:9:5",
        "search.space.training.optimizer.momentum",
    )
    assert "to the kind sgd or rmsprop, not to adam" in problem.hint


def test_a_key_that_only_another_trial_has_not_is_found() -> None:
    """It is right beside the first choice, and by itself, but not beside the second choice."""
    loaded = read(KIND, "training.optimizer.betas: {choice: [[0.9, 0.99]]}")

    (problem,) = problems_of(loaded)

    assert problem.key == "search.space.training.optimizer.betas"
    assert 'in a trial with training.optimizer.kind: "sgd"' in problem.message


def test_what_does_not_go_with_the_spec_says_with_which_value() -> None:
    loaded = read(
        "model.dropout: {uniform: [0, 0.5]}",
        "training.optimizer.lr: {log_uniform: [1e-4, 1e-1]}",
        rest="training: {schedule: {kind: cosine, min_lr: 1e-3}}\n",
    )

    (problem,) = problems_of(loaded)

    assert "expected at most the optimizer's lr, 0.0001" in problem.message
    assert "training.optimizer.lr: 0.0001" in problem.message


def test_values_that_do_not_go_together_are_found_among_the_trials() -> None:
    """Each of them goes with the first choice of the other."""
    loaded = read(
        "training.schedule.min_lr: {choice: [1e-5, 1e-3]}",
        "training.optimizer.lr: {choice: [1e-1, 1e-4]}",
        rest="training: {schedule: {kind: cosine}}\n",
    )

    (problem,) = problems_of(loaded)

    assert problem.key == "search.space.training.schedule.min_lr"
    assert "is 0.001, expected at most the optimizer's lr, 0.0001" in problem.message


def test_conditions_that_contradict_each_other_never_hold() -> None:
    loaded = read(
        "model.kind: {choice: [mlp, resnet]}",
        "model.hidden: {choice: [[64], [32]], when: {model.kind: mlp}}",
        "model.width: {int: [8, 16], when: {model.kind: resnet, model.hidden: [[64]]}}",
    )

    (problem,) = problems_of(loaded)

    assert (problem.where, problem.key) == ("s.yaml:10:33", "search.space.model.width.when")


def test_every_trial_must_measure_what_trials_are_compared_by() -> None:
    loaded = read(
        "training.early_stopping: {choice: [null, {patience: 3}]}",
        rest="training: {early_stopping: {metric: valid_f1_macro}}\n",
    )

    (problem,) = problems_of(loaded)

    assert problem.where == "s.yaml:7:3"
    assert "is valid_f1_macro, which is not measured after each epoch" in problem.message
    assert "training.early_stopping: null" in problem.message


def test_a_spec_without_a_search_is_told_how_to_begin() -> None:
    (problem,) = problems_of(parse_spec(HEAD, "s.yaml"))

    assert problem.key == "search"
    assert "log_uniform" in problem.hint


def test_tpe_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    loaded = read("model.dropout: {uniform: [0, 0.5]}", search="  algorithm: tpe\n")

    (problem,) = problems_of(loaded)

    assert problem.where == "s.yaml:9:3"
    assert "pip install 'batchtrain[search]'" in problem.hint
