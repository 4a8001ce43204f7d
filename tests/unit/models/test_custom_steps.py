"""The steps of a user's network: dispatched, weighted and divided as ours, and checked at once."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchtrain.errors import SpecError, TrainingError
from batchtrain.models.build import build_model
from batchtrain.models.inputs import Batch, ModelInputs
from batchtrain.models.losses import Loss, make_loss
from batchtrain.models.protocol import own_methods
from batchtrain.models.steps import OwnSteps, batch_loss, measured, trainable
from batchtrain.spec.model import CustomModel, LinearModel

INPUTS = ModelInputs(num_numeric=3, cardinalities=(4,), num_outputs=2)
CROSS_ENTROPY = make_loss("cross_entropy")
LOSSES = {
    "plain": CROSS_ENTROPY,
    "class weights": make_loss("cross_entropy", class_weights=[0.5, 3.0]),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.linear(numeric_BF)


class WithLoss(Net):
    def loss(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs_BK, batch.target_B, reduction="none")


class WithStep(Net):
    def train_step(self, batch: Batch) -> Tensor:
        outputs_BK = self(batch.numeric_BF, batch.codes_BC)
        return F.cross_entropy(outputs_BK, batch.target_B, reduction="none")


class WithBoth(WithStep):
    def loss(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        return 7 + outputs_BK[:, 0]


class WithValidStep(Net):
    def valid_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return -self(batch.numeric_BF, batch.codes_BC), batch.target_B.float()


def batch_of(rows: int, *, weighted: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    return Batch(
        numeric_BF=torch.randn(rows, 3, generator=generator),
        codes_BC=torch.zeros(rows, 1, dtype=torch.int64),
        target_B=torch.randint(0, 2, (rows,), generator=generator),
        weight_B=torch.rand(rows, generator=generator) if weighted else None,
    )


def same_weights(network: type[Net]) -> Net:
    torch.manual_seed(0)
    return network()


def gradients(model: nn.Module, loss: Loss, batch: Batch, denominator: Any) -> list[Tensor]:
    value = batch_loss(model, loss, batch, denominator)
    return list(torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("denominator", [None, 5.5])
@pytest.mark.parametrize("network", [WithLoss, WithStep, WithBoth])
def test_a_step_that_is_the_built_in_one_gives_its_gradient_to_the_last_bit(
    network: type[Net], denominator: float | None, weighted: bool, loss: Loss
) -> None:
    batch = batch_of(13, weighted=weighted)
    expected = gradients(same_weights(Net), loss, batch, denominator)
    model = same_weights(network)

    for each in (model, trainable(model)):
        found = gradients(each, loss, batch, denominator)
        assert all(map(torch.equal, found, expected))
    value = batch_loss(trainable(model), loss, batch, denominator)
    assert value.item() == pytest.approx(
        batch_loss(same_weights(Net), loss, batch, denominator).item()
    )


def test_a_plain_network_is_its_own_trainable_and_loses_as_before() -> None:
    model, batch = same_weights(Net), batch_of(5)

    assert trainable(model) is model
    expected = CROSS_ENTROPY(model(batch.numeric_BF, batch.codes_BC), batch, 3.0)
    assert torch.equal(batch_loss(model, CROSS_ENTROPY, batch, 3.0), expected)
    assert own_methods(Net) == ()
    assert own_methods(WithBoth) == ("loss", "train_step")


def test_what_is_made_trainable_keeps_its_parameters_and_their_names() -> None:
    model = same_weights(WithStep)
    before = list(model.state_dict())

    wrapped = trainable(model)

    assert isinstance(wrapped, OwnSteps)
    assert list(model.state_dict()) == before == ["linear.weight", "linear.bias"]
    assert all(a is b for a, b in zip(wrapped.parameters(), model.parameters(), strict=True))


def test_measuring_takes_the_networks_own_outputs_and_losses() -> None:
    batch = batch_of(6, weighted=True)
    plain = same_weights(Net)
    outputs_BK, loss_sum = measured(plain, CROSS_ENTROPY, batch)
    assert batch.weight_B is not None

    for network in (WithLoss, WithStep):
        for model in (same_weights(network), trainable(same_weights(network))):
            found_BK, found = measured(model, CROSS_ENTROPY, batch)
            assert torch.equal(found_BK, outputs_BK)
            assert found.item() == pytest.approx(loss_sum.item())
    found_BK, found = measured(same_weights(WithValidStep), CROSS_ENTROPY, batch)
    assert torch.equal(found_BK, -outputs_BK)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(float((batch.target_B * batch.weight_B).sum()))
    assert not found_BK.requires_grad


def test_a_step_that_loses_a_row_is_found_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = same_weights(WithStep), batch_of(4)
    monkeypatch.setattr(WithStep, "train_step", lambda self, batch: self.linear.weight.sum(1)[:1])
    with pytest.raises(TrainingError, match=r"own step: for 4 rows expected .* shape \[1\]"):
        batch_loss(trainable(model), CROSS_ENTROPY, batch, None)
    monkeypatch.setattr(WithValidStep, "valid_step", lambda self, batch: (torch.zeros(4, 2), 1.0))
    with pytest.raises(TrainingError, match=r"own validation: for 4 rows .* found float"):
        measured(WithValidStep(), CROSS_ENTROPY, batch)


class OptimizedModule(nn.Module):
    """What torch.compile puts around a model, by its name and its one submodule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, *given: Tensor | None) -> Tensor:
        return self._orig_mod(*given)


