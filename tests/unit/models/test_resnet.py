"""The tabular ResNet is the network of its paper, with LayerNorm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import ResNetModel

INPUTS = ModelInputs(num_numeric=3, cardinalities=(4, 2), num_outputs=2)


def resnet(**keys: object) -> nn.Module:
    spec = ResNetModel(kind="resnet", **{"activation": "relu", **keys})
    model = build_model(spec, INPUTS, seed=1)
    with torch.no_grad():
        # A fresh LayerNorm has no weights that show.
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


def rows(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    numeric_BF = torch.randn(count, 3, generator=generator)
    codes = [torch.randint(width, (count,), generator=generator) for width in (4, 2)]
    return numeric_BF, torch.stack(codes, 1)


def test_it_is_the_formula_of_the_paper():
    model = resnet(width=5, blocks=3, hidden_factor=1.5, embedding_dim=2).eval()
    weights = iter(model.parameters())
    numeric_BF, codes_BC = rows()
    table = next(weights)

    def linear(values: Tensor) -> Tensor:
        return values @ next(weights).T + next(weights)

    def norm(values: Tensor) -> Tensor:
        return F.layer_norm(values, (5,), next(weights), next(weights))

    hidden = linear(torch.cat((numeric_BF, table[codes_BC[:, 0]], table[4 + codes_BC[:, 1]]), 1))
    for _ in range(3):
        hidden = hidden + linear(linear(norm(hidden)).relu())
    expected = linear(norm(hidden).relu())
    torch.testing.assert_close(model(numeric_BF, codes_BC), expected)
    assert next(weights, None) is None


@pytest.mark.parametrize(
    ("width", "factor", "hidden"), [(5, 1.5, 7), (4, 2.0, 8), (3, 0.1, 1), (10, 0.55, 5)]
)
def test_the_hidden_factor_widens_a_block(width: int, factor: float, hidden: int):
    model = resnet(width=width, hidden_factor=factor, blocks=1)
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [width, hidden, width, 2]


def test_the_number_of_blocks_is_what_was_asked_for():
    counts = [sum(isinstance(m, nn.LayerNorm) for m in resnet(blocks=n).modules()) for n in (1, 4)]
    assert counts == [2, 5]


@pytest.mark.parametrize(
    ("hidden", "residual", "shares"),
    [(0.0, 0.0, []), (0.2, 0.0, [0.2] * 2), (0.0, 0.4, [0.4] * 2), (0.2, 0.4, [0.2, 0.4] * 2)],
)
def test_units_are_dropped_inside_a_block_and_of_what_it_adds(
    hidden: float, residual: float, shares: list[float]
):
    model = resnet(hidden_dropout=hidden, residual_dropout=residual)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == shares


def test_the_residual_dropout_of_almost_all_leaves_the_plain_path():
    model = resnet(width=6, residual_dropout=0.999999, hidden_dropout=0.0)
    numeric_BF, codes_BC = rows()
    hidden = torch.cat((numeric_BF, model.embedding(codes_BC)), 1)
    expected = model.last(model.first(hidden))
    torch.testing.assert_close(model(numeric_BF, codes_BC), expected)


def test_a_row_does_not_see_the_others_in_training_mode():
    model = resnet(hidden_dropout=0.0).train()
    numeric_BF, codes_BC = rows()
    torch.testing.assert_close(
        model(numeric_BF, codes_BC)[2:3], model(numeric_BF[2:3], codes_BC[2:3])
    )
