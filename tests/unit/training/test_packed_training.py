"""A trial of a pack against the same trial as a run of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import Tensor

from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.training.packed.training import PackedTraining
from tests.support.builders import mixed_table, prepared_for, run, spec_for

SPLIT = {"kind": "random", "fractions": {"train": 0.6, "valid": 0.2, "test": 0.2}, "seed": 5}
RATES = ("training.optimizer.lr=0.01", "training.optimizer.lr=0.002")


def trials(
    folder: Path, overrides: Sequence[Sequence[str]], *, table: pa.Table | None = None, **keys: Any
) -> list[LoadedSpec]:
    """The spec with each trial's values, over one table."""
    base = spec_for(
        folder,
        mixed_table(90) if table is None else table,
        data={"split": SPLIT},
        **keys,
    )
    return [load_spec(base.path, each) for each in overrides]


def alone(loaded: LoadedSpec) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Tensor]]:
    """What an ordinary run gives: the manifest's content, the history, the best weights."""
    trained = run(loaded, last="train").trained
    assert trained is not None
    artifact = trained.artifact
    lines = artifact.read("history.jsonl").decode().splitlines()
    weights = safetensors.torch.load(artifact.read("best.safetensors"))
    return artifact.manifest.content, [json.loads(line) for line in lines], weights


def check_agree(specs: Sequence[LoadedSpec], pack: PackedTraining, tolerance: float = 2e-4) -> None:
    """Hold every trial of a pack against a run of its own."""
    for loaded, member in zip(specs, pack.members, strict=True):
        content, history, weights = alone(loaded)
        assert member.error == ""
        assert [list(record) for record in member.history] == [list(each) for each in history]
        for mine, theirs in zip(map(dict, member.history), history, strict=True):
            assert mine.pop("train_loss", None) == (
                theirs["train_loss"] and pytest.approx(theirs["train_loss"], rel=tolerance)
            )
            del theirs["train_loss"]
            assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
        assert member.best_epoch == content["best_epoch"]
        assert (member.epoch, member.step) == (content["epochs"], content["steps"])
        assert member.ended_by == content["ended_by"].replace("epochs", "")
        best = member.best_weights()
        assert best.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(best[name], value, rtol=10 * tolerance, atol=tolerance)


def packed(specs: Sequence[LoadedSpec], **keys: Any) -> PackedTraining:
    """A pack that was trained to the end."""
    pack = PackedTraining(specs, prepared_for(specs[0]), **keys)
    assert pack.train_to(specs[0].spec.training.epochs)
    return pack


MODELS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "mlp", "hidden": [8], "dropout": 0.0},
    "deep": {
        "kind": "mlp",
        "hidden": [8, 8],
        "dropout": 0.3,
        "normalization": "layer",
        "residual": True,
        "activation": "prelu",
    },
    "resnet": {
        "kind": "resnet",
        "width": 8,
        "blocks": 2,
        "hidden_dropout": 0.2,
        "residual_dropout": 0.1,
    },
    "linear": {"kind": "linear"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"kind": "adam", "weight_decay": 0.1, "weight_decay_on": "matrices", "amsgrad": True},
    "adamw": {"kind": "adamw", "weight_decay": 0.1},
}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("plain", "sgd"), ("deep", "adam"), ("resnet", "adamw"), ("linear", "sgd")],
)
def test_a_packed_trial_is_the_trial_alone(model: str, optimizer: str, tmp_path: Path) -> None:
    training = {
        "epochs": 4,
        "batch_size": 16,
        "optimizer": OPTIMIZERS[optimizer],
        "schedule": {"kind": "cosine"},
        "warmup": {"steps": 5},
        "label_smoothing": 0.1,
    }
    overrides = [*([each] for each in RATES), [RATES[0], "seed=7"]]
    specs = trials(tmp_path, overrides, model=MODELS[model], training=training)
    check_agree(specs, packed(specs))