def test_a_wrapper_gets_the_whole_step_or_it_is_an_error() -> None:
    model, batch = same_weights(WithStep), batch_of(4)
    wrapped = OptimizedModule(trainable(model))

    found = gradients(wrapped, CROSS_ENTROPY, batch, 2.0)
    expected = gradients(same_weights(Net), CROSS_ENTROPY, batch, 2.0)
    assert all(map(torch.equal, found, expected))
    assert measured(wrapped, CROSS_ENTROPY, batch)[0].shape == (4, 2)
    with pytest.raises(TrainingError, match="made trainable before it was wrapped"):
        batch_loss(OptimizedModule(model), CROSS_ENTROPY, batch, 2.0)
    plain = OptimizedModule(same_weights(Net))
    assert all(map(torch.equal, gradients(plain, CROSS_ENTROPY, batch, 2.0), expected))


# --- what is found when the model is built ------------------------------------------------------

GOOD = """
def __init__(self, inputs):
    super().__init__()
    self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)
    self.norm = nn.BatchNorm1d(inputs.num_numeric)
    self.register_buffer("seen", torch.zeros(()))

def forward(self, numeric_BF, codes_BC):
    return self.linear(self.norm(numeric_BF))

def losses(self, batch):
    return F.cross_entropy(self(batch.numeric_BF, batch.codes_BC), batch.target_B, reduction="none")
"""


