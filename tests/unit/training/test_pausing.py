"""A training that is paused at the end of an epoch goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import PausedRunError
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.stage import train
from batchtrain.training.standing import RunStanding, run_standing
from tests.support.builders import layout_for, mixed_table, prepared_for, spec_for
from tests.support.ranks import compared

EPOCHS = 7

RECIPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "with all that is carried along": {
        "ema": {"decay": 0.9},
        "schedule": {"kind": "plateau", "patience": 0, "factor": 0.5},
        "early_stopping": {"patience": 6},
        "clip_norm": 1.0,
        "changes": [{"epoch": 2, "lr": 0.02}, {"epoch": 4, "dropout": 0.4}],
    },
}


def trained(loaded: LoadedSpec, pause_after: int | None = None) -> TrainedModel:
    prepared, layout = prepared_for(loaded), layout_for(loaded)
    return train(loaded, prepared, layout, Progress(), pause_after=pause_after)[0]


def standing_of(loaded: LoadedSpec) -> RunStanding:
    return run_standing(layout_for(loaded), Progress())


def specs(parent: Path, **training: Any) -> list[LoadedSpec]:
    """The same spec in two folders."""
    found = []
    for name in ("paused", "whole"):
        (parent / name).mkdir()
        settings = {"epochs": EPOCHS, "batch_size": 16, **training}
        found.append(spec_for(parent / name, mixed_table(90), training=settings))
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_paused_twice_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, recipe: str
) -> None:
    paused, whole = specs(tmp_path, **RECIPES[recipe])
    unbroken = trained(whole)
    assert unbroken.content["ended_by"] == "epochs"
    for epoch in (2, 5):
        with pytest.raises(PausedRunError, match="Run the same command again"):
            trained(paused, epoch)
        found = standing_of(paused)
        assert (found.epochs, found.is_finished, found.ended_by) == (epoch, False, "")
        assert found.history == unbroken.history()[: epoch + 1]
    assert compared(trained(paused)) == compared(unbroken)
    found = standing_of(paused)
    assert found == RunStanding(
        unbroken.history(), EPOCHS, unbroken.content["best_epoch"], "epochs", is_finished=True
    )


def test_the_same_pause_again_takes_no_more_than_a_step(tmp_path: Path) -> None:
    paused, whole = specs(tmp_path)
    for _ in range(3):
        with pytest.raises(PausedRunError):
            trained(paused, 2)
        assert standing_of(paused).epochs == 2
    assert compared(trained(paused)) == compared(trained(whole))


def test_a_run_that_ends_by_itself_is_not_paused(tmp_path: Path) -> None:
    # Nothing improves with such a rate, so that it ends after two epochs of patience.
    training = {"optimizer": {"kind": "sgd", "lr": 1e-12}, "early_stopping": {"patience": 2}}
    paused, whole = specs(tmp_path, **training)
    unbroken = trained(whole)
    ended = int(unbroken.content["epochs"])
    assert unbroken.content["ended_by"] == "early_stopping"
    assert compared(trained(paused, ended)) == compared(unbroken)
    assert standing_of(paused).ended_by == "early_stopping"


def test_nothing_is_known_of_a_run_that_did_not_begin(tmp_path: Path) -> None:
    assert standing_of(specs(tmp_path)[0]) == RunStanding()
