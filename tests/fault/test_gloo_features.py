"""Three ranks and all that a step and an epoch may do: agreed on, and the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import RankLostError
from batchtrain.spec.load import LoadedSpec
from tests.support.builders import mixed_table, spec_for
from tests.support.ranks import (
    KILLED_WHEN_SAVED,
    SAVED_OFTEN,
    WARM_UP_FORWARDS,
    compared,
    custom_spec,
    newest_step,
    train_ranks,
)

pytestmark = pytest.mark.fault

EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 16,
    "micro_batch": 3,
    "optimizer": {"kind": "adamw", "lr": 0.02},
    "schedule": {"kind": "cosine"},
    "warmup": {"epochs": 1.5},
    "clip_norm": 0.5,
    "ema": {"decay": 0.95},
    "class_weights": "balanced",
    "early_stopping": {"metric": "valid_auroc", "patience": 3},
    "max_steps": 15,
}


def full_spec(folder: Path, **asked: Any) -> LoadedSpec:
    folder.mkdir()
    checkpoint = {**SAVED_OFTEN, "keep_best": 2}
    training = {**EVERYTHING, "checkpoint": checkpoint, **asked}
    return spec_for(folder, mixed_table(90), training=training)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "asked",
    [
        # The scale of the loss, and the steps since it moved, are state as well.
        pytest.param({"on_nan": "skip", "precision": "float16"}, id="float16"),
        pytest.param({"on_nan": "roll_back"}, id="roll_back", marks=pytest.mark.long),
        pytest.param({"compile": True}, id="compiled", marks=pytest.mark.long),
    ],
)
def test_r07_everything_on_three_ranks_is_the_same_bytes_after_a_kill(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    whole = train_ranks(full_spec(tmp_path / "whole", **asked), 3)
    killed = full_spec(tmp_path / "killed", **asked)
    with pytest.raises(RankLostError):
        train_ranks(killed, 3, faults={1: KILLED_WHEN_SAVED})
    assert newest_step(killed) > 0
    resumed = train_ranks(killed, 3)
    assert compared(resumed) == compared(whole)
    assert resumed.inexact() == []
    assert (resumed.content["ended_by"], resumed.content["steps"]) == ("max_steps", 15)


@pytest.mark.parametrize("what", ["nan", "infinite_gradient"])
@pytest.mark.parametrize("on_nan", ["skip", "roll_back"])
def test_what_goes_wrong_on_one_rank_is_left_out_or_undone_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_nan: str, what: str
) -> None:
    # In step 7 of 15, on rank 1 alone; all ranks then hold the same weights, or it is an error.
    monkeypatch.setenv("RANK_FAULT", f"{what}:1:{WARM_UP_FORWARDS + 8}")
    trained = train_ranks(custom_spec(tmp_path / "one", training={"on_nan": on_nan}), 3)
    assert trained.content["left_out_steps"] == (1 if on_nan == "skip" else 0)
    undone = [(entry["step"], entry["share"]) for entry in trained.content["rolled_back"]]
    assert undone == ([] if on_nan == "skip" else [(7, 0.5)])
    assert all(record["valid_loss"] < 1e6 for record in trained.history())


def test_the_time_is_up_on_all_ranks_in_the_same_step(tmp_path: Path) -> None:
    loaded = spec_for(
        tmp_path,
        mixed_table(90),
        training={"epochs": 1_000_000, "batch_size": 16, "max_time": 0.5},
    )
    trained = train_ranks(loaded, 3)
    assert trained.content["ended_by"] == "max_time"
    assert trained.history()[-1]["step"] == trained.content["steps"] > 0
