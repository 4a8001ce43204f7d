"""Smoothed labels, weights of classes and of rows: against torch, and against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, make_loss
from batchtrain.training.rows import Columns

ROWS, CLASSES = 23, 4
CPU = torch.device("cpu")
WEIGHTS = (0.5, 3.0, 0.0, 1.25)


def drawn(classes: int, *, row_weights: bool = False) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(5)
    outputs_BK = torch.randn(ROWS, 1 if classes == 2 else classes, generator=generator) * 3
    target_B = torch.randint(classes, (ROWS,), generator=generator)
    weight_B = torch.rand(ROWS, generator=generator) * 4 if row_weights else None
    empty = torch.zeros(ROWS, 0)
    return outputs_BK, Batch(empty, empty.long(), target_B, weight_B)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_smoothed_cross_entropy_is_torchs(smoothing: float, reduction: str) -> None:
    outputs_BK, batch = drawn(CLASSES)
    loss = make_loss("cross_entropy", label_smoothing=smoothing)
    expected = F.cross_entropy(
        outputs_BK, batch.target_B, reduction=reduction, label_smoothing=smoothing
    )
    found = {
        "mean": lambda: loss(outputs_BK, batch),
        "none": lambda: loss.per_row(outputs_BK, batch),
        "sum": lambda: loss.sum(outputs_BK, batch).float(),
    }[reduction]()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_bce_is_smoothed_cross_entropy_of_two_classes(smoothing: float) -> None:
    logits_B1, batch = drawn(2)
    two = torch.cat([torch.zeros_like(logits_B1), logits_B1], dim=1)
    expected = F.cross_entropy(two, batch.target_B, reduction="none", label_smoothing=smoothing)
    loss = make_loss("bce", label_smoothing=smoothing)
    torch.testing.assert_close(loss.per_row(logits_B1, batch), expected)
    plain = make_loss("bce").per_row(logits_B1, batch)
    assert not torch.allclose(loss.per_row(logits_B1, batch), plain)


def test_smoothing_keeps_the_outputs_from_growing_without_end() -> None:
    """The least loss is where the label has 1 - s + s / K, not where it has everything."""
    outputs_BK = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(1, 0)
    batch = Batch(empty, empty.long(), torch.tensor([1]))
    loss = make_loss("cross_entropy", label_smoothing=0.3)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(loss(outputs_BK, batch), outputs_BK)
        outputs_BK = (outputs_BK - gradient).detach().requires_grad_()
    expected = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(outputs_BK.detach().softmax(1), expected, rtol=0, atol=1e-6)


def test_class_weights_give_torchs_weighted_mean_and_its_gradient() -> None:
    outputs_BK, batch = drawn(CLASSES)
    loss = make_loss("cross_entropy", class_weights=WEIGHTS)
    mine, torchs = (outputs_BK.clone().requires_grad_() for _ in range(2))
    value = loss(mine, batch)
    expected = F.cross_entropy(torchs, batch.target_B, weight=torch.tensor(WEIGHTS))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, torchs.grad)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize("row_weights", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_row_counts_its_own_weight_times_that_of_its_class(
    name: str, row_weights: bool, smoothing: float
) -> None:
    classes = 2 if name == "bce" else CLASSES
    outputs_BK, batch = drawn(classes, row_weights=row_weights)
    weights = WEIGHTS[:classes]
    loss = make_loss(name, class_weights=weights, label_smoothing=smoothing)
    rows_B = make_loss(name, label_smoothing=smoothing).per_row(outputs_BK, batch).double()
    weight_B = torch.tensor([weights[code] for code in batch.target_B.tolist()]).double()
    if batch.weight_B is not None:
        weight_B = weight_B * batch.weight_B
    assert loss.is_weighted
    torch.testing.assert_close(loss.weights(batch).double(), weight_B)
    torch.testing.assert_close(loss.sum(outputs_BK, batch), (rows_B * weight_B).sum())
    torch.testing.assert_close(loss.weight_sum(batch), weight_B.sum())
    mean = (rows_B * weight_B).sum() / weight_B.sum()
    torch.testing.assert_close(loss(outputs_BK, batch).double(), mean, rtol=1e-6, atol=0)
    half = (rows_B * weight_B).sum() / 7
    torch.testing.assert_close(loss(outputs_BK, batch, 7.0).double(), half, rtol=1e-6, atol=0)


@pytest.mark.parametrize("class_weights", [None, (0.0, 2.0, 0.0, 0.0)])
def test_a_batch_in_which_nothing_weighs_has_no_loss_and_no_gradient(
    class_weights: tuple[float, ...] | None,
) -> None:
    outputs_BK, batch = drawn(CLASSES)
    weight_B = torch.zeros(ROWS) if class_weights is None else None
    nothing = Batch(batch.numeric_BF, batch.codes_BC, torch.zeros_like(batch.target_B), weight_B)
    loss = make_loss("cross_entropy", class_weights=class_weights)
    outputs_BK.requires_grad_()
    value = loss(outputs_BK, nothing)
    value.backward()
    assert value == 0
    assert torch.equal(outputs_BK.grad, torch.zeros_like(outputs_BK))


def test_a_row_of_weight_zero_adds_nothing_whatever_its_class_weighs() -> None:
    columns = Columns(3, 0, torch.int64, has_weights=True)
    loss = make_loss("cross_entropy", class_weights=WEIGHTS)
    row = columns.weightless_row(CPU)
    assert loss(torch.randn(1, CLASSES), row, 1.0) == 0
    assert loss.weight_sum(row) == 0


@given(st.lists(st.integers(1, 5), min_size=ROWS, max_size=ROWS))
def test_a_row_that_weighs_n_counts_as_n_rows(times: list[int]) -> None:
    outputs_BK, batch = drawn(CLASSES)
    outputs_BK = outputs_BK.double()
    weighted = Batch(batch.numeric_BF, batch.codes_BC, batch.target_B, torch.tensor(times).float())
    rows = torch.repeat_interleave(torch.arange(ROWS), torch.tensor(times))
    repeated = Batch(batch.numeric_BF[rows], batch.codes_BC[rows], batch.target_B[rows])
    loss = make_loss("cross_entropy", label_smoothing=0.1)
    torch.testing.assert_close(loss(outputs_BK, weighted), loss(outputs_BK[rows], repeated))


def test_a_plain_loss_is_not_weighted_and_its_rows_weigh_one() -> None:
    outputs_BK, batch = drawn(CLASSES)
    loss = make_loss("cross_entropy")
    assert not loss.is_weighted
    assert torch.equal(loss.weights(batch), torch.ones(ROWS))
    assert loss.weight_sum(batch) == ROWS
    assert loss(outputs_BK, batch) == F.cross_entropy(outputs_BK, batch.target_B)


def test_that_the_data_have_weights_all_ranks_know_without_a_row() -> None:
    assert make_loss("mse", row_weights=True).is_weighted


def test_a_loss_follows_the_batches_to_their_device() -> None:
    loss = make_loss("cross_entropy", class_weights=WEIGHTS)
    assert loss.on(CPU) is loss
    moved = loss.on(torch.device("meta"))
    assert isinstance(moved, Loss)
    assert moved.weights_C is not None
    assert moved.weights_C.device.type == "meta"
    assert moved == loss
    assert make_loss("mse").on(torch.device("meta")) == make_loss("mse")