@pytest.fixture
def build(tmp_path: Path):
    """Build a network with some more methods, and try its steps."""

    def build(methods: str, loss: Loss = CROSS_ENTROPY, inputs: ModelInputs = INPUTS) -> nn.Module:
        body = textwrap.indent(GOOD + textwrap.dedent(methods), "    ")
        code = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        (tmp_path / "steps_net.py").write_text(f"{code}class Net(nn.Module):\n{body}")
        sys.modules.pop("steps_net", None)
        spec = CustomModel(kind="custom", target="steps_net:Net")
        return build_model(
            spec, inputs, seed=1, allow_code=["steps_net"], search=tmp_path, loss=loss
        )

    yield build
    sys.modules.pop("steps_net", None)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            "def train_step(self, batch): return self.losses(batch).mean()",
            r"train_step\(batch\): for 3 rows expected .* shape \[3\], found .* shape \[\]",
        ),
        (
            "def loss(self, outputs_BK, batch): return outputs_BK",
            r"loss\(outputs_BK, batch\): for 3 rows .* found torch.float32 of shape \[3, 2\]",
        ),
        (
            # One loss for each output would pass for one of each of two rows.
            "def loss(self, outputs_BK, batch): return outputs_BK.sum(0)",
            r"for 3 rows .* found torch.float32 of shape \[2\]",
        ),
        (
            "def train_step(self, batch): return batch.target_B",
            r"train_step\(batch\): for 3 rows .* found torch.int64 of shape \[3\]",
        ),
        (
            "def train_step(self, batch): return {'loss': self.losses(batch)}",
            r"train_step\(batch\): .* found dict",
        ),
        (
            "def train_step(self, batch): return self.losses(batch).detach()",
            r"losses that depend on the parameters, found some without a gradient",
        ),
        (
            "def train_step(self, batch): return self.losses(batch.rows)",
            r"train_step\(batch\) to take a batch of zeros, found AttributeError",
        ),
        (
            "def train_step(self): return 1",
            r"train_step\(batch\) to take a batch of zeros, found TypeError",
        ),
        (
            "def valid_step(self, batch): return self.losses(batch)",
            r"valid_step\(batch\).* found ",
        ),
        (
            "def valid_step(self, batch): return self.losses(batch), self.losses(batch)",
            r"with outputs of shape \[3, 2\], found \[3\]",
        ),
        (
            "def valid_step(self, batch): return self(batch.numeric_BF, 0), self.losses(batch)[:2]",
            r"valid_step\(batch\): for 3 rows .* found torch.float32 of shape \[2\]",
        ),
    ],
)
def test_a_wrong_step_is_an_error_when_the_model_is_built(build, methods, message) -> None:
    with pytest.raises(TrainingError, match=message) as raised:
        build(methods)
    assert "model.target 'steps_net:Net': " in str(raised.value)


def test_an_attribute_that_has_the_name_of_a_step_is_refused(build) -> None:
    methods = """
    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.norm = nn.Identity()
        self.loss = nn.CrossEntropyLoss()
    """
    with pytest.raises(TrainingError, match=r"'loss' to be a method .* a CrossEntropyLoss"):
        build(methods)


def test_an_option_of_the_loss_that_an_own_loss_passes_by_is_refused(build) -> None:
    smooth = make_loss("cross_entropy", label_smoothing=0.1)
    with pytest.raises(SpecError, match="no effect: the model has a train_step of its own"):
        build("def train_step(self, batch): return self.losses(batch)", smooth)
    build(
        "def valid_step(self, batch): return self.forward(batch.numeric_BF, None), "
        "self.losses(batch)",
        smooth,
    )


def test_trying_the_steps_leaves_no_trace(build) -> None:
    step = """
    def train_step(self, batch):
        with torch.no_grad():
            self.linear.weight.add_(1.0)
            self.seen += 1
        self.norm.running_mean = torch.ones(3)
        return self.losses(batch) * torch.rand(1)
    """
    before = torch.get_rng_state()
    tried, plain = build(step), build("")

    assert torch.equal(torch.get_rng_state(), before)
    assert tried.training
    for (name, value), other in zip(
        tried.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert all(parameter.grad is None for parameter in tried.parameters())


@pytest.mark.parametrize(
    ("name", "outputs", "dtype"),
    [("mse", 1, "float32"), ("bce", 1, "int64"), ("cross_entropy", 3, "int64")],
)
def test_steps_are_tried_with_targets_of_the_right_type(build, name, outputs, dtype) -> None:
    inputs = ModelInputs(num_numeric=3, cardinalities=(), num_outputs=outputs)
    step = f"""
    def train_step(self, batch):
        assert self.training and batch.codes_BC.shape == (2, 0)
        assert batch.target_B.dtype == torch.{dtype} and batch.target_B.shape == (2,)
        assert batch.weight_B is None
        return self(batch.numeric_BF, batch.codes_BC).sum(1)

    def valid_step(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        outputs = self(batch.numeric_BF, batch.codes_BC)
        return outputs, outputs.sum(1)
    """
    build(step, make_loss(name), inputs)


def test_our_own_models_have_no_steps_to_try() -> None:
    model = build_model(LinearModel(kind="linear"), INPUTS, seed=1, loss=CROSS_ENTROPY)
    assert own_methods(type(model)) == ()
