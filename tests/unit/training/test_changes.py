"""`training.changes`: other values from an epoch on, a pure function of the epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchtrain.errors import SpecError
from batchtrain.models.build import build_model
from batchtrain.models.dropout import changing_dropout, dropout_layers
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.spec.model import CnnModel, LinearModel, MlpModel, ModelSpec, ResNetModel
from batchtrain.spec.optimizers import AdamW
from batchtrain.training.choosing import choose_passes
from batchtrain.training.machine import choose_machine
from batchtrain.training.plan import make_plan, row_order
from batchtrain.training.stage import run_layout
from batchtrain.training.state import TrainState
from tests.support.builders import (
    layout_for,
    mixed_table,
    prepared_for,
    run,
    spec_for,
    storage_of,
    train_in_parts,
)
from tests.support.loops import LoopRun, StopAfter, written
from tests.support.ranks import compared, train_ranks

EPOCH = 5
"""Steps: 40 rows in batches of 8."""

CHANGES = (
    {"epoch": 1, "lr": 0.05, "dropout": 0.5},
    {"epoch": 3, "weight_decay": 0.3},
    {"epoch": 4, "lr": 0.002, "weight_decay": 0.0, "dropout": 0.0},
)
ADAMW = {"kind": "adamw", "lr": 0.02, "weight_decay": 0.1, "weight_decay_on": "matrices"}
EPOCHS = {"epochs": 6, "optimizer": ADAMW, "changes": CHANGES}

SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "cosine and warm-up": {"schedule": {"kind": "cosine"}, "warmup": {"epochs": 1.5}},
    "plateau": {"schedule": {"kind": "plateau", "factor": 0.5, "patience": 0}},
    "one cycle": {"schedule": {"kind": "one_cycle"}},
    "momentum": {
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "changes": ({"epoch": 2, "momentum": 0.5}, {"epoch": 3, "lr": 0.1}),
    },
}


def in_force(training: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """Rate, decay of matrices and of the others, and share of dropout in each step."""
    found = []

    def look(state: TrainState) -> None:
        matrices, others = state.optimizer.param_groups
        (layer,) = dropout_layers(state.model)
        # The state may be one step on in its rate: at the end of an epoch it has the next.
        found.append((matrices["lr"], matrices["weight_decay"], others["weight_decay"], layer.p))

    test = LoopRun(training)
    assert test.go(test.new_state(), StopAfter(looks=look))
    return found


def test_each_epoch_has_its_values_and_only_what_decays_decays() -> None:
    found = in_force(EPOCHS)
    # The second step of each epoch.
    assert found[1::EPOCH] == [
        (0.02, 0.1, 0.0, 0.2),
        (0.05, 0.1, 0.0, 0.5),
        (0.05, 0.1, 0.0, 0.5),
        (0.05, 0.3, 0.0, 0.5),
        (0.002, 0.0, 0.0, 0.0),
        (0.002, 0.0, 0.0, 0.0),
    ]


def test_a_schedule_multiplies_the_rate_that_is_in_force() -> None:
    schedule = {"kind": "step", "every_epochs": 2, "factor": 0.5}
    rates = [each[0] for each in in_force({**EPOCHS, "schedule": schedule})[1::EPOCH]]
    assert rates == [0.02, 0.05, 0.05 * 0.5, 0.05 * 0.5, 0.002 * 0.25, 0.002 * 0.25]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stops", [(1, 4, 5), (7, 5, 5), (3, 12), (EPOCH * 4,), (EPOCH * 6,)])
def test_a_resume_anywhere_ends_with_the_same_bytes(name: str, stops: tuple[int, ...]) -> None:
    test = LoopRun({**EPOCHS, **SCHEDULES[name]})
    assert written(test.in_parts(*stops)) == written(test.whole())


def test_a_change_is_training_up_to_it_and_going_on_with_the_other_values() -> None:
    changed = LoopRun(
        {
            "epochs": 4,
            "optimizer": ADAMW,
            "changes": ({"epoch": 2, "lr": 0.05, "weight_decay": 0.3, "dropout": 0.6},),
        }
    )
    plain = LoopRun({"epochs": 4, "optimizer": ADAMW})
    state = plain.new_state()
    assert not plain.go(state, StopAfter(2 * EPOCH))
    state.optimizer.param_groups[0]["weight_decay"] = 0.3
    for group in state.optimizer.param_groups:
        group["lr"] = 0.05
    dropout_layers(state.model)[0].p = 0.6
    state.schedule = build_schedule(None, state.optimizer, 4)
    assert plain.go(state)
    found = changed.whole()
    for mine, other in zip(found.model.parameters(), state.model.parameters(), strict=True):
        assert mine.equal(other)
    assert found.history == state.history
    # All three matter.
    for name in ("lr", "weight_decay", "dropout"):
        kept = {key: value for key, value in changed.spec.changes[0] if key != name and value}
        less = LoopRun({**changed.training, "changes": (kept,)}).whole()
        assert less.history[-1] != found.history[-1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_state_is_taken_over_with_other_values_as_if_they_had_always_been_planned(
    name: str,
) -> None:
    """As a member of a population takes over another's: an ordinary run repeats it."""
    planned = LoopRun({**EPOCHS, **SCHEDULES[name]})
    changes = planned.training["changes"]
    last = changes[-1]["epoch"]
    parent = LoopRun({**planned.training, "changes": changes[:-1]})
    state = parent.new_state()
    assert not parent.go(state, StopAfter(last * EPOCH))
    heir = planned.new_state()
    heir.load_bytes(*written(state), where="memory")
    assert planned.go(heir)
    whole = planned.whole()
    for mine, other in zip(heir.model.parameters(), whole.model.parameters(), strict=True):
        assert mine.equal(other)
    assert heir.history == whole.history


