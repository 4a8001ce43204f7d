"""Schedules and early stopping follow their rules, and go on after a resume as if never cut."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from batchtrain.errors import SpecError, TrainingError
from batchtrain.models.optim import EarlyStop, build_optimizer, build_schedule
from batchtrain.spec.training import (
    Adam,
    AdamW,
    CosineSchedule,
    PlateauSchedule,
    Sgd,
    StepSchedule,
)

LOSSES = [1.0, 0.9, 0.95, math.nan, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
SCHEDULES = [
    None,
    PlateauSchedule(kind="plateau", patience=1, factor=0.5, min_lr=0.01),
    StepSchedule(kind="step", every_epochs=3, factor=0.1),
    CosineSchedule(kind="cosine", min_lr=0.01),
]


def make_optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(2))]
    return build_optimizer(Sgd(kind="sgd", lr=lr), parameters, fused=False)


def rates(spec, losses, epochs=12):
    optimizer = make_optimizer()
    schedule = build_schedule(spec, optimizer, epochs)
    found = []
    for epoch, loss in enumerate(losses):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch, loss)
    return found


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("spec", "kind", "options"),
    [
        (
            Sgd(kind="sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1),
            torch.optim.SGD,
            {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ),
        (
            Adam(kind="adam", lr=0.2, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.1),
            torch.optim.Adam,
            {"lr": 0.2, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1},
        ),
        (AdamW(kind="adamw"), torch.optim.AdamW, {"lr": 0.001, "weight_decay": 0.01}),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_every_option_of_the_spec_reaches_the_optimizer(spec, kind, options, fused):
    optimizer = build_optimizer(spec, [nn.Parameter(torch.ones(2))], fused=fused)
    group = optimizer.param_groups[0]
    # torch's AdamW is its Adam with one more option; the fused form is a class for both.
    assert isinstance(optimizer, torch.optim.Adam if kind is torch.optim.AdamW else kind)
    assert group.get("decoupled_weight_decay", False) is (kind is torch.optim.AdamW)
    assert {key: group[key] for key in options} == options
    assert group["fused"] is fused


def test_no_schedule_keeps_the_rate():
    assert rates(None, LOSSES) == [0.1] * 12


def test_step_lowers_the_rate_every_so_many_epochs():
    found = rates(SCHEDULES[2], LOSSES[:7])
    assert found == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001])


def test_cosine_falls_from_lr_to_min_lr_as_torchs_does():
    found = rates(SCHEDULES[3], LOSSES)
    optimizer = make_optimizer()
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.01)
    expected = []
    for _ in LOSSES:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert found == pytest.approx(expected)
    assert found[0] == 0.1


def test_cosine_stays_at_min_lr_beyond_its_epochs():
    assert rates(SCHEDULES[3], LOSSES, epochs=4)[4:] == pytest.approx([0.01] * 8)


def test_plateau_halves_the_rate_after_two_epochs_without_a_fall():
    found = rates(SCHEDULES[1], LOSSES)
    #        1.0  0.9  0.95 nan | 0.9   0.9 | 0.5    0.6    0.6 | 0.6     0.6 |
    assert found == pytest.approx([0.1] * 4 + [0.05] * 2 + [0.025] * 3 + [0.0125] * 2 + [0.01])


@pytest.mark.parametrize("spec", SCHEDULES, ids=lambda spec: spec.kind if spec else "none")
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_resumed_schedule_goes_on_as_if_never_cut(spec, cut):
    optimizer = make_optimizer()
    schedule = build_schedule(spec, optimizer, 12)
    for epoch in range(cut):
        schedule.step(epoch, LOSSES[epoch])
    state = json.loads(json.dumps(schedule.state(), allow_nan=False))

    # The rate is restored first, as the optimizer's state is, and must not become the base.
    resumed_optimizer = make_optimizer(optimizer.param_groups[0]["lr"])
    resumed = build_schedule(spec, resumed_optimizer, 12)
    resumed.load_state(state)
    found = []
    for epoch in range(cut, 12):
        found.append(resumed_optimizer.param_groups[0]["lr"])
        resumed.step(epoch, LOSSES[epoch])
    assert found == rates(spec, LOSSES)[cut:]


def test_plateau_without_a_validation_loss_is_an_error():
    schedule = build_schedule(SCHEDULES[1], make_optimizer(), 12)
    with pytest.raises(TrainingError, match="validation loss after epoch 3"):
        schedule.step(3, None)


@pytest.mark.parametrize(
    "spec", [PlateauSchedule(kind="plateau", min_lr=1), CosineSchedule(kind="cosine", min_lr=1)]
)
def test_a_schedule_that_would_raise_the_rate_is_refused(spec):
    with pytest.raises(SpecError, match="min_lr"):
        build_schedule(spec, make_optimizer(), 12)


def stops_at(losses, **options) -> int | None:
    stop = EarlyStop(**options)
    return next((epoch for epoch, loss in enumerate(losses) if stop.update(loss)), None)


@pytest.mark.parametrize(
    ("losses", "options", "epoch"),
    [
        ([3, 2, 1, 0], {"patience": 1}, None),
        ([3, 2, 2, 2], {"patience": 2}, 3),
        ([3, 4, 2, 4, 4], {"patience": 2}, 4),
        ([3, 3], {"patience": 0}, 1),
        ([3, math.nan, math.nan], {"patience": 2}, 2),
        ([math.nan, math.nan, 1], {"patience": 3}, None),
        ([math.inf, math.inf], {"patience": 2}, 1),
        ([3, 2.75, 2.5, 2.25], {"patience": 3, "min_delta": 0.5}, None),
        ([3, 2.75, 2.75, 2.75], {"patience": 3, "min_delta": 0.5}, 3),
    ],
)
def test_training_stops_after_patience_epochs_without_a_fall(losses, options, epoch):
    assert stops_at(losses, **options) == epoch


@pytest.mark.parametrize("cut", [0, 2, 3])
def test_a_resumed_early_stop_goes_on_counting(cut):
    losses = [3, 2, 2.5, 2.5, 2.5]
    stop = EarlyStop(patience=3)
    for loss in losses[:cut]:
        stop.update(loss)
    resumed = EarlyStop(patience=3)
    resumed.load_state(json.loads(json.dumps(stop.state(), allow_nan=False)))
    assert resumed == stop
    assert [resumed.update(loss) for loss in losses[cut:]][-2:] == [False, True]
