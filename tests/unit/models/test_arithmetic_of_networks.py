"""Every network runs in 16 bits and in one compiled graph, and gives then about the same."""

from __future__ import annotations

import pytest
import torch

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import CnnModel, LinearModel, MlpModel, ResNetModel

INPUTS = ModelInputs(num_numeric=16, cardinalities=(4, 3), num_outputs=3)
SPECS = [
    LinearModel(kind="linear"),
    MlpModel(kind="mlp", hidden=(32, 16)),
    MlpModel(kind="mlp", hidden=(16, 16), normalization="layer", residual=True, activation="silu"),
    ResNetModel(kind="resnet", width=16),
    CnnModel(kind="cnn"),
    CnnModel(kind="cnn", pooling="mean", activation="prelu"),
]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(n, (24,), generator=generator) for n in INPUTS.cardinalities]
    return torch.randn(24, 16, generator=generator), torch.stack(codes, 1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_network_trains_under_bfloat16_autocast(spec):
    model = build_model(spec, INPUTS, seed=1).eval()
    expected = model(*rows())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(*rows())
    # A weight has 8 bits there: 0.4 % for each product.
    torch.testing.assert_close(outputs.float(), expected, atol=0.05, rtol=0.05)
    outputs.float().square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_network_is_one_graph_whatever_the_number_of_rows(spec):
    """`torch.export` fails where a compiled step would fall back to Python."""
    model = build_model(spec, INPUTS, seed=1).eval()
    numeric_BF, codes_BC = rows()
    batch = {0: torch.export.Dim("B", min=2)}
    program = torch.export.export(model, (numeric_BF, codes_BC), dynamic_shapes=(batch, batch))
    for count in (24, 7):
        part = numeric_BF[:count], codes_BC[:count]
        torch.testing.assert_close(program.module()(*part), model(*part))
