"""One gradient from the parts of a batch, also for models that do unusual things."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from batchtrain.models.inputs import Batch
from batchtrain.models.losses import make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.spec.optimizers import Adam, AdamW, OptimizerSpec, Sgd
from batchtrain.spec.run import CANONICAL_GROUPS, Determinism
from batchtrain.training.gradients import make_gradients
from batchtrain.training.ranks import OneRank, Ranks

CPU = torch.device("cpu")
FEATURES = 4
LOSS = make_loss("mse")

Built = Callable[[], nn.Module]


class NotYetError(Exception):
    """A rank has said its part, and cannot know the others' yet."""


@dataclass
class Turns:
    """One of several ranks that take turns: in a first round each says its part and gives up."""

    rank: int
    size: int
    said: dict[int, Tensor] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        raise AssertionError("a gradient takes one collective")

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        if len(self.said) < self.size:
            self.said[self.rank] = value.clone()
            raise NotYetError
        assert torch.equal(self.said[self.rank], value)
        assert len({(each.shape, each.dtype) for each in self.said.values()}) == 1
        return [self.said[rank] for rank in range(self.size)]


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """A test must not change what the next one draws."""
    with torch.random.fork_rng(devices=[]):
        yield


# ----------------------------------------------------------------------------------------------
# Batches and their parts


def batch_of(num_rows: int) -> Batch:
    generator = torch.Generator().manual_seed(num_rows)
    return Batch(
        torch.randn(num_rows, FEATURES, generator=generator),
        torch.empty(num_rows, 0, dtype=torch.int64),
        torch.randn(num_rows, generator=generator),
    )


def cut(batch: Batch, parts: int, cuts: list[int] | None = None) -> list[Batch]:
    """Neighbouring parts of a batch; one without a row has one that weighs nothing."""
    rows = len(batch.target_B)
    edges = sorted(cuts) if cuts is not None else [part * rows // parts for part in range(1, parts)]
    found = []
    for start, end in itertools.pairwise([0, *edges, rows]):
        part = slice(start, end) if end > start else slice(0, 1)
        weight_B = None if end > start else torch.zeros(1)
        found.append(
            Batch(batch.numeric_BF[part], batch.codes_BC[part], batch.target_B[part], weight_B)
        )
    return found


def gradient_on(
    model: nn.Module,
    ranks: Ranks,
    parts: list[Batch],
    determinism: Determinism,
    *,
    step: int = 0,
) -> list[float]:
    """Leave the gradient in the model; gives the losses of this rank's parts, over their divisor.

    Ranks that divide a batch with `order` have no DDP here: each keeps what it would average.
    """
    for parameter in model.parameters():
        parameter.grad = None
    gradients = make_gradients(determinism, ranks, CPU, seed=7)
    rows = sum(len(part.target_B) for part in parts if part.weight_B is None)
    mine = [parts[part] for part in gradients.parts]
    losses = gradients.gradient(model, LOSS, mine, rows, step)
    return [value / gradients.loss_divisor(rows) for value in losses.reshape(-1).tolist()]


def built(model: Built) -> nn.Module:
    """The same weights at each call."""
    torch.default_generator.manual_seed(3)
    return model()


def canonical(
    model: Built, parts: list[Batch], size: int, *, step: int = 0
) -> tuple[list[nn.Module], list[float]]:
    """The models of all ranks with their gradients, and the losses of all groups."""
    said: dict[int, Tensor] = {}
    ranks = [Turns(rank, size, said) for rank in range(size)]
    models = [built(model) for _rank in ranks]
    for network, rank in zip(models, ranks, strict=True):
        with pytest.raises(NotYetError):
            gradient_on(network, rank, parts, "canonical", step=step)
    losses = [
        loss
        for network, rank in zip(models, ranks, strict=True)
        for loss in gradient_on(network, rank, parts, "canonical", step=step)
    ]
    return models, losses


def flat(model: nn.Module) -> Tensor:
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


class SmallNet(nn.Module):
    """With dropout where asked for, and in float64 where a difference is to be arithmetic's."""

    def __init__(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)
        ).to(dtype)
        self.dtype = dtype

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.layers(numeric_BF.to(self.dtype))


NUM_ROWS = st.integers(1, 40)


@given(num_rows=NUM_ROWS, size=st.integers(1, 9), data=st.data())
def test_p2_d05_the_mean_over_ranks_is_the_gradient_of_the_batch_however_it_is_cut(
    num_rows: int, size: int, data: st.DataObject
) -> None:
    edges = st.lists(st.integers(0, num_rows), min_size=size - 1, max_size=size - 1)
    batch = batch_of(num_rows)
    parts = cut(batch, size, data.draw(edges))
    whole = built(SmallNet)
    (loss,) = gradient_on(whole, OneRank(), [batch], "order")
    ranks = [Turns(rank, size) for rank in range(size)]
    models = [built(SmallNet) for _rank in ranks]
    losses = [
        sum(gradient_on(model, rank, parts, "order"))
        for model, rank in zip(models, ranks, strict=True)
    ]
    mean = torch.stack([flat(model) for model in models]).mean(dim=0)
    assert float((mean - flat(whole)).abs().max()) <= 1e-10
    assert sum(losses) == pytest.approx(loss, abs=1e-10)


