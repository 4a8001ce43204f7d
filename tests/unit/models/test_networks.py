"""Every network takes every combination of inputs, and an unseen category is neutral."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchtrain.models.build import build_model, describe_model
from batchtrain.models.features import auto_embedding_dim
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import LinearModel, MlpModel, ResNetModel

SPECS = [
    LinearModel(kind="linear"),
    MlpModel(kind="mlp"),
    ResNetModel(kind="resnet", width=6),
    MlpModel(kind="mlp", hidden=(), dropout=0.0),
    MlpModel(kind="mlp", hidden=(5,), dropout=0.0, embedding_dim=3),
    MlpModel(kind="mlp", hidden=(5, 5), normalization="layer", residual=True, init="kaiming"),
    *[
        MlpModel(kind="mlp", hidden=(4,), activation=activation)
        for activation in ("gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu")
    ],
]
INPUTS = [
    ModelInputs(num_numeric=3, cardinalities=(), num_outputs=2),
    ModelInputs(num_numeric=0, cardinalities=(4, 2), num_outputs=1),
    ModelInputs(num_numeric=2, cardinalities=(1, 300), num_outputs=3),
]


def batch_for(inputs: ModelInputs, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    codes = [torch.randint(n, (rows,), generator=generator) for n in inputs.cardinalities]
    codes_BC = torch.stack(codes, 1) if codes else torch.zeros(rows, 0, dtype=torch.int64)
    return torch.randn(rows, inputs.num_numeric, generator=generator), codes_BC


@pytest.mark.parametrize("inputs", INPUTS, ids=lambda inputs: f"F{inputs.num_numeric}")
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: getattr(spec, "activation", spec.kind))
@pytest.mark.parametrize("rows", [1, 7])
def test_a_row_of_outputs_for_each_row_and_a_gradient_for_each_parameter(spec, inputs, rows):
    model = build_model(spec, inputs, seed=1)
    outputs_BK = model(*batch_for(inputs, rows))
    assert outputs_BK.shape == (rows, inputs.num_outputs)
    assert outputs_BK.dtype == torch.float32
    outputs_BK.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("inputs", INPUTS, ids=lambda inputs: f"F{inputs.num_numeric}")
@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.kind)
def test_a_row_gives_the_same_outputs_whatever_stands_beside_it(spec, inputs):
    model = build_model(spec, inputs, seed=1).eval()
    numeric_BF, codes_BC = batch_for(inputs, 6)
    alone = model(numeric_BF[3:4], codes_BC[3:4])
    torch.testing.assert_close(model(numeric_BF, codes_BC)[3:4], alone)


def test_a_linear_model_without_categories_is_a_linear_layer():
    model = build_model(SPECS[0], INPUTS[0], seed=1)
    assert [(entry["name"], entry["shape"]) for entry in describe_model(model)] == [
        ("linear.weight", [2, 3]),
        ("linear.bias", [2]),
    ]


def test_a_linear_model_adds_one_weight_per_category_and_output():
    inputs = ModelInputs(num_numeric=2, cardinalities=(3, 2), num_outputs=2)
    model = build_model(SPECS[0], inputs, seed=1)
    weights = torch.arange(10.0).reshape(5, 2)
    with torch.no_grad():
        model.categories.weight.copy_(weights)
    numeric_BF = torch.randn(1, 2)
    found = model(numeric_BF, torch.tensor([[2, 1]]))
    # Column 0 has rows 0 to 2 of the table, column 1 rows 3 and 4.
    torch.testing.assert_close(found, model.linear(numeric_BF) + weights[2] + weights[4])


@pytest.mark.parametrize("inputs", INPUTS[1:], ids=lambda inputs: f"F{inputs.num_numeric}")
def test_a_fresh_linear_model_says_the_same_of_every_category(inputs):
    model = build_model(SPECS[0], inputs, seed=1)
    numeric_BF, codes_BC = batch_for(inputs, 5)
    assert torch.equal(model(numeric_BF, codes_BC), model(numeric_BF, torch.zeros_like(codes_BC)))


def test_the_unknown_category_is_zero_in_every_column_and_the_others_are_not():
    inputs = ModelInputs(num_numeric=0, cardinalities=(3, 4), num_outputs=1)
    model = build_model(SPECS[1], inputs, seed=1)
    is_zero = (model.embedding.weight == 0).all(dim=1)
    assert is_zero.tolist() == [True, False, False, True, False, False, False]


def test_dropout_modules_exist_only_where_units_are_dropped():
    def dropouts(share: float) -> int:
        spec = MlpModel(kind="mlp", hidden=(4, 4), dropout=share)
        model = build_model(spec, INPUTS[0], seed=1)
        return sum(isinstance(module, nn.Dropout) for module in model.modules())

    assert (dropouts(0.0), dropouts(0.5)) == (0, 2)


@pytest.mark.parametrize(("largest", "width"), [(2, 3), (4, 4), (100, 22), (10_000, 50)])
def test_the_embedding_grows_with_the_largest_column_up_to_a_cap(largest, width):
    assert auto_embedding_dim([2, largest]) == width


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.kind)
def test_the_state_holds_parameters_only(spec):
    model = build_model(spec, INPUTS[2], seed=1)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_description_counts_every_parameter():
    model = build_model(SPECS[1], INPUTS[2], seed=1)
    entries = describe_model(model)
    assert sum(entry["count"] for entry in entries) == sum(p.numel() for p in model.parameters())
    assert entries[0] == {
        "name": "embedding.weight",
        "shape": [301, 40],
        "dtype": "float32",
        "count": 12040,
        "device": "cpu",
        "trained": True,
    }