def test_a_roll_back_keeps_the_values_of_its_epoch() -> None:
    def spoil(state: TrainState, step: int) -> tuple[float, float]:
        rate = state.learning_rate()
        return (float("nan"), 1) if step == 7 and rate == 0.05 else (1, 1)

    test = LoopRun({**EPOCHS, "on_nan": "roll_back"}, spoils=spoil)
    state = test.whole()
    assert [each["epoch"] for each in state.rolled_back] == [1]
    assert [each["lr"] for each in state.history[1:]] == [0.02, 0.025, 0.025, 0.025, 0.001, 0.001]
    assert written(test.in_parts(8, 1, 9)) == written(state)


INPUTS = ModelInputs(num_numeric=16, cardinalities=(3,), num_outputs=2)


@pytest.mark.parametrize(
    "spec",
    [
        MlpModel(kind="mlp", hidden=(8, 8), dropout=0.0),
        MlpModel(kind="mlp", hidden=(8, 8), dropout=0.0, residual=True, normalization="layer"),
        MlpModel(kind="mlp", hidden=(8,), dropout=0.0, activation="prelu"),
        ResNetModel(kind="resnet", width=8, hidden_dropout=0.0),
        CnnModel(kind="cnn", channels=(4,), hidden=(8, 4), dropout=0.0),
    ],
)
def test_a_model_without_dropout_gets_it_where_the_spec_would_put_it(spec: ModelSpec) -> None:
    plain = build_model(spec, INPUTS, seed=3)
    model = build_model(spec, INPUTS, seed=3)
    key = "hidden_dropout" if isinstance(spec, ResNetModel) else "dropout"
    wanted = build_model(spec.model_copy(update={key: 0.4}), INPUTS, seed=3)
    layers = changing_dropout(model, spec)
    assert len(layers) == len(dropout_layers(wanted)) > 0
    assert model.state_dict().keys() == plain.state_dict().keys()
    numeric = torch.linspace(-1, 1, 48).reshape(3, 16)
    codes = torch.tensor([[0], [1], [2]])

    def outputs(of: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            return of(numeric, codes), torch.default_generator.get_state()

    for one, other in zip(outputs(model), outputs(plain), strict=True):
        assert one.equal(other)
    for layer in layers:
        layer.p = 0.4
    assert outputs(model)[0].equal(outputs(wanted)[0])
    assert not outputs(model)[0].equal(outputs(plain)[0])


def test_a_model_with_no_place_for_dropout_is_refused() -> None:
    spec = LinearModel(kind="linear")
    with pytest.raises(SpecError, match=r"training\.changes.*found linear without any"):
        changing_dropout(build_model(spec, INPUTS, seed=0), spec)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_decays_later_is_apart_from_the_start(decay: float) -> None:
    spec = AdamW(kind="adamw", weight_decay=decay, weight_decay_on="matrices")
    optimizer = build_optimizer(spec, nn.Linear(3, 2).parameters(), fused=True)
    found = [(group["weight_decay"], group["params"][0].ndim) for group in optimizer.param_groups]
    assert found == [(decay, 2), (0.0, 1)]


OF_A_RUN: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.0},
    "training": {
        "epochs": 4,
        "batch_size": 16,
        "changes": [{"epoch": 1, "lr": 0.01, "dropout": 0.3}, {"epoch": 3, "weight_decay": 0.5}],
    },
}


