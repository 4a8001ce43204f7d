"""Schedules have torch's rates, go together with a warm-up, and go on after a resume."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from batchtrain.errors import SpecError, TrainingError
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.spec import schedules as specs
from batchtrain.spec.optimizers import Sgd
from batchtrain.spec.schedules import Warmup

EPOCHS = 12
STEPS = 5
"""Steps of an epoch."""
LOSSES = [1.0, 0.9, 0.95, math.nan, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]

PLATEAU = specs.PlateauSchedule(kind="plateau", patience=1, factor=0.5, min_lr=0.01)
COSINE = specs.CosineSchedule(kind="cosine", min_lr=0.01)
ONE_CYCLE = specs.OneCycleSchedule(kind="one_cycle")
BY_EPOCH = {
    "none": (None, lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    "constant": (
        specs.ConstantSchedule(kind="constant"),
        lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    ),
    "step": (
        specs.StepSchedule(kind="step", every_epochs=3, factor=0.3),
        lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.3),
    ),
    "multistep": (
        specs.MultistepSchedule(kind="multistep", milestones=(2, 3, 7), factor=0.3),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones=[2, 3, 7], gamma=0.3),
    ),
    "exponential": (
        specs.ExponentialSchedule(kind="exponential", factor=0.7),
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.7),
    ),
    "linear": (
        specs.LinearSchedule(kind="linear"),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS),
    ),
    "linear_over": (
        specs.LinearSchedule(kind="linear", start=0.25, end=0.75, over_epochs=5),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.25, 0.75, total_iters=5),
    ),
    "polynomial": (
        specs.PolynomialSchedule(kind="polynomial", power=0.9),
        lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=EPOCHS, power=0.9),
    ),
    "polynomial_over": (
        specs.PolynomialSchedule(kind="polynomial", over_epochs=5, power=2.0),
        lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=5, power=2.0),
    ),
    "cosine": (
        COSINE,
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS, eta_min=0.01),
    ),
    "cosine_restarts": (
        specs.CosineRestartsSchedule(kind="cosine_restarts", first_epochs=4, min_lr=0.01),
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=4, T_mult=1, eta_min=0.01
        ),
    ),
    "cosine_restarts_growing": (
        specs.CosineRestartsSchedule(kind="cosine_restarts", first_epochs=2, growth=2),
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2),
    ),
}
EVERY = {**{name: spec for name, (spec, _) in BY_EPOCH.items()}, "plateau": PLATEAU}
EVERY["one_cycle"] = ONE_CYCLE
WARMUP = Warmup(steps=2 * STEPS + 3, start=0.1)


def make_optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(2))]
    return build_optimizer(Sgd(kind="sgd", lr=lr), parameters, fused=False)


def rates(spec, losses=LOSSES, epochs=EPOCHS):
    """The rate of each epoch."""
    optimizer = make_optimizer()
    schedule = build_schedule(spec, optimizer, epochs)
    assert not schedule.per_step
    found = []
    for epoch, loss in enumerate(losses):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch, loss)
    return found


def step_rates(spec, warmup, *, losses=LOSSES, optimizer=None, schedule=None, first=0):
    """The rate of each step from the first on, as the loop asks for them."""
    optimizer = optimizer or make_optimizer()
    schedule = schedule or build_schedule(
        spec, optimizer, EPOCHS, warmup=warmup, steps_per_epoch=STEPS
    )
    found = []
    for step in range(first, EPOCHS * STEPS):
        if schedule.per_step:
            schedule.before_step(step)
        found.append(optimizer.param_groups[0]["lr"])
        epoch, is_last = step // STEPS, step % STEPS == STEPS - 1
        if is_last:
            schedule.step(epoch, losses[epoch])
    return found


def torch_rates(make, count):
    optimizer = make_optimizer()
    reference = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    return found


@pytest.mark.parametrize(("spec", "make"), BY_EPOCH.values(), ids=BY_EPOCH)
def test_the_rates_are_those_of_torch(spec, make):
    assert rates(spec) == pytest.approx(torch_rates(make, EPOCHS), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("spec", [spec for spec, _ in BY_EPOCH.values()], ids=BY_EPOCH)
def test_the_first_rate_is_the_optimizers_to_the_last_bit(spec):
    expected = 0.1 * spec.start if isinstance(spec, specs.LinearSchedule) else 0.1
    assert rates(spec)[0] == expected


@pytest.mark.parametrize("spec", [COSINE, EVERY["linear"], EVERY["polynomial"]])
def test_the_rate_stays_where_it_is_beyond_its_epochs(spec):
    lowest = getattr(spec, "min_lr", 0.0)
    assert rates(spec, epochs=4)[4:] == [lowest] * 8


@pytest.mark.parametrize("rise", [0.3, 0.5, 0.123])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_one_cycle_has_the_rates_of_torch_in_every_step(shape, three_phase, rise):
    spec = specs.OneCycleSchedule(
        kind="one_cycle", rise=rise, shape=shape, three_phase=three_phase, start_divisor=10.0
    )
    expected = torch_rates(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=0.1,
            total_steps=EPOCHS * STEPS,
            pct_start=rise,
            anneal_strategy="cos" if shape == "cosine" else "linear",
            div_factor=10.0,
            three_phase=three_phase,
            cycle_momentum=False,
        ),
        EPOCHS * STEPS,
    )
    found = step_rates(spec, None)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert max(found) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("rise", [0.01, 0.5, 0.99])
def test_one_cycle_has_a_rate_for_the_shortest_run(steps, rise):
    optimizer = make_optimizer()
    spec = specs.OneCycleSchedule(kind="one_cycle", rise=rise)
    schedule = build_schedule(spec, optimizer, 1, steps_per_epoch=steps)
    for step in range(steps + 2):
        schedule.before_step(step)
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.1


def test_plateau_halves_the_rate_after_two_epochs_without_a_fall():
    found = rates(PLATEAU)
    #        1.0  0.9  0.95 nan | 0.9   0.9 | 0.5    0.6    0.6 | 0.6     0.6 |
    assert found == pytest.approx([0.1] * 4 + [0.05] * 2 + [0.025] * 3 + [0.0125] * 2 + [0.01])


some_losses = st.lists(
    st.sampled_from([0.0, 0.5, 0.9, 0.99995, 1.0, 1.00005, 2.0, math.nan, math.inf]), max_size=25
)


@given(
    losses=some_losses,
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    min_lr=st.sampled_from([0.0, 0.09, 0.0999999999, 0.1]),
)
def test_plateau_has_the_very_rates_of_torch(losses, factor, patience, cooldown, min_lr):
    spec = specs.PlateauSchedule(
        kind="plateau", factor=factor, patience=patience, cooldown=cooldown, min_lr=min_lr
    )
    optimizer = make_optimizer()
    reference = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, cooldown=cooldown, min_lr=min_lr
    )
    expected = []
    for loss in losses:
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(loss)
    assert rates(spec, losses) == expected


def test_plateau_knows_a_fall_below_0():
    falling, rising = [-1.0, -1.1, -1.2, -1.3], [-1.0, -0.99995, -0.99994, -0.9]
    assert rates(PLATEAU, falling) == [0.1] * 4
    assert rates(PLATEAU, rising) == [0.1] * 3 + [0.05]


def test_plateau_without_a_validation_loss_is_an_error():
    schedule = build_schedule(PLATEAU, make_optimizer(), EPOCHS)
    with pytest.raises(TrainingError, match="validation loss after epoch 3"):
        schedule.step(3, None)


@pytest.mark.parametrize(
    "spec",
    [
        specs.PlateauSchedule(kind="plateau", min_lr=1),
        specs.CosineSchedule(kind="cosine", min_lr=1),
        specs.CosineRestartsSchedule(kind="cosine_restarts", min_lr=1),
    ],
)
def test_a_schedule_that_would_raise_the_rate_is_refused(spec):
    with pytest.raises(SpecError, match="min_lr"):
        build_schedule(spec, make_optimizer(), EPOCHS)


@pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY)
def test_a_warm_up_multiplies_what_the_schedule_says(spec):
    """The rates of the schedule come out again when torch's own ramp is divided out."""
    plain = step_rates(spec, None)
    ramp = torch_rates(
        lambda optimizer: lr_scheduler.LinearLR(optimizer, WARMUP.start, 1.0, WARMUP.steps),
        EPOCHS * STEPS + 1,
    )[1:]
    expected = [rate * share / 0.1 for rate, share in zip(plain, ramp, strict=True)]
    found = step_rates(spec, WARMUP)
    assert found == pytest.approx(expected, rel=1e-9)
    # After it nothing is left of it, to the last bit.
    assert found[WARMUP.steps :] == plain[WARMUP.steps :]
    assert found[0] < plain[0] * 0.2


