"""The networks of a pack, and their gradients, against `torch.func`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import ModelSpec
from batchtrain.training.packed.layers import Given
from batchtrain.training.packed.layout import Layout
from batchtrain.training.packed.network import PackedNetwork

TRIALS, ROWS = 3, 5


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "mlp", "hidden": [6, 6], "dropout": 0.0, "activation": "relu", "residual": True},
        {"kind": "mlp", "hidden": [4], "dropout": 0.0, "activation": "mish"},
        {"kind": "resnet", "width": 4, "hidden_dropout": 0.0, "residual_dropout": 0.0},
        {"kind": "linear"},
    ],
)
@pytest.mark.parametrize("widths", [(3, ()), (2, (3, 4)), (0, (200,))])
@pytest.mark.parametrize("is_shared", [True, False])
def test_outputs_and_gradients(
    model: dict[str, Any], widths: tuple[int, tuple[int, ...]], is_shared: bool
) -> None:
    inputs = ModelInputs(*widths, num_outputs=2)
    spec: Any = TypeAdapter(ModelSpec).validate_python(model, strict=False)
    models = [build_model(spec, inputs, seed=seed) for seed in range(TRIALS)]
    weights, buffers = stack_module_state(models)
    generator = torch.Generator().manual_seed(0)
    shape = (1 if is_shared else TRIALS, ROWS)
    numeric = torch.randn(*shape, widths[0], generator=generator).expand(TRIALS, -1, -1)
    codes = torch.stack(
        [torch.randint(0, each, shape, generator=generator) for each in widths[1]]
        or [torch.empty(0, dtype=torch.int64)],
        dim=-1,
    )
    codes = codes.reshape(*shape, len(widths[1])).expand(TRIALS, -1, -1)
    wanted = torch.randn(TRIALS, ROWS, 2, generator=generator)

    def outputs_of(params: Any, fixed: Any, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        found: Tensor = functional_call(models[0], (params, fixed), (numeric_BF, codes_BC))
        return found

    def product(params: Any, fixed: Any, numbers: Tensor, words: Tensor, of: Tensor) -> Tensor:
        return (outputs_of(params, fixed, numbers, words) * of).sum()

    expected = vmap(outputs_of)(weights, buffers, numeric, codes)
    grads = vmap(grad(product))(weights, buffers, numeric, codes, wanted)

    layout = Layout.of(models[0])
    rows = torch.stack([layout.row(list(each.parameters())) for each in models])
    of_rows = torch.full_like(rows, 7.0)
    network = PackedNetwork(models[0], inputs.cardinalities)
    given = Given(layout.views(rows), (), layout.views(of_rows))
    outputs = network.forward(numeric, codes, given)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(network.forward(numeric, codes, Given(given.weights)), expected)
    network.forward(numeric, codes, given)
    network.backward(wanted, codes, given)
    for number in range(TRIALS):
        found = dict(zip(grads, layout.tensors(of_rows[number]), strict=True))
        for name, value in grads.items():
            torch.testing.assert_close(found[name], value[number])
