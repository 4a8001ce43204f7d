"""A batch that is differentiated piece by piece has the gradient of the whole batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from batchtrain.errors import RankMemoryError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, make_loss
from batchtrain.spec.run import CANONICAL_GROUPS, Determinism
from batchtrain.training.gradients import GradientRules, make_gradients
from batchtrain.training.micro_batches import cut_sizes, halved, memory_told, micro_batches
from batchtrain.training.ranks import OneRank

CPU = torch.device("cpu")
FEATURES, CLASSES = 4, 3
CLASS_WEIGHTS = (0.5, 2.0, 0.0)


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """A test must not change what the next one draws."""
    with torch.random.fork_rng(devices=[]):
        yield


class SmallNet(nn.Module):
    """In float64, so that a difference is one of arithmetic and not of rounding."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.default_generator.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES)
        ).double()

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.layers(numeric_BF.double())


def batch_of(num_rows: int, weights: list[float] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(num_rows)
    return Batch(
        torch.randn(num_rows, FEATURES, generator=generator),
        torch.empty(num_rows, 0, dtype=torch.int64),
        torch.randint(CLASSES, (num_rows,), generator=generator),
        None if weights is None else torch.tensor(weights),
    )


def parts_of(batch: Batch, num_parts: int) -> list[Batch]:
    """Neighbouring parts; one without a row has one of weight 0."""
    rows = len(batch.target_B)
    found = []
    for start, end in pairwise([part * rows // num_parts for part in range(num_parts + 1)]):
        part = slice(start, end) if end > start else slice(0, 1)
        weight_B = None if batch.weight_B is None else batch.weight_B[part]
        if end == start:
            weight_B = torch.zeros(1)
        columns = (batch.numeric_BF[part], batch.codes_BC[part], batch.target_B[part])
        found.append(Batch(*columns, weight_B))
    return found


def found_by(
    batch: Batch,
    loss: Loss,
    determinism: Determinism,
    micro_rows: int | None,
    *,
    dropout: float = 0.0,
    step: int = 0,
) -> tuple[Tensor, float]:
    """The gradient that one rank finds, and the mean loss."""
    rows, model = len(batch.target_B), SmallNet(dropout)
    gradients = make_gradients(
        determinism, OneRank(), CPU, seed=7, rules=GradientRules(micro_rows=micro_rows)
    )
    parts = [batch] if determinism == "order" else parts_of(batch, CANONICAL_GROUPS)
    losses = gradients.gradient(model, loss, parts, rows, step)
    flat_P = torch.cat(
        [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    )
    return flat_P, float(losses.sum()) / gradients.loss_divisor(rows)


def by_formula(batch: Batch, loss: Loss) -> tuple[Tensor, float]:
    """The gradient of the weighted mean over all rows, written out."""
    model = SmallNet()
    outputs_BK = model(batch.numeric_BF, batch.codes_BC)
    weight_B = torch.ones(len(batch.target_B), dtype=torch.float64)
    if batch.weight_B is not None:
        weight_B = weight_B * batch.weight_B
    if loss.class_weights is not None:
        weight_B = weight_B * torch.tensor(loss.class_weights, dtype=torch.float64)[batch.target_B]
    losses_B = -outputs_BK.log_softmax(dim=1)[range(len(weight_B)), batch.target_B]
    mean = (losses_B * weight_B).sum() / weight_B.sum()
    mean.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters()]), float(mean.detach())


WEIGHT = st.sampled_from([0.0, 0.25, 1.0, 3.5])


@given(
    determinism=st.sampled_from(["order", "canonical"]),
    num_rows=st.integers(1, 40),
    micro_rows=st.none() | st.integers(1, 45),
    has_classes=st.booleans(),
    data=st.data(),
)
def test_d05_the_pieces_add_up_to_the_weighted_gradient_of_the_whole_batch(
    determinism: Determinism,
    num_rows: int,
    micro_rows: int | None,
    has_classes: bool,
    data: st.DataObject,
) -> None:
    drawn = st.lists(WEIGHT, min_size=num_rows, max_size=num_rows)
    weights = data.draw(st.none() | drawn)
    loss = make_loss(
        "cross_entropy",
        class_weights=CLASS_WEIGHTS if has_classes else None,
        row_weights=weights is not None,
    )
    batch = batch_of(num_rows, weights)
    gradient_P, mean = found_by(batch, loss, determinism, micro_rows)
    if not float(loss.weight_sum(batch)):
        assert not gradient_P.any()
        assert mean == 0.0
        return
    expected_P, expected = by_formula(batch, loss)
    assert float((gradient_P - expected_P).abs().max()) <= 1e-12
    assert mean == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("determinism", ["order", "canonical"])
@pytest.mark.parametrize("micro_rows", [None, 2])
def test_a_batch_that_weighs_nothing_has_the_loss_0_and_moves_nothing(
    determinism: Determinism, micro_rows: int | None
) -> None:
    loss = make_loss("cross_entropy", row_weights=True)
    gradient_P, mean = found_by(batch_of(6, [0.0] * 6), loss, determinism, micro_rows)
    assert gradient_P.numel() > 0
    assert not gradient_P.any()
    assert mean == 0.0


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_dropout_of_the_pieces_is_drawn_anew_for_each_and_again_for_the_same_step(
    determinism: Determinism,
) -> None:
    loss, batch = make_loss("cross_entropy"), batch_of(40)
    alike = replace(batch, numeric_BF=batch.numeric_BF[:1].expand(40, -1).contiguous())
    first, again, other = (
        found_by(alike, loss, determinism, 2, dropout=0.5, step=step)[0] for step in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Pieces with one mask would be as good as the rows of one piece.
    whole = found_by(alike, loss, determinism, None, dropout=0.5, step=4)[0]
    assert not torch.equal(first, whole)


@given(num_rows=st.integers(1, 200), most=st.integers(1, 250))
def test_p3_every_row_is_in_one_piece_and_the_pieces_are_few_and_near_equal(
    num_rows: int, most: int
) -> None:
    batch = batch_of(num_rows, [1.0] * num_rows)
    pieces = micro_batches(batch, most)
    sizes = [len(piece.target_B) for piece in pieces]
    assert sizes == cut_sizes(num_rows, most)
    assert len(sizes) == -(-num_rows // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([piece.numeric_BF for piece in pieces]), batch.numeric_BF)
    assert torch.equal(torch.cat([piece.target_B for piece in pieces]), batch.target_B)
    # Nothing is copied.
    assert pieces[0].numeric_BF.data_ptr() == batch.numeric_BF.data_ptr()


def test_half_as_many_rows_each_time_until_there_is_one() -> None:
    sizes = [halved(None, 100, 3)]
    while sizes[-1] is not None:
        sizes.append(halved(sizes[-1], 100, 3))
    assert sizes == [17, 9, 5, 3, 2, 1, None]
    # What was never reached is not what did not fit.
    assert halved(1000, 100, 1) == 50


def errors_of_memory() -> list[RuntimeError]:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return [caught.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]


@pytest.mark.parametrize("place", [0, 1])
def test_memory_that_runs_out_is_told_as_our_own_error(place: int) -> None:
    error = errors_of_memory()[place]
    with (
        pytest.raises(RankMemoryError, match=r"out of memory|can't allocate memory") as caught,
        memory_told(),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), MemoryError()])
def test_another_error_is_left_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_told():
        raise error
    assert caught.value is error


class NowAndThen(SmallNet):
    """Uses its second head for every other piece alone."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(FEATURES, CLASSES).double()
        self.turns = itertools.cycle([True, False])

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        outputs_BK = super().forward(numeric_BF, codes_BC)
        return outputs_BK + self.other(numeric_BF.double()) if next(self.turns) else outputs_BK


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_a_parameter_that_one_piece_uses_has_its_gradient(determinism: Determinism) -> None:
    model, batch = NowAndThen(), batch_of(16)
    gradients = make_gradients(
        determinism, OneRank(), CPU, seed=7, rules=GradientRules(micro_rows=1)
    )
    parts = [batch] if determinism == "order" else parts_of(batch, CANONICAL_GROUPS)
    gradients.gradient(model, make_loss("cross_entropy"), parts, 16, 0)
    assert model.other.weight.grad is not None
    assert bool(model.other.weight.grad.any())
