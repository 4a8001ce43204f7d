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

from batchtrain.errors import ArtifactError, DivergedError
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.training.packed.states import MemberState, states_from_bytes, states_to_bytes
from batchtrain.training.packed.training import PackedTraining
from tests.support.builders import mixed_table, prepared_for, quantity_table, run, spec_for

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


def check_agree(specs: Sequence[LoadedSpec], pack: PackedTraining, tolerance: float = 2e-5) -> None:
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


def test_early_stopping_plateau_and_dropout_are_each_trials_own(tmp_path: Path) -> None:
    training = {
        "epochs": 12,
        "batch_size": "auto",
        "class_weights": "balanced",
        "early_stopping": {"metric": "valid_accuracy", "patience": 3},
        "schedule": {"kind": "plateau", "patience": 0, "factor": 0.5},
        "optimizer": {"kind": "adamw", "lr": 0.02},
    }
    overrides = [
        ["model.dropout=0"],
        ["model.dropout=0.3", "training.optimizer.lr=0.0005"],
        ["model.dropout=0.6", "training.schedule.patience=1", "seed=3"],
        ["model.dropout=0.3", "training.optimizer.betas=[0.5, 0.9]"],
    ]
    specs = trials(tmp_path, overrides, training=training)
    pack = packed(specs)
    check_agree(specs, pack)
    ends = {member.epoch for member in pack.members}
    assert len(ends) > 1
    assert "early_stopping" in {member.ended_by for member in pack.members}
    assert len({member.history[-1]["lr"] for member in pack.members}) > 1


def test_a_regression_with_weights_of_its_rows(tmp_path: Path) -> None:
    table = quantity_table(80)
    table = table.append_column("share", pa.array([0.0, 1.0, 2.0, 0.5] * 20))
    base = spec_for(
        tmp_path,
        table,
        target="y",
        data={"split": SPLIT, "weight": "share"},
        model={"kind": "mlp", "hidden": [8, 4], "dropout": 0.1, "activation": "gelu"},
        training={"epochs": 4, "batch_size": 16, "loss": "huber"},
        tracking={"tensorboard": False, "monitor": ["valid", "train"]},
    )
    specs = [load_spec(base.path, [each]) for each in RATES]
    pack = packed(specs)
    assert "train_r2" in pack.members[0].history[-1]
    check_agree(specs, pack)


def test_categories_alone_in_a_table_that_is_large(tmp_path: Path) -> None:
    numbers = [place * 7 % 150 for place in range(300)]
    table = pa.table(
        {
            "city": pa.array([f"c{number:03}" for number in numbers]),
            "label": pa.array(["yes" if number % 3 else "no" for number in numbers]),
        }
    )
    training = {"epochs": 2, "batch_size": 32, "loss": "bce"}
    for model in ({"kind": "linear"}, {"kind": "mlp", "hidden": [4], "dropout": 0.2}):
        specs = trials(tmp_path, [[], ["seed=1"]], table=table, model=model, training=training)
        check_agree(specs, packed(specs))


def test_a_trial_that_diverges_fails_alone(tmp_path: Path) -> None:
    training = {"epochs": 3, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.01}}
    overrides = [[], ["training.optimizer.lr=1e6"], ["seed=2"]]
    specs = trials(
        tmp_path,
        overrides,
        table=quantity_table(90),
        target="y",
        model={"kind": "linear"},
        training=training,
    )
    pack = packed(specs)
    failed = pack.members[1]
    with pytest.raises(DivergedError) as caught:
        run(specs[1], last="train")
    assert failed.error == str(caught.value)
    assert failed.is_over
    assert failed.epoch < 3
    assert failed.rows < pack.members[0].rows
    healthy = [specs[0], specs[2]]
    pack.members = [pack.members[0], pack.members[2]]
    check_agree(healthy, pack)


def test_weights_that_are_not_finite_at_the_end_are_an_error(tmp_path: Path) -> None:
    pack = packed(trials(tmp_path, [[], ["seed=2"]]))
    pack.members[1].moving[2][0] = float("inf")
    assert pack.train_to(3)
    assert [bool(member.error) for member in pack.members] == [False, True]
    assert "finite weights after step 12" in pack.members[1].error


FOUR = ["seed=1"], ["model.dropout=0.4"], ["training.optimizer.lr=2"], ["seed=4"]