def test_the_last_step_of_a_warm_up_has_the_full_rate_and_the_first_is_above_0():
    found = step_rates(None, Warmup(steps=4))
    assert found[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert found[3:] == [0.1] * (EPOCHS * STEPS - 3)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 5), (0.5, 2), (2.5, 12), (0.01, 1)])
def test_a_warm_up_can_be_given_in_epochs(epochs, steps):
    assert step_rates(None, Warmup(epochs=epochs)) == step_rates(None, Warmup(steps=steps))


def test_without_a_warm_up_only_one_cycle_asks_for_every_step():
    asking = {
        name
        for name, spec in EVERY.items()
        if build_schedule(spec, make_optimizer(), EPOCHS, steps_per_epoch=STEPS).per_step
    }
    assert asking == {"one_cycle"}


@pytest.mark.parametrize("warmup", [None, WARMUP], ids=["plain", "warmup"])
@pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("cut", [0, 1, 3 * STEPS, 5 * STEPS + 2])
def test_a_resumed_schedule_goes_on_as_if_never_cut(spec, cut, warmup):
    whole = step_rates(spec, warmup)
    optimizer = make_optimizer()
    schedule = build_schedule(spec, optimizer, EPOCHS, warmup=warmup, steps_per_epoch=STEPS)
    for step in range(cut):
        if schedule.per_step:
            schedule.before_step(step)
        if step % STEPS == STEPS - 1:
            schedule.step(step // STEPS, LOSSES[step // STEPS])
    state = json.loads(json.dumps(schedule.state(), allow_nan=False))

    resumed_optimizer = make_optimizer()
    resumed = build_schedule(spec, resumed_optimizer, EPOCHS, warmup=warmup, steps_per_epoch=STEPS)
    resumed_optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    resumed.load_state(state)
    assert resumed.state() == schedule.state()
    found = step_rates(spec, warmup, optimizer=resumed_optimizer, schedule=resumed, first=cut)
    assert found == whole[cut:]


def test_a_rate_that_was_restored_first_does_not_become_the_base():
    spec = specs.ExponentialSchedule(kind="exponential", factor=0.5)
    schedule = build_schedule(spec, make_optimizer(), EPOCHS)
    schedule.step(0, None)
    optimizer = make_optimizer(0.05)
    resumed = build_schedule(spec, optimizer, EPOCHS)
    resumed.load_state(schedule.state())
    resumed.step(1, None)
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_a_run_that_ends_after_so_many_steps_ends_its_schedule_there():
    optimizer = make_optimizer()
    schedule = build_schedule(ONE_CYCLE, optimizer, 100, steps_per_epoch=STEPS, max_steps=20)
    schedule.before_step(19)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 25 / 1e4)

    schedule = build_schedule(COSINE, make_optimizer(), 100, steps_per_epoch=STEPS, max_steps=18)
    shorter = build_schedule(COSINE, make_optimizer(), 4)
    assert schedule._course.rates(2) == shorter._course.rates(2)
    longer = build_schedule(COSINE, make_optimizer(), 4, steps_per_epoch=STEPS, max_steps=1000)
    assert longer._course.rates(2) == shorter._course.rates(2)


