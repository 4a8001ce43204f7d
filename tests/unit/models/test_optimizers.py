"""Every optimizer of the spec is torch's, with torch's defaults; decay falls where it is asked."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from batchtrain.models.optimizers import build_optimizer
from batchtrain.spec.optimizers import Adafactor, Adam, AdamW, Decaying, NAdam, Sgd
from tests.support.optimizer_specs import EVERY_KIND, EVERY_OPTIMIZER, TORCH

by_kind = pytest.mark.parametrize("spec", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)


def name_of(kind) -> str:
    return kind.model_fields["kind"].annotation.__args__[0]


def test_there_is_a_case_for_every_kind():
    assert {type(spec) for spec in EVERY_OPTIMIZER.values()} == set(EVERY_KIND)
    assert {name_of(kind) for kind in EVERY_KIND} == set(TORCH)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=name_of)
def test_the_defaults_are_those_of_torch(kind):
    ours = kind(kind=name_of(kind)).model_dump(exclude={"kind", "weight_decay_on"})
    signature = inspect.signature(TORCH[name_of(kind)].__init__)
    # How a step is computed is not the spec's business, and Adam with decoupled decay is AdamW.
    ways = {"self", "params", "foreach", "fused", "maximize", "capturable", "differentiable"}
    ways |= {"decoupled_weight_decay"} if kind is Adam else set()
    theirs = {name: each.default for name, each in signature.parameters.items() if name not in ways}
    if kind is Sgd:
        assert (ours.pop("lr"), theirs.pop("lr")) == (0.01, 0.001)
    assert ours == theirs


@pytest.mark.parametrize("fused", [False, True])
@by_kind
def test_every_option_of_the_spec_reaches_the_optimizer(spec, fused):
    optimizer = build_optimizer(spec, [nn.Parameter(torch.ones(2))], fused=fused)
    (group,) = optimizer.param_groups
    # torch's AdamW is its Adam with one more option; the fused form is a class for both.
    kind = torch.optim.Adam if spec.kind == "adamw" else TORCH[spec.kind]
    assert isinstance(optimizer, kind)
    options = spec.model_dump(exclude={"kind", "weight_decay_on"})
    decoupled = options.pop("decoupled_weight_decay", spec.kind == "adamw")
    assert group.get("decoupled_weight_decay", False) is decoupled
    assert {key: group[key] for key in options} == options
    assert bool(group.get("fused") or group["foreach"]) is fused


@by_kind
def test_every_optimizer_learns(spec):
    """The far end of a bowl: nearer after some steps, by each of them."""
    weight = nn.Parameter(torch.tensor([[1.0, -1.0], [0.5, 2.0]]))
    optimizer = build_optimizer(spec, [weight], fused=True)
    before = float(weight.detach().square().sum())
    for _ in range(30):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < before


def decayed(spec) -> dict[str, bool]:
    """Which weights shrink in a step whose gradients are 0."""
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    with torch.no_grad():
        for each in model.parameters():
            each.fill_(1.0)
    optimizer = build_optimizer(spec, model.parameters(), fused=True)
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    return {name: bool((each < 1).all()) for name, each in model.named_parameters()}


@pytest.mark.parametrize(
    "spec",
    [
        Sgd(kind="sgd", weight_decay=0.1),
        AdamW(kind="adamw"),
        NAdam(kind="nadam", weight_decay=0.1, decoupled_weight_decay=True),
        Adafactor(kind="adafactor", weight_decay=0.1),
    ],
    ids=lambda spec: spec.kind,
)
def test_decay_shrinks_all_weights_or_only_the_matrices(spec):
    assert set(decayed(spec).values()) == {True}
    matrices = spec.model_copy(update={"weight_decay_on": "matrices"})
    expected = {"0.weight": True, "1.weight": True, "1.bias": False}
    assert decayed(matrices) == {**expected, "2.weight": False, "2.bias": False}
    without = matrices.model_copy(update={"weight_decay": 0.0})
    assert set(decayed(without).values()) == {False}


@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY_KIND if issubclass(kind, Decaying)], ids=name_of
)
def test_decay_on_matrices_is_as_decay_on_all_for_a_model_of_matrices(kind):
    weights = []
    for where in ("all", "matrices"):
        weight = nn.Parameter(torch.ones(2, 2))
        spec = kind(kind=name_of(kind), weight_decay=0.1, weight_decay_on=where)
        optimizer = build_optimizer(spec, [weight], fused=True)
        assert len(optimizer.param_groups) == 1
        weight.square().sum().backward()
        optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)