def test_a_run_with_changes_is_resumed_exported_and_read_again(tmp_path: Path) -> None:
    for name in ("whole", "broken", "canonical"):
        (tmp_path / name).mkdir()
    whole = run(spec_for(tmp_path / "whole", mixed_table(90), **OF_A_RUN))
    assert whole.bundle is not None
    broken = train_in_parts(spec_for(tmp_path / "broken", mixed_table(90), **OF_A_RUN), [2, 3, 4])
    assert whole.trained is not None
    assert broken.trained is not None
    assert compared(broken.trained) == compared(whole.trained)
    assert [record["lr"] for record in whole.trained.history()] == [0.001, 0.001, *[0.01] * 3]


def test_canonical_ranks_change_together(tmp_path: Path) -> None:
    sections = {**OF_A_RUN, "determinism": "canonical"}
    found = []
    for size in (0, 2):
        (tmp_path / str(size)).mkdir()
        loaded = spec_for(tmp_path / str(size), mixed_table(60), **sections)
        found.append(compared(train_ranks(loaded, size)))
    assert found[0] == found[1]


def test_a_run_keeps_its_name_while_there_are_no_changes(tmp_path: Path) -> None:
    table = mixed_table(60)
    without = spec_for(tmp_path, table, training={"epochs": 2})
    prepared, name = prepared_for(without), layout_for(without).run_id
    explicit = spec_for(tmp_path, training={"epochs": 2, "changes": []})
    changed = spec_for(tmp_path, training={"epochs": 2, "changes": [{"epoch": 1, "lr": 0.1}]})
    assert run_layout(explicit, prepared, storage_of(explicit)).run_id == name
    assert run_layout(changed, prepared, storage_of(changed)).run_id != name


def test_auto_compiles_nothing_whose_dropout_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.training.choosing.WORTH_SECONDS", 0.0)
    monkeypatch.setattr("batchtrain.training.choosing._missing", lambda device: "")
    found = []
    for change in ({"epoch": 1, "lr": 0.1}, {"epoch": 1, "dropout": 0.1}):
        loaded = spec_for(tmp_path, mixed_table(60), training={"epochs": 2, "changes": [change]})
        prepared, machine = prepared_for(loaded), choose_machine(loaded.spec.resources)
        plan = make_plan(loaded.spec.training, row_order(prepared, seed=0))
        found.append(choose_passes(machine, loaded.spec, prepared, plan, INPUTS)[0].compile)
    assert found == [True, False]