@pytest.mark.parametrize("options", [{"warmup": WARMUP}, {"max_steps": 5}, {"spec": ONE_CYCLE}])
def test_what_counts_steps_must_know_how_many_an_epoch_has(options):
    with pytest.raises(ValueError, match="steps_per_epoch"):
        build_schedule(options.pop("spec", None), make_optimizer(), EPOCHS, **options)


@pytest.mark.parametrize("warmup", [None, WARMUP], ids=["plain", "warmup"])
@pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY)
def test_a_roll_back_halves_all_rates_from_then_on(spec, warmup):
    whole = step_rates(spec, warmup)
    optimizer = make_optimizer()
    schedule = build_schedule(spec, optimizer, EPOCHS, warmup=warmup, steps_per_epoch=STEPS)
    before = optimizer.param_groups[0]["lr"]
    schedule.scale_to(0.25)
    schedule.scale_to(0.5)
    assert optimizer.param_groups[0]["lr"] == before / 2
    halved = step_rates(spec, warmup, optimizer=optimizer, schedule=schedule)
    assert halved == [rate / 2 for rate in whole]

    fresh = build_schedule(spec, make_optimizer(), EPOCHS, warmup=warmup, steps_per_epoch=STEPS)
    fresh.load_state(json.loads(json.dumps(schedule.state())))
    assert fresh.share == 0.5


def test_each_group_of_parameters_keeps_its_own_rate():
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for spec in EVERY.values():
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1, 0.2
        schedule = build_schedule(spec, optimizer, EPOCHS, warmup=WARMUP, steps_per_epoch=STEPS)
        for epoch in range(4):
            schedule.step(epoch, 1.0)
        schedule.before_step(4 * STEPS)
        one, other = (group["lr"] for group in optimizer.param_groups)
        if getattr(spec, "min_lr", 0.0) == 0:
            assert other == pytest.approx(2 * one)
        else:
            assert other > one
