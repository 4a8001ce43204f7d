"""All that a step and an epoch may do, at once: interrupted, it ends with the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import InterruptedRunError
from batchtrain.progress import Progress
from batchtrain.spec.load import load_spec
from batchtrain.training.stage import run_layout, train
from tests.support.builders import MemoryStorage, mixed_table, prepared_for, spec_for

EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 16,
    "micro_batch": 6,
    "optimizer": {"kind": "adamw", "lr": 0.02},
    "schedule": {"kind": "cosine"},
    "warmup": {"epochs": 1.5},
    "clip_norm": 0.5,
    "ema": {"decay": 0.95},
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "early_stopping": {"metric": "valid_f1_macro", "patience": 3},
    "max_steps": 15,
    "on_nan": "roll_back",
    "checkpoint": {"every_steps": 3, "every_seconds": None, "keep_best": 2},
}
FILES = ("best.safetensors", "best-2.safetensors", "last.safetensors", "history.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rows lie, and what is prepared of them."""
    made = tmp_path_factory.mktemp("rows")
    spec_for(made, mixed_table(90))
    return made


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> TrainedModel:
    """A run with everything on that nobody interrupts."""
    return trained_in_parts(folder, EVERYTHING)


def trained_in_parts(folder: Path, training: Mapping[str, Any], *stops: int) -> TrainedModel:
    """Train in memory, stopped so many steps after each start."""
    spec_for(folder, training=training)
    loaded, storage = load_spec(folder / "spec.yaml"), MemoryStorage()
    prepared = prepared_for(loaded)
    layout = run_layout(loaded, prepared, storage)
    for steps in stops:
        looks = iter(range(1, 1000))
        stopping = patch(
            "batchtrain.training.stage.stop_on_signals",
            lambda: nullcontext(lambda: next(looks) == steps),  # noqa: B023  # it is used here
        )
        with stopping, pytest.raises(InterruptedRunError):
            train(loaded, prepared, layout, Progress())
    return train(loaded, prepared, layout, Progress())[0]


def hashes(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    return {
        "state": trained.content["state_sha256"],
        **{name: files[name].sha256 for name in FILES},
    }


def test_r07_with_everything_on_a_run_that_is_interrupted_ends_with_the_same_bytes(
    folder: Path, undisturbed: TrainedModel
) -> None:
    parts = trained_in_parts(folder, EVERYTHING, 1, 6, 3)
    assert hashes(parts) == hashes(undisturbed)
    assert parts.inexact() == []
    assert parts.content["steps"] == 15
    assert {"valid_loss", "valid_accuracy", "valid_f1_macro"} <= set(parts.history()[1])


@pytest.mark.parametrize("name", ["micro_batch", "schedule", "warmup", "clip_norm", "ema"])
def test_each_of_them_matters(folder: Path, undisturbed: TrainedModel, name: str) -> None:
    without = {key: value for key, value in EVERYTHING.items() if key != name}
    found = trained_in_parts(folder, without)
    assert found.content["state_sha256"] != undisturbed.content["state_sha256"]
