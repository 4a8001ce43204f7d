"""Every activation of torch.nn that needs no argument and keeps the shape has a name."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.modules import activation

from batchtrain.models.activations import new_activation
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import ActivationName, CnnModel, MlpModel, ResNetModel

NAMES = get_args(ActivationName)

ACROSS_A_ROW = {"GLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
"""They need no argument, but mix the numbers of a row or halve its width."""

ANY_ARGUMENTS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def test_all_of_torchs_activations_are_there_that_can_be():
    without_arguments = {
        name
        for name in activation.__all__
        if all(
            parameter.default is not inspect.Parameter.empty or parameter.kind in ANY_ARGUMENTS
            for parameter in inspect.signature(getattr(nn, name)).parameters.values()
        )
    }
    assert {type(new_activation(name)).__name__ for name in NAMES} == (
        without_arguments - ACROSS_A_ROW
    )
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_is_torchs_works_on_each_number_alone_and_has_a_gradient(name: str):
    module = new_activation(name).eval()
    assert type(module).__name__.lower() == name.replace("_", "")
    values = torch.linspace(-4, 4, 24).reshape(4, 6).requires_grad_()
    found = module(values)
    assert found.shape == values.shape
    found.sum().backward()
    assert torch.isfinite(values.grad).all()
    assert (values.grad != 0).any()
    each = torch.stack([module(value) for value in values.detach().flatten()])
    torch.testing.assert_close(found.detach().flatten(), each)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spec",
    [
        MlpModel(kind="mlp", hidden=(4,)),
        ResNetModel(kind="resnet", width=4),
        CnnModel(kind="cnn", channels=(2,), hidden=(4,)),
    ],
    ids=lambda spec: spec.kind,
)
def test_every_network_takes_every_activation(spec, name: str):
    spec = spec.model_copy(update={"activation": name})
    model = build_model(spec, ModelInputs(9, (3,), 2), seed=1)
    kinds = [type(module).__name__.lower() for module in model.modules()]
    assert name.replace("_", "") in kinds
    outputs = model(torch.ones(3, 9), torch.ones(3, 1, dtype=torch.int64))
    assert torch.isfinite(outputs).all()
