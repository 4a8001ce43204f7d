"""What `training.changes` may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from batchtrain.spec.run import RunSpec
from batchtrain.spec.training import TrainingSpec


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"changes": [{"epoch": 3}]}, "expected one of lr, weight_decay, momentum, dropout"),
        ({"changes": [{"epoch": 0, "lr": 0.1}]}, "greater than or equal to 1"),
        (
            {"changes": [{"epoch": 3, "lr": 0.1}, {"epoch": 3, "dropout": 0.1}]},
            "to be above the one before",
        ),
        (
            {"changes": [{"epoch": 3, "lr": 0.1}], "optimizer": {"kind": "rprop"}},
            "rprop reads only once",
        ),
        (
            {"changes": [{"epoch": 3, "weight_decay": 0.1}], "optimizer": {"kind": "rprop"}},
            "a weight decay, which rprop has not",
        ),
        ({"changes": [{"epoch": 3, "momentum": 0.1}]}, "an optimizer that begins with one"),
        (
            {"changes": [{"epoch": 3, "momentum": 0.1}], "optimizer": {"kind": "sgd"}},
            "an optimizer that begins with one",
        ),
        ({"changes": [{"epoch": 3, "dropout": 0.1}], "compile": True}, "remove `compile: true`"),
        (
            {
                "changes": [{"epoch": 3, "lr": 1e-5}],
                "schedule": {"kind": "cosine", "min_lr": 1e-4},
            },
            "expected at most each lr of `training.changes`, found 1e-05",
        ),
    ],
)
def test_what_could_have_no_effect_is_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSpec.model_validate_json(json.dumps(training))


@pytest.mark.parametrize("model", [{"kind": "linear"}, {"kind": "mlp", "hidden": []}])
def test_a_model_that_cannot_drop_anything_is_refused(model: dict[str, Any]) -> None:
    document = {
        "version": 1,
        "name": "small",
        "data": {"source": "rows.csv", "target": "y"},
        "model": model,
        "training": {"changes": [{"epoch": 1, "dropout": 0.1}]},
    }
    with pytest.raises(ValidationError, match="the model has no hidden layer"):
        RunSpec.model_validate(document, strict=False)
