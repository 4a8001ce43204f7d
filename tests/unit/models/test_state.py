"""An optimizer that was saved and loaded takes the very steps that it would have taken."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from batchtrain.errors import ArtifactError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.state import load_optimizer, optimizer_json, optimizer_tensors
from batchtrain.spec.model import MlpModel
from batchtrain.spec.optimizers import Adam, AdamW
from tests.support.optimizer_specs import EVERY_OPTIMIZER

INPUTS = ModelInputs(num_numeric=2, cardinalities=(3,), num_outputs=2)
MODEL = MlpModel(kind="mlp", hidden=(8,), dropout=0.0)
ADAM, ADAMW, SGD = (EVERY_OPTIMIZER[name] for name in ("adam", "adamw", "sgd"))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        numeric_BF = torch.randn(5, 2, generator=generator).to(dtype_of(model))
        codes_BC = torch.randint(3, (5, 1), generator=generator)
        optimizer.zero_grad()
        model(numeric_BF, codes_BC).square().sum().backward()
        optimizer.step()


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def start(spec, fused=False, dtype=torch.float32):
    model = build_model(MODEL, INPUTS, seed=1)
    if dtype == torch.float64:
        model = model.double()
    return model, build_optimizer(spec, model.parameters(), fused=fused)


def saved(model, optimizer):
    """The state as it comes back from safetensors and JSON."""
    document = json.loads(json.dumps(optimizer_json(optimizer, model), allow_nan=False))
    return load(save(optimizer_tensors(optimizer, model))), document


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("spec", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)
def test_a_resumed_optimizer_takes_bit_identical_steps(spec, fused, cut):
    model, optimizer = start(spec, fused)
    take_steps(model, optimizer, 0, cut)
    optimizer.param_groups[0]["lr"] = 0.017
    tensors, document = saved(model, optimizer)
    resumed_model, resumed = start(spec, fused)
    resumed_model.load_state_dict(model.state_dict())
    load_optimizer(resumed, resumed_model, tensors, document)
    assert resumed.param_groups[0]["lr"] == 0.017

    take_steps(model, optimizer, cut, 7)
    take_steps(resumed_model, resumed, cut, 7)
    for mine, theirs in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again = optimizer_tensors(resumed, resumed_model)
    for key, value in optimizer_tensors(optimizer, model).items():
        assert torch.equal(value, again[key])


@pytest.mark.parametrize("spec", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)
def test_a_resumed_optimizer_of_another_type_takes_bit_identical_steps(spec):
    """Torch would cast what an optimizer keeps in float32 to the parameters' float64."""
    whole, optimizer = start(spec, True, torch.float64)
    take_steps(whole, optimizer, 0, 7)
    model, cut = start(spec, True, torch.float64)
    take_steps(model, cut, 0, 3)
    tensors, document = saved(model, cut)
    resumed_model, resumed = start(spec, True, torch.float64)
    resumed_model.load_state_dict(model.state_dict())
    load_optimizer(resumed, resumed_model, tensors, document)
    take_steps(resumed_model, resumed, 3, 7)
    for mine, theirs in zip(whole.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    again = optimizer_tensors(resumed, resumed_model)
    for key, value in optimizer_tensors(optimizer, whole).items():
        assert value.dtype == again[key].dtype
        assert torch.equal(value, again[key])


def test_a_resumed_optimizer_of_two_groups_takes_bit_identical_steps():
    spec = AdamW(kind="adamw", lr=0.1, weight_decay=0.5, weight_decay_on="matrices")
    whole, optimizer = start(spec, fused=True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    take_steps(whole, optimizer, 0, 7)
    model, cut = start(spec, fused=True)
    take_steps(model, cut, 0, 3)
    tensors, document = saved(model, cut)
    resumed_model, resumed = start(spec, fused=True)
    resumed_model.load_state_dict(model.state_dict())
    load_optimizer(resumed, resumed_model, tensors, document)
    take_steps(resumed_model, resumed, 3, 7)
    for mine, theirs in zip(whole.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)

    other_model, other = start(AdamW(kind="adamw", lr=0.1, weight_decay=0.5), fused=True)
    with pytest.raises(ArtifactError, match="another model or spec"):
        load_optimizer(other, other_model, tensors, document)


def test_the_tensors_are_named_after_the_parameters():
    model, optimizer = start(ADAM)
    take_steps(model, optimizer, 0, 1)
    names = [name for name, _ in model.named_parameters()]
    kinds = ("step", "exp_avg", "exp_avg_sq")
    expected = {f"{kind}/{name}" for kind in kinds for name in names}
    assert set(optimizer_tensors(optimizer, model)) == expected


def test_the_loaded_tensors_are_copies():
    model, optimizer = start(ADAM)
    take_steps(model, optimizer, 0, 1)
    tensors, document = saved(model, optimizer)
    before = {key: value.clone() for key, value in tensors.items()}
    load_optimizer(optimizer, model, tensors, document)
    take_steps(model, optimizer, 1, 2)
    assert all(torch.equal(tensors[key], value) for key, value in before.items())


def test_parameters_of_another_type_keep_it():
    model, optimizer = start(ADAM, dtype=torch.float64)
    numeric_BF = torch.ones(1, 2, dtype=torch.float64)
    model(numeric_BF, torch.ones(1, 1, dtype=torch.int64)).sum().backward()
    optimizer.step()
    tensors, document = saved(model, optimizer)
    load_optimizer(optimizer, model, tensors, document)
    assert optimizer_tensors(optimizer, model)["exp_avg/layers.0.weight"].dtype == torch.float64


def test_a_parameter_that_has_no_gradient_has_no_state():
    model, optimizer = start(ADAM)
    model.layers[0].requires_grad_(False)
    take_steps(model, optimizer, 0, 1)
    tensors, document = saved(model, optimizer)
    assert "exp_avg/layers.0.weight" not in tensors
    assert "exp_avg/layers.2.weight" in tensors
    load_optimizer(optimizer, model, tensors, document)


def test_state_of_another_optimizer_or_option_is_refused():
    model, optimizer = start(ADAM)
    tensors, document = saved(model, optimizer)
    for spec in (SGD, ADAMW, Adam(kind="adam", weight_decay=0.1, betas=(0.5, 0.5))):
        other_model, other = start(spec)
        with pytest.raises(ArtifactError, match="another model or spec"):
            load_optimizer(other, other_model, tensors, document)


def test_state_of_another_model_is_refused():
    model, optimizer = start(ADAM)
    take_steps(model, optimizer, 0, 1)
    tensors, document = saved(model, optimizer)
    linear = nn.Linear(2, 2)
    other = build_optimizer(ADAM, linear.parameters(), fused=False)
    with pytest.raises(ArtifactError, match="parameters"):
        load_optimizer(other, linear, tensors, document)
    with pytest.raises(ArtifactError, match="does not have"):
        optimizer_tensors(optimizer, linear)


def test_tensors_that_are_missing_or_of_another_form_are_refused():
    model, optimizer = start(ADAM)
    take_steps(model, optimizer, 0, 1)
    tensors, document = saved(model, optimizer)
    key = "exp_avg/layers.0.weight"
    wrong = [
        {name: value for name, value in tensors.items() if name != key},
        {**tensors, "exp_avg/unknown": torch.zeros(1)},
        {**tensors, key: tensors[key].double()},
        {**tensors, key: tensors[key][:1]},
        {**tensors, "step/layers.0.weight": torch.ones(2)},
        {**tensors, "step/layers.0.weight": torch.ones((), dtype=torch.float64)},
    ]
    for changed in wrong:
        with pytest.raises(ArtifactError, match="optimizer state"):
            load_optimizer(optimizer, model, changed, document)


def test_what_has_another_shape_than_its_parameter_is_checked_too():
    model, optimizer = start(EVERY_OPTIMIZER["adafactor"])
    take_steps(model, optimizer, 0, 1)
    tensors, document = saved(model, optimizer)
    weight = model.layers[0].weight
    assert tensors["row_var/layers.0.weight"].shape == (len(weight), 1)
    assert tensors["col_var/layers.0.weight"].shape == (1, weight.shape[1])
    assert tensors["variance/layers.0.bias"].shape == model.layers[0].bias.shape
    turned = tensors["row_var/layers.0.weight"].T.contiguous()
    with pytest.raises(ArtifactError, match="row_var"):
        load_optimizer(optimizer, model, {**tensors, "row_var/layers.0.weight": turned}, document)
