"""Runs with any optimizer, schedule and warm-up: the rates that they record, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchtrain.pipeline import RunResult
from tests.support.builders import mixed_table, spec_for, train_in_parts

STEPS = 4
"""Steps of an epoch: 63 training rows in batches of 16."""

RECIPES: dict[str, dict[str, Any]] = {
    "nadam, cosine with restarts, warm-up": {
        "optimizer": {"kind": "nadam", "lr": 0.05},
        "schedule": {"kind": "cosine_restarts", "first_epochs": 2},
        "warmup": {"steps": 6},
    },
    "adafactor, one cycle": {
        "optimizer": {"kind": "adafactor", "lr": 0.05},
        "schedule": {"kind": "one_cycle"},
    },
    "asgd, plateau, warm-up over parts of an epoch": {
        "optimizer": {"kind": "asgd", "lr": 0.05, "t0": 5.0},
        "schedule": {"kind": "plateau", "patience": 0, "factor": 0.5, "cooldown": 1},
        "warmup": {"epochs": 1.5, "start": 0.1},
    },
    "adamw on matrices, multistep": {
        "optimizer": {"kind": "adamw", "lr": 0.05, "weight_decay_on": "matrices", "amsgrad": True},
        "schedule": {"kind": "multistep", "milestones": [1, 3], "factor": 0.5},
    },
    "rprop": {"optimizer": {"kind": "rprop"}, "batch_size": "full", "epochs": 8},
}


def trained(folder: Path, stops: list[int], **training: Any) -> RunResult:
    folder.mkdir()
    sections = {"epochs": 5, "batch_size": 16, **training}
    return train_in_parts(spec_for(folder, mixed_table(90), training=sections), stops)


@pytest.mark.parametrize("recipe", RECIPES)
def test_p1_every_recipe_goes_on_where_it_was(tmp_path: Path, recipe: str) -> None:
    broken = trained(tmp_path / "broken", [3, 2], **RECIPES[recipe])
    whole = trained(tmp_path / "whole", [], **RECIPES[recipe])
    assert broken.stages[-1].status == "resumed"
    assert broken.trained is not None
    assert whole.trained is not None
    files, expected = (each.trained.artifact.manifest.files for each in (broken, whole))
    for name in ("best.safetensors", "last.safetensors", "history.jsonl"):
        assert files[name].sha256 == expected[name].sha256


def recorded_rates(folder: Path, **training: Any) -> list[float]:
    result = trained(folder, [], optimizer={"kind": "sgd", "lr": 0.1}, **training)
    assert result.trained is not None
    return [record["lr"] for record in result.trained.history()]


def test_the_history_holds_the_rate_of_the_last_step_of_each_epoch(tmp_path: Path) -> None:
    """Epoch 0, before the first step, has the rate of that step."""
    found = recorded_rates(
        tmp_path / "run",
        schedule={"kind": "exponential", "factor": 0.5},
        warmup={"steps": 2 * STEPS},
    )
    ramp = [1 / 8, 4 / 8, 1, 1, 1, 1]
    schedule = [0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625]
    assert found == pytest.approx(
        [rate * share for rate, share in zip(schedule, ramp, strict=True)]
    )


def test_the_rate_of_one_cycle_changes_within_an_epoch(tmp_path: Path) -> None:
    found = recorded_rates(tmp_path / "run", schedule={"kind": "one_cycle", "rise": 0.4})
    assert found[0] == pytest.approx(0.1 / 25)
    # The rate is highest after 0.4 x 20 - 1 = 7 steps, in the last step of the second epoch.
    assert found[2] == pytest.approx(0.1)
    assert found[2] > found[3] > found[4] > found[5] == pytest.approx(0.1 / 25 / 1e4)