@given(num_rows=NUM_ROWS, data=st.data())
def test_p2_d05_the_groups_add_up_to_the_gradient_of_the_batch_however_it_is_cut(
    num_rows: int, data: st.DataObject
) -> None:
    number = CANONICAL_GROUPS - 1
    edges = st.lists(st.integers(0, num_rows), min_size=number, max_size=number)
    batch = batch_of(num_rows)
    whole = built(SmallNet)
    (loss,) = gradient_on(whole, OneRank(), [batch], "order")
    ((model,), losses) = canonical(SmallNet, cut(batch, CANONICAL_GROUPS, data.draw(edges)), 1)
    assert float((flat(model) - flat(whole)).abs().max()) <= 1e-10
    assert sum(losses) == pytest.approx(loss, abs=1e-10)


def small_net_with_dropout() -> nn.Module:
    return SmallNet(dropout=0.4, dtype=torch.float32)


@given(num_rows=NUM_ROWS, size=st.integers(2, CANONICAL_GROUPS), step=st.integers(0, 5))
def test_r09_the_number_of_ranks_does_not_show_in_the_last_bit(
    num_rows: int, size: int, step: int
) -> None:
    parts = cut(batch_of(num_rows), CANONICAL_GROUPS)
    (alone,), losses = canonical(small_net_with_dropout, parts, 1, step=step)
    models, found = canonical(small_net_with_dropout, parts, size, step=step)
    assert found == losses
    for model in models:
        assert flat(model).numpy().tobytes() == flat(alone).numpy().tobytes()


def test_every_group_and_step_draws_its_own_dropout() -> None:
    # All rows are alike, so that two groups differ in what is dropped alone.
    one = batch_of(1)
    parts = [one] * CANONICAL_GROUPS
    losses = {
        loss
        for step in range(20)
        for loss in canonical(lambda: SmallNet(dropout=0.5), parts, 1, step=step)[1]
    }
    # There are 2 ** 8 masks, so that some of the 160 are drawn twice.
    assert len(losses) > 90


# ----------------------------------------------------------------------------------------------
# Models that do unusual things


class Expert(nn.Module):
    """Each part of the batch is left to one of three experts; the last one never gets any."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(FEATURES, 1) for _ in range(3))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        expert = int(numeric_BF[0, 0] > 0)
        return self.experts[expert](numeric_BF) * self.frozen


@pytest.mark.parametrize("size", range(1, CANONICAL_GROUPS + 1))
def test_a_parameter_that_some_groups_use_gets_their_gradient_on_every_rank(size: int) -> None:
    parts = cut(batch_of(24), CANONICAL_GROUPS)
    chosen = [int(part.numeric_BF[0, 0] > 0) for part in parts]
    assert set(chosen) == {0, 1}
    expected = built(Expert)
    total = torch.zeros(())
    for part in parts:
        total = total + LOSS(expected(part.numeric_BF, part.codes_BC), part, 24)
    total.backward()
    models, _losses = canonical(Expert, parts, size)
    for model in models:
        for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
            if other.grad is None:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, other.grad)
        assert [name for name, each in model.named_parameters() if each.grad is None] == [
            "frozen",
            "experts.2.weight",
            "experts.2.bias",
        ]


class Unusual(nn.Module):
    """A transposed parameter, one of another type, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(5, FEATURES).t())
        self.precise = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.once = nn.Linear(5, 5)
        self.twice = self.once
        self.last = nn.Linear(5, 1)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        hidden = ((numeric_BF @ self.transposed) * self.precise).float().tanh()
        return self.last(self.twice(self.once(hidden)).tanh())


class Transposed(nn.Module):
    """All of one type, as the lean optimizers want it."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(5, FEATURES).t())
        self.last = nn.Linear(5, 1)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.last((numeric_BF @ self.transposed).tanh())


@pytest.mark.parametrize("model", [Unusual, Transposed])
@pytest.mark.parametrize("size", [1, 3])
def test_a_gradient_has_the_type_and_the_layout_of_its_parameter(model: Built, size: int) -> None:
    models, _losses = canonical(model, cut(batch_of(24), CANONICAL_GROUPS), size)
    for network in models:
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.dtype == parameter.dtype
            assert parameter.grad.stride() == parameter.stride()


OPTIMIZERS: list[OptimizerSpec] = [
    Adam(kind="adam", lr=0.05),
    AdamW(kind="adamw", lr=0.05),
    Sgd(kind="sgd", lr=0.05, momentum=0.9),
]


@pytest.mark.parametrize("model", [Unusual, Transposed, Expert, small_net_with_dropout])
@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.kind)
def test_canonical_steps_lead_where_those_of_the_whole_batch_do(
    model: Built, spec: OptimizerSpec
) -> None:
    batch = batch_of(24)
    parts = cut(batch, CANONICAL_GROUPS)
    weights = []
    for determinism in ("order", "canonical"):
        network = built(model).eval()  # no dropout
        optimizer = build_optimizer(spec, network.parameters(), fused=True)
        for step in range(4):
            if determinism == "canonical":
                gradient_on(network, OneRank(), parts, "canonical", step=step)
            elif model is Expert:
                network.zero_grad()
                for part in parts:
                    LOSS(network(part.numeric_BF, part.codes_BC), part, 24).backward()
            else:
                gradient_on(network, OneRank(), [batch], "order", step=step)
            optimizer.step()
        weights.append(torch.cat([each.detach().flatten() for each in network.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
