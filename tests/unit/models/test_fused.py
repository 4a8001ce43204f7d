"""Our fused optimizers take the very steps of torch's, and keep the compiler out of the process."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from batchtrain.models.fused import FusedAdam, FusedSgd
from batchtrain.models.lean import Lean
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.state import load_optimizer, optimizer_json, optimizer_tensors
from tests.support.optimizer_specs import EVERY_OPTIMIZER, TORCH, torch_optimizer

by_kind = pytest.mark.parametrize("spec", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)
ADAMS = {name: spec for name, spec in EVERY_OPTIMIZER.items() if spec.kind in {"adam", "adamw"}}
ONE_KERNEL = {**ADAMS, "sgd": EVERY_OPTIMIZER["sgd"], "nesterov": EVERY_OPTIMIZER["nesterov"]}


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def take_steps(model, optimizer, steps, *, without=lambda step: ()):
    """Train on made rows; `without` names the parameters that get no gradient in a step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        for name in without(step):
            dict(model.named_parameters())[name].grad = None
        optimizer.param_groups[0]["lr"] *= 0.9
        optimizer.step()


def weights(model) -> list[Tensor]:
    return [each.detach().clone() for each in model.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@by_kind
def test_every_step_is_torchs_bit_for_bit(spec):
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(spec, ours.parameters(), fused=True)
    assert isinstance(optimizer, Lean)
    assert isinstance(optimizer, FusedSgd | FusedAdam) is (spec.kind in {"sgd", "adam", "adamw"})
    take_steps(ours, optimizer, range(20))
    take_steps(theirs, torch_optimizer(spec, theirs), range(20))
    assert_same(weights(ours), weights(theirs))


@pytest.mark.parametrize("spec", ADAMS.values(), ids=ADAMS)
def test_a_parameter_without_a_gradient_keeps_its_own_count(spec):
    def without(step):
        return ["0.bias"] if step in {0, 3, 4, 9} else ["2.weight"] if step == 5 else []

    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(spec, ours.parameters(), fused=True)
    reference = torch_optimizer(spec, theirs)
    take_steps(ours, optimizer, range(12), without=without)
    take_steps(theirs, reference, range(12), without=without)
    assert_same(weights(ours), weights(theirs))
    counts = [float(optimizer.state[each]["step"]) for each in ours.parameters()]
    assert counts == [float(reference.state[each]["step"]) for each in theirs.parameters()]
    assert counts == [12.0, 8.0, 11.0, 12.0]


@by_kind
def test_a_resume_goes_on_with_the_same_steps(spec):
    whole = small_model()
    take_steps(whole, build_optimizer(spec, whole.parameters(), fused=True), range(9))

    cut = small_model()
    first = build_optimizer(spec, cut.parameters(), fused=True)
    take_steps(cut, first, range(4))
    saved = {key: value.clone() for key, value in optimizer_tensors(first, cut).items()}
    document = json.loads(json.dumps(optimizer_json(first, cut)))
    resumed = copy.deepcopy(cut)
    second = build_optimizer(spec, resumed.parameters(), fused=True)
    load_optimizer(second, resumed, saved, document)
    take_steps(resumed, second, range(4, 9))
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("spec", ONE_KERNEL.values(), ids=ONE_KERNEL)
def test_parameters_of_two_types_are_left_to_torch(spec):
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    assert type(build_optimizer(spec, parameters, fused=True)) is TORCH[spec.kind]


@by_kind
def test_a_step_without_any_gradient_changes_nothing(spec):
    model = small_model()
    before = weights(model)
    build_optimizer(spec, model.parameters(), fused=True).step()
    assert_same(weights(model), before)


def test_neither_building_nor_stepping_imports_the_compiler():
    script = (
        "import sys, torch\n"
        "from batchtrain.models.optimizers import build_optimizer\n"
        "from tests.support.optimizer_specs import EVERY_OPTIMIZER\n"
        "for spec in EVERY_OPTIMIZER.values():\n"
        "    weight = torch.nn.Parameter(torch.ones(3))\n"
        "    optimizer = build_optimizer(spec, [weight], fused=True)\n"
        "    optimizer.zero_grad()\n"
        "    weight.sum().backward()\n"
        "    optimizer.step()\n"
        "    assert not torch.equal(weight, torch.ones(3))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
