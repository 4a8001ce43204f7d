"""Products in 16 bits: close to float32, of the weights of this step, and never underflowing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from batchtrain.errors import ArtifactError, TrainingError
from batchtrain.models.arithmetic import plain_arithmetic
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import make_loss
from batchtrain.spec.run import CANONICAL_GROUPS, Determinism
from batchtrain.spec.training import Precision
from batchtrain.training import precision as precision_module
from batchtrain.training.gradients import GradientRules, make_gradients
from batchtrain.training.precision import LossScaler, precision_in_force
from batchtrain.training.ranks import OneRank

CPU = torch.device("cpu")
LOSS = make_loss("mse")
WAYS: list[Determinism] = ["order", "canonical"]
ROWS = 64


@pytest.fixture(autouse=True)
def in_a_training() -> Iterator[None]:
    """The settings that every training is in."""
    with plain_arithmetic(1), torch.random.fork_rng(devices=[]):
        yield


class Net(nn.Module):
    """Says in which type it computed."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.default_generator.manual_seed(3)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 1)
        self.factor = factor
        self.types: list[torch.dtype] = []

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        outputs_BK = self.last(self.first(numeric_BF).tanh())
        self.types.append(outputs_BK.dtype)
        return outputs_BK * self.factor


def batch_of(num_rows: int = ROWS, target: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(num_rows)
    return Batch(
        torch.randn(num_rows, 8, generator=generator),
        torch.empty(num_rows, 0, dtype=torch.int64),
        torch.randn(num_rows, generator=generator) + target,
    )


def gradient_of(
    model: nn.Module,
    precision: Precision,
    determinism: Determinism = "order",
    *,
    scaler: LossScaler | None = None,
    batch: Batch | None = None,
) -> tuple[Tensor, float]:
    rules = GradientRules(micro_rows=20, precision=precision, scaler=scaler)
    gradients = make_gradients(determinism, OneRank(), CPU, seed=7, rules=rules)
    batch = batch or batch_of()
    sizes = [ROWS // CANONICAL_GROUPS] * CANONICAL_GROUPS
    columns = (batch.numeric_BF, batch.codes_BC, batch.target_B)
    parts = [batch]
    if determinism == "canonical":
        split = zip(*(column.split(sizes) for column in columns), strict=True)
        parts = [Batch(*tensors) for tensors in split]
    model.zero_grad()
    losses = gradients.gradient(model, LOSS, parts, ROWS, 0)
    assert losses.dtype == torch.float32
    flat_P = torch.cat(
        [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    )
    assert flat_P.dtype == torch.float32
    return flat_P, float(losses.sum()) / gradients.loss_divisor(ROWS)


@pytest.mark.parametrize("determinism", WAYS)
@pytest.mark.parametrize(("precision", "apart"), [("bfloat16", 3e-2), ("float16", 4e-3)])
def test_the_gradient_is_that_of_float32_to_the_digits_of_the_type(
    determinism: Determinism, precision: Precision, apart: float
) -> None:
    model = Net()
    expected_P, expected = gradient_of(model, "float32", determinism)
    assert set(model.types) == {torch.float32}
    model.types.clear()
    scaler = LossScaler() if precision == "float16" else None
    found_P, found = gradient_of(model, precision, determinism, scaler=scaler)
    assert set(model.types) == {getattr(torch, precision)}
    assert 0 < float((found_P - expected_P).abs().max()) <= apart * float(expected_P.abs().max())
    assert found == pytest.approx(expected, rel=apart)


def test_each_step_computes_with_its_own_weights() -> None:
    # Inside of another autocast, which every training is in, copies of weights would be kept.
    model = Net()
    gradient_of(model, "bfloat16")
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(-0.5)
    found_P, found = gradient_of(model, "bfloat16")
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    expected_P, expected = gradient_of(fresh, "bfloat16")
    assert torch.equal(found_P, expected_P)
    assert found == expected


def test_the_loss_is_computed_in_float32() -> None:
    # 40,000 squared is too much for float16, and a target of 40,001 is none of its numbers.
    model = Net()
    _gradient_P, found = gradient_of(model, "float16", batch=batch_of(target=40_001.0))
    assert found == pytest.approx(40_001.0**2, rel=1e-3)


@pytest.mark.parametrize("determinism", WAYS)
def test_a_gradient_that_float16_cannot_hold_is_there_where_the_loss_is_scaled(
    determinism: Determinism,
) -> None:
    model = Net(factor=1e-7)
    expected_P, _loss = gradient_of(model, "float32", determinism)
    lost_P, _loss = gradient_of(model, "float16", determinism)
    found_P, _loss = gradient_of(model, "float16", determinism, scaler=LossScaler())
    size = float(expected_P.abs().max())
    assert 0 < size < 1e-6
    assert float((lost_P - expected_P).abs().max()) > 0.1 * size
    assert float((found_P - expected_P).abs().max()) < 0.05 * size


@pytest.mark.parametrize("determinism", WAYS)
def test_a_scale_that_is_too_large_shows_in_the_gradient_alone(determinism: Determinism) -> None:
    scaler = LossScaler()
    scaler.load_state({"scale": 2.0**40, "good_steps": 0})
    gradient_P, loss = gradient_of(Net(), "float16", determinism, scaler=scaler)
    assert not bool(gradient_P.isfinite().all())
    assert loss == pytest.approx(gradient_of(Net(), "float32", determinism)[1], rel=1e-2)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_the_scale_moves_as_that_of_torch(good: list[bool], growth_steps: int) -> None:
    scaler = LossScaler()
    scale, tracker = torch.full((), 2.0**16), torch.zeros((), dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_module, "GROWTH_STEPS", growth_steps)
        for is_finite in good:
            torch._amp_update_scale_(
                scale, tracker, torch.tensor(0.0 if is_finite else 1.0), 2.0, 0.5, growth_steps
            )
            scaler.update(is_finite)
            assert scaler.scale == float(scale)
            # A resume in between changes nothing.
            resumed = LossScaler()
            resumed.load_state(json.loads(json.dumps(scaler.state())))
            scaler = resumed


def test_the_scale_never_becomes_infinite() -> None:
    scaler = LossScaler()
    for _ in range(130 * precision_module.GROWTH_STEPS):
        scaler.update(True)
    assert scaler.scale == 2.0**127


@pytest.mark.parametrize("state", [{}, {"scale": "much", "good_steps": 1}, None])
def test_another_state_is_refused(state: object) -> None:
    with pytest.raises(ArtifactError, match="expected the scale of the loss"):
        LossScaler().load_state(state)  # type: ignore[arg-type]


def test_auto_is_float32_everywhere() -> None:
    assert precision_in_force("auto", CPU) == "float32"
    assert precision_in_force("bfloat16", CPU) == "bfloat16"
    assert precision_in_force("float16", CPU) == "float16"


def test_a_device_that_cannot_is_refused_with_a_sentence() -> None:
    with pytest.raises(TrainingError, match=r"training\.precision: expected a device.*found meta"):
        precision_in_force("bfloat16", torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_gpu_computes_in_16_bits_as_well(precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    batch = Batch(
        *(each.to(device) for each in (batch_of().numeric_BF, batch_of().codes_BC)),
        batch_of().target_B.to(device),
    )
    found = []
    for name in ("float32", precision):
        model = Net().to(device)
        scaler = LossScaler() if name == "float16" else None
        rules = GradientRules(precision=name, scaler=scaler)
        gradients = make_gradients("order", OneRank(), device, seed=7, rules=rules)
        gradients.gradient(model, LOSS, [batch], ROWS, 0)
        found.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
        assert model.types[-1] == getattr(torch, name)
    expected_P, found_P = found
    torch.testing.assert_close(
        found_P, expected_P, rtol=0, atol=3e-2 * float(expected_P.abs().max())
    )
