"""A model depends on spec, inputs and seed alone; a wrong custom class says what is wrong."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from batchtrain.errors import SpecError, TrainingError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import CustomModel, LinearModel, MlpModel

INPUTS = ModelInputs(num_numeric=2, cardinalities=(3,), num_outputs=2)
SPECS = [LinearModel(kind="linear"), MlpModel(kind="mlp")]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def build_custom(tmp_path: Path):
    """Write a class body into a module beside the spec, and build it."""

    def build(body: str, params: dict | None = None, seed: int = 1, before: str = ""):
        lines = ["import torch", "from torch import nn", before, "class Net(nn.Module):"]
        code = "\n".join([*lines, textwrap.indent(textwrap.dedent(body), "    ")])
        (tmp_path / "built_net.py").write_text(code)
        sys.modules.pop("built_net", None)
        spec = CustomModel(kind="custom", target="built_net:Net", params=params or {})
        return build_model(spec, INPUTS, seed=seed, allow_code=["built_net"], search=tmp_path)

    yield build
    sys.modules.pop("built_net", None)


GOOD = """
def __init__(self, inputs, width=4):
    super().__init__()
    self.first = nn.LazyLinear(width)
    self.last = nn.Linear(width, inputs.num_outputs)
def forward(self, numeric_BF, codes_BC):
    return self.last(self.first(numeric_BF))
"""


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_seed_alone_decides_the_weights(spec):
    torch.manual_seed(1)
    first = build_model(spec, INPUTS, seed=5)
    torch.manual_seed(2)
    again = build_model(spec, INPUTS, seed=5)
    other = build_model(spec, INPUTS, seed=6)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_global_generator_is_left_as_it_was(spec):
    before = torch.get_rng_state()
    build_model(spec, INPUTS, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_comes_in_training_mode(build_custom):
    assert build_model(SPECS[1], INPUTS, seed=5).training
    assert build_custom(GOOD).training


def test_a_custom_class_gets_the_inputs_and_its_params(build_custom):
    model = build_custom(GOOD, {"width": 7})
    assert model.last.in_features == 7
    # The probe has given the lazy layer its shape, from the same seed.
    assert model.first.weight.shape == (7, 2)


def test_the_first_import_of_a_custom_module_may_draw_numbers(build_custom, tmp_path):
    before = torch.get_rng_state()
    first = build_custom(GOOD, before="torch.randn(3)")
    spec = CustomModel(kind="custom", target="built_net:Net")
    again = build_model(spec, INPUTS, seed=1, allow_code=["built_net"], search=tmp_path)
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_custom_class_cannot_change_the_spec(tmp_path, build_custom):
    params = {"sizes": [1, 2]}
    body = GOOD.replace("width=4", "sizes").replace("super()", "width = sizes.pop(); super()")
    build_custom(body, params)
    assert params == {"sizes": [1, 2]}


def test_params_that_the_class_does_not_take_are_a_spec_error_with_its_signature(build_custom):
    with pytest.raises(SpecError, match=r"Net\(inputs, width=4\).*'depth'"):
        build_custom(GOOD, {"depth": 2})


def test_a_type_error_inside_the_class_is_not_blamed_on_the_params(build_custom):
    body = "def __init__(self, inputs):\n    super().__init__()\n    len(3)"
    with pytest.raises(
        TrainingError, match=r"TypeError: object of type 'int' has no len"
    ) as raised:
        build_custom(body)
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_failing_forward_is_shown_with_its_cause(build_custom):
    body = GOOD.replace("return self.last", "raise KeyError('oops')\n    return self.last")
    with pytest.raises(TrainingError, match="oops") as raised:
        build_custom(body)
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("outputs[:, :1]", r"\[2, 1\]"),
        ("outputs.sum(0)", r"\[2\]"),
        ("outputs.double()", "torch.float64"),
        ("(outputs, outputs)", "tuple"),
    ],
)
def test_outputs_of_another_form_are_refused(build_custom, result, found):
    body = GOOD.replace("return self.last", "outputs = self.last") + f"    return {result}\n"
    with pytest.raises(
        TrainingError, match=rf"expected a float32 tensor of shape \[2, 2\].*{found}"
    ):
        build_custom(body)


def test_a_model_without_parameters_is_refused(build_custom):
    body = """
    def __init__(self, inputs):
        super().__init__()
    def forward(self, numeric_BF, codes_BC):
        return numeric_BF
    """
    with pytest.raises(TrainingError, match="found none"):
        build_custom(body)
