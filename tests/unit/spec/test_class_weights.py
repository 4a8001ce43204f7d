"""Weights of classes and the scale of a target, as a spec asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from batchtrain.errors import SpecError
from batchtrain.spec.load import load_spec
from batchtrain.spec.task import (
    class_weight_mismatches,
    class_weights_in_force,
    target_scale_in_force,
)
from batchtrain.spec.training import TrainingSpec

BALANCED = TrainingSpec(class_weights="balanced")
NAMES = ("a", "b", "c")


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_balanced_is_scikit_learns(rows: list[int]) -> None:
    labels = np.repeat(np.arange(len(rows)), rows)
    expected = compute_class_weight("balanced", classes=np.arange(len(rows)), y=labels)
    found = class_weights_in_force(BALANCED, [str(code) for code in range(len(rows))], rows)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_a_class_without_a_training_row_weighs_nothing_and_is_not_counted() -> None:
    assert class_weights_in_force(BALANCED, NAMES, (30, 0, 10)) == (40 / 60, 0.0, 40 / 20)


def test_declared_weights_go_by_name_and_none_are_none() -> None:
    declared = TrainingSpec(class_weights={"c": 3.0, "a": 1.0, "b": 0.0})
    assert class_weights_in_force(declared, NAMES, (1, 1, 1)) == (1.0, 0.0, 3.0)
    assert class_weights_in_force(TrainingSpec(), NAMES, (1, 1, 1)) is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 1.0, "b": 1.0}, ["no weight for 'c'", "'a', 'b', 'c'"]),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, ["names no class", ": 'd'", "'a', 'b', 'c'"]),
        ({"A": 1.0, "b": 1.0, "c": 1.0}, ["'A'"]),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, ["0 for every class"]),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(
    weights: dict[str, float], words: list[str]
) -> None:
    found = list(class_weight_mismatches(TrainingSpec(class_weights=weights), NAMES))
    assert {key for key, _message, _hint in found} == {"training.class_weights"}
    text = " ".join(f"{message}. {hint}" for _key, message, hint in found)
    assert all(word in text for word in words), text


def test_weights_that_fit_are_not_refused() -> None:
    for weights in (None, "balanced", {"a": 0.0, "b": 1.0, "c": 2.0}):
        assert not list(class_weight_mismatches(TrainingSpec(class_weights=weights), NAMES))


@pytest.mark.parametrize(
    ("asked", "task", "model", "expected"),
    [
        ("auto", "regression", "mlp", "standard"),
        ("auto", "regression", "resnet", "standard"),
        ("auto", "regression", "cnn", "standard"),
        ("auto", "regression", "linear", "none"),
        ("auto", "regression", "custom", "none"),
        ("auto", "classification", "mlp", "none"),
        ("none", "regression", "mlp", "none"),
        ("standard", "regression", "linear", "standard"),
        ("standard", "regression", "custom", "standard"),
    ],
)
def test_when_a_target_is_scaled(asked: str, task: str, model: str, expected: str) -> None:
    assert target_scale_in_force(TrainingSpec(target_scale=asked), task, model) == expected


@pytest.mark.parametrize(
    ("task", "training", "key"),
    [
        ("regression", "{class_weights: balanced}", "training.class_weights"),
        ("regression", "{label_smoothing: 0.1}", "training.label_smoothing"),
        ("classification", "{target_scale: standard}", "training.target_scale"),
    ],
)
def test_what_does_not_suit_the_task_is_refused(
    tmp_path: Path, task: str, training: str, key: str
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"version: 1\nname: small\ndata: {{source: a.csv, target: y, task: {task}}}\n"
        f"training: {training}\n"
    )
    with pytest.raises(SpecError, match=key):
        load_spec(spec)


def test_classes_that_are_numbers_are_named_by_their_text(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "version: 1\nname: small\ndata: {source: a.csv, target: y}\n"
        "training: {class_weights: {'0': 1, '1': 5}}\n"
    )
    assert load_spec(spec).spec.training.class_weights == {"0": 1.0, "1": 5.0}


@pytest.mark.parametrize("role", ["exclude: [w]", "columns: {w: {kind: numeric}}", "target: w"])
def test_a_column_of_weights_has_no_other_role(tmp_path: Path, role: str) -> None:
    target = "" if role.startswith("target") else "  target: y\n"
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"version: 1\nname: small\ndata:\n  source: a.csv\n{target}  weight: w\n  {role}\n"
    )
    with pytest.raises(SpecError, match="column of weights 'w' cannot be"):
        load_spec(spec)