def stopping(folder: Path) -> list[LoadedSpec]:
    """Four trials, some of which end early."""
    training = {
        "epochs": 8,
        "batch_size": 8,
        "optimizer": {"kind": "adam", "lr": 0.02},
        "early_stopping": {"patience": 1},
        "schedule": {"kind": "one_cycle"},
    }
    return trials(folder, FOUR, training=training)


def as_bytes(states: Sequence[MemberState]) -> bytes:
    return states_to_bytes(dict(enumerate(states)))


def test_a_pack_that_is_cut_at_any_epoch_gives_the_same_bytes(tmp_path: Path) -> None:
    specs = stopping(tmp_path)
    whole = packed(specs)
    assert len({member.epoch for member in whole.members}) > 1
    prepared = prepared_for(specs[0])
    data, epochs = None, list[tuple[int, int]]()
    for _ in range(9):
        found = states_from_bytes(data) if data else {}
        pack = PackedTraining(specs, prepared, states=[found.get(place) for place in range(4)])
        asked = iter([False, True])
        is_done = pack.train_to(
            8,
            on_epoch=lambda *told: epochs.append(told),
            stop_requested=lambda asked=asked: next(asked),
        )
        data = as_bytes(pack.states())
    assert is_done
    assert data == as_bytes(whole.states())
    assert [epoch for epoch, _ in epochs] == list(range(1, len(epochs) + 1))
    assert sum(rows for _, rows in epochs) == sum(member.rows for member in whole.members)


def test_a_stop_within_a_long_epoch_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = stopping(tmp_path)
    whole = as_bytes(packed(specs).states())
    monkeypatch.setattr("batchtrain.training.packed.training.FLUSH_STEPS", 2)
    pack = PackedTraining(specs, prepared_for(specs[0]))
    asked = iter([False] * 6 + [True])
    assert not pack.train_to(8, stop_requested=lambda: next(asked))
    assert {member.epoch for member in pack.members} == {1}
    assert pack.train_to(8)
    assert as_bytes(pack.states()) == whole


def test_trials_go_on_in_a_smaller_pack(tmp_path: Path) -> None:
    specs = trials(tmp_path, FOUR, training={"epochs": 6, "batch_size": 16})
    first = PackedTraining(specs, prepared_for(specs[0]))
    assert first.train_to(2)
    states = states_from_bytes(as_bytes(first.states()))
    kept = [specs[1], specs[3]]
    second = PackedTraining(kept, prepared_for(specs[0]), states=[states[1], states[3]])
    assert second.train_to(6)
    check_agree(kept, second)


def test_a_copy_goes_on_with_values_of_its_own(tmp_path: Path) -> None:
    keys = ["training.epochs=4", "training.schedule.kind=step", "training.schedule.every_epochs=1"]
    parent, child = trials(
        tmp_path, [keys, [*keys, "training.optimizer.lr=0.01", "model.dropout=0"]]
    )
    prepared = prepared_for(parent)
    first = PackedTraining([parent], prepared)
    assert first.train_to(2)
    (state,) = first.states()
    both = PackedTraining([parent, child], prepared, states=[state, state])
    assert both.train_to(4)
    rates = [[record["lr"] for record in member.history] for member in both.members]
    assert rates[0] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6])
    assert rates[1] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    assert both.members[0].history[:3] == both.members[1].history[:3]
    other = trials(tmp_path, [[]], model={"kind": "mlp", "hidden": [9]})
    with pytest.raises(ArtifactError, match="goes on with the model that it began with"):
        PackedTraining(other, prepared, states=[state])
    with pytest.raises(ValueError, match="the end of the same epoch"):
        PackedTraining([parent, child], prepared, states=[state, None])


def test_what_is_no_file_of_trials_is_refused() -> None:
    for data in (b"", b"nothing", safetensors.torch.save({"0/weights": torch.zeros(3)})):
        with pytest.raises(ArtifactError, match="expected the trials of a pack in here"):
            states_from_bytes(data, where="here")


def test_what_cannot_be_packed_is_not(tmp_path: Path) -> None:
    specs = trials(tmp_path, [[], ["model.hidden=[9]"], ["training.clip_norm=1"]])
    prepared = prepared_for(specs[0])
    with pytest.raises(ValueError, match="of one shape"):
        PackedTraining(specs[:2], prepared)
    with pytest.raises(ValueError, match="clip_norm"):
        PackedTraining(specs[2:], prepared)
