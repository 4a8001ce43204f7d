"""Optimizers, schedules and warm-up are read by name, and what they cannot mean is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from batchtrain.errors import SpecError
from batchtrain.spec.load import parse_spec
from batchtrain.spec.optimizers import OptimizerSpec, Rprop, Sgd
from batchtrain.spec.schedules import (
    ConstantSchedule,
    CosineSchedule,
    PlateauSchedule,
    ScheduleSpec,
    Warmup,
    rate_mismatches,
)

HEAD = "version: 1\nname: tiny\ndata:\n  source: a.csv\n  target: y\n"
NEEDED = {"multistep": ", milestones: [2, 3]", "exponential": ", factor: 0.9"}


def kinds_of(union) -> list[str]:
    return [
        each.model_fields["kind"].annotation.__args__[0] for each in get_args(get_args(union)[0])
    ]


def training(text: str):
    return parse_spec(f"{HEAD}training: {{{text}}}", "spec.yaml", ()).spec.training


@pytest.mark.parametrize("kind", kinds_of(OptimizerSpec))
def test_every_optimizer_is_read_by_its_name(kind):
    found = training(f"optimizer: {{kind: {kind}, lr: 0.5}}").optimizer
    assert (found.kind, found.lr) == (kind, 0.5)


@pytest.mark.parametrize("kind", kinds_of(ScheduleSpec))
def test_every_schedule_is_read_by_its_name(kind):
    assert training(f"schedule: {{kind: {kind}{NEEDED.get(kind, '')}}}").schedule.kind == kind


def test_lists_and_null_are_read():
    found = training("optimizer: {kind: adafactor, eps: [null, 1e-2]}").optimizer
    assert found.eps == (None, 0.01)
    assert training("schedule: {kind: multistep, milestones: [3, 9]}").schedule.milestones == (3, 9)


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("optimizer: {kind: adma}", "optimizer.kind", "Did you mean"),
        ("optimizer: {kind: lbfgs}", "optimizer.kind", "rmsprop"),
        ("optimizer: {kind: adam, rho: 0.9}", "optimizer.rho", "belongs to the kind adadelta"),
        ("optimizer: {kind: rprop, weight_decay: 1}", "optimizer.weight_decay", "belongs to"),
        ("optimizer: {kind: nadam, betas: [0.9, 1]}", "optimizer.betas.1", "below 1"),
        ("optimizer: {kind: rprop, etas: [1.2, 1.5]}", "optimizer.etas.0", "below 1"),
        ("optimizer: {kind: rprop, step_sizes: [2, 1]}", "optimizer.step_sizes", "smaller"),
        ("optimizer: {kind: adafactor, d: 0.5}", "optimizer.d", "from 1 to"),
        (
            "optimizer: {kind: adafactor, beta2_decay: 0.8}",
            "optimizer.beta2_decay",
            "from -10 to 0",
        ),
        ("optimizer: {kind: adagrad, lr_decay: -1}", "optimizer.lr_decay", "from 0 to"),
        ("optimizer: {kind: adamw, weight_decay_on: biases}", "optimizer.weight_decay_on", "all"),
        (
            "optimizer: {kind: sgd, momentum: 0.9, dampening: 0.1, nesterov: true}",
            "optimizer.nesterov",
            "`dampening` of 0",
        ),
        ("schedule: {kind: multistep}", "schedule.milestones", "missing"),
        ("schedule: {kind: multistep, milestones: []}", "schedule.milestones", "at least 1"),
        ("schedule: {kind: multistep, milestones: [3, 3]}", "schedule.milestones", "above the one"),
        ("schedule: {kind: exponential}", "schedule.factor", "missing"),
        ("schedule: {kind: exponential, factor: 1.1}", "schedule.factor", "at most 1"),
        ("schedule: {kind: linear, start: 0}", "schedule.start", "above 0"),
        ("schedule: {kind: polynomial, power: 0}", "schedule.power", "above 0"),
        ("schedule: {kind: cosine_restarts, growth: 0}", "schedule.growth", "from 1"),
        ("schedule: {kind: one_cycle, rise: 1}", "schedule.rise", "below 1"),
        (
            "schedule: {kind: one_cycle, rise: 0.6, three_phase: true}",
            "schedule.three_phase",
            "0.5",
        ),
        ("warmup: {}", "warmup", "one of them"),
        ("warmup: {steps: 3, epochs: 1}", "warmup.steps", "one of them"),
        ("warmup: {steps: 0}", "warmup.steps", "at least 1"),
        ("warmup: {epochs: 0}", "warmup.epochs", "above 0"),
        ("warmup: {steps: 3, start: 1}", "warmup.start", "below 1"),
    ],
)
def test_what_cannot_be_is_named_at_its_place(text, key, part):
    with pytest.raises(SpecError) as caught:
        training(text)
    (problem,) = caught.value.problems
    assert problem.key == f"training.{key}"
    assert part in str(problem)


RPROP, SGD = Rprop(kind="rprop"), Sgd(kind="sgd", lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "warmup", "parts"),
    [
        (SGD, None, None, []),
        (SGD, CosineSchedule(kind="cosine", min_lr=0.1), Warmup(steps=1), []),
        (SGD, CosineSchedule(kind="cosine", min_lr=0.2), Warmup(steps=1), ["min_lr` is 0.2"]),
        (SGD, PlateauSchedule(kind="plateau", min_lr=0.2), None, ["lr, 0.1"]),
        (RPROP, None, None, []),
        (RPROP, ConstantSchedule(kind="constant"), None, []),
        (RPROP, CosineSchedule(kind="cosine"), None, ["`training.schedule` sets"]),
        (
            RPROP,
            CosineSchedule(kind="cosine"),
            Warmup(steps=1),
            ["`training.schedule`", "`training.warmup`"],
        ),
    ],
)
def test_what_does_not_go_together_is_said(optimizer, schedule, warmup, parts):
    found = rate_mismatches(optimizer, schedule, warmup)
    assert len(found) == len(parts)
    assert all(part in problem for part, problem in zip(parts, found, strict=True))


def test_rprop_cannot_be_slowed_down_after_a_roll_back():
    (problem,) = rate_mismatches(RPROP, None, None, rolls_back=True)
    assert "`training.on_nan`" in problem
    assert rate_mismatches(SGD, None, None, rolls_back=True) == []
