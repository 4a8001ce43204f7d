"""The multi-layer perceptron: what each key of its section changes, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import SpecError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.resnet import Residual
from batchtrain.spec.model import MlpModel

NUMERIC = ModelInputs(num_numeric=6, cardinalities=(), num_outputs=2)
MIXED = ModelInputs(num_numeric=3, cardinalities=(4, 2), num_outputs=2)


def mlp(inputs: ModelInputs = NUMERIC, seed: int = 1, **keys: object) -> nn.Module:
    """A network whose keys are the plainest ones, whatever the defaults are tuned to."""
    plain = {"hidden": (8, 4), "activation": "relu", "dropout": 0.1, "residual": False}
    return build_model(MlpModel(kind="mlp", **{**plain, **keys}), inputs, seed=seed)


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def rows(inputs: ModelInputs, count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    codes = [torch.randint(n, (count,), generator=generator) for n in inputs.cardinalities]
    codes_BC = torch.stack(codes, 1) if codes else torch.zeros(count, 0, dtype=torch.int64)
    return torch.randn(count, inputs.num_numeric, generator=generator), codes_BC


def test_a_plain_network_has_the_weights_that_torch_draws_in_order_from_the_seed():
    """A bundle, a checkpoint or a resume of an earlier version goes on with the same bits."""
    state = mlp(MIXED, seed=9, hidden=(8, 4), embedding_dim=5).state_dict()
    torch.manual_seed(9)
    embedding = nn.Embedding(6, 5)
    drawn = [nn.Linear(3 + 2 * 5, 8), nn.Linear(8, 4), nn.Linear(4, 2)]
    assert list(state) == [
        "embedding.weight",
        *(f"layers.{place}.{part}" for place in (0, 3, 6) for part in ("weight", "bias")),
    ]
    for place, layer in zip((0, 3, 6), drawn, strict=True):
        assert torch.equal(state[f"layers.{place}.weight"], layer.weight)
        assert torch.equal(state[f"layers.{place}.bias"], layer.bias)
    # The rows of code 0 of both columns are zero.
    assert torch.equal(state["embedding.weight"][[1, 2, 3, 5]], embedding.weight[[1, 2, 3, 5]])


def test_a_plain_network_gives_the_bits_of_a_plain_sequence_of_layers():
    model = mlp(MIXED, hidden=(8, 4), dropout=0.0)
    numeric_BF, codes_BC = rows(MIXED)
    state = model.state_dict()
    table = state["embedding.weight"]
    hidden = torch.cat((numeric_BF, table[codes_BC[:, 0]], table[4 + codes_BC[:, 1]]), 1)
    for place in (0, 2, 4):
        hidden = torch.addmm(
            state[f"layers.{place}.bias"], hidden, state[f"layers.{place}.weight"].T
        )
        hidden = hidden.relu() if place < 4 else hidden
    assert torch.equal(model(numeric_BF, codes_BC), hidden)


def test_layer_normalization_stands_before_each_activation():
    model = mlp(hidden=(8, 7), normalization="layer", dropout=0.0, activation="tanh")
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Tanh):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(*rows(NUMERIC))
    assert [hidden.shape for hidden in seen] == [(5, 8), (5, 7)]
    for hidden in seen:
        mean, variance = hidden.mean(1), hidden.var(1, correction=0)
        torch.testing.assert_close(mean, torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones(5), atol=1e-2, rtol=0)


def test_a_residual_layer_adds_its_input_where_the_widths_agree_and_nowhere_else():
    model = mlp(hidden=(6, 6, 4), residual=True, dropout=0.0)
    numeric_BF, codes_BC = rows(NUMERIC)
    layers = linears(model)
    hidden = numeric_BF
    for layer in layers[:2]:
        hidden = hidden + layer(hidden).relu()
    expected = layers[3](layers[2](hidden).relu())
    torch.testing.assert_close(model(numeric_BF, codes_BC), expected)
    assert sum(isinstance(module, Residual) for module in model.modules()) == 2


@pytest.mark.parametrize("hidden", [(), (4,), (128, 64)])
def test_a_network_without_a_residual_layer_is_an_error_that_names_the_widths(hidden):
    with pytest.raises(SpecError, match="found the widths 6") as raised:
        mlp(hidden=hidden, residual=True)
    assert raised.value.problems[0].key == "model.residual"
    mlp(hidden=(6,), residual=True)


@pytest.mark.parametrize(
    ("init", "variance"),
    [("kaiming", 2 / 600), ("xavier", 2 / (600 + 400)), ("lecun", 1 / 600), ("auto", 1 / 1800)],
)
def test_the_weights_begin_with_the_variance_of_the_paper(init: str, variance: float):
    model = mlp(ModelInputs(600, (), 3), hidden=(400,), init=init)
    hidden, output = linears(model)
    assert hidden.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert hidden.weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.01)
    assert bool((hidden.bias == 0).all()) is (init != "auto")
    # The output layer begins as torch draws it.
    assert output.weight.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=0.02)
    assert output.bias.abs().max() > 0


def test_deep_relu_networks_keep_their_signal_with_kaiming_and_lose_it_with_auto():
    def spread(init: str) -> float:
        model = mlp(ModelInputs(64, (), 64), hidden=(64,) * 10, init=init, dropout=0.0)
        hidden = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
        for layer in list(model.layers)[:-1]:
            hidden = layer(hidden)
        return hidden.std().item()

    assert spread("kaiming") > 0.3
    assert spread("auto") < 0.1


def test_the_seed_alone_decides_drawn_weights():
    first, again, other = (
        torch.cat([p.flatten() for p in mlp(init="xavier", seed=seed).parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
