"""The losses equal torch's, weighted or not, whole or in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from batchtrain.errors import SpecError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import activate, make_loss, num_outputs, resolve_loss

ROWS = 13
NAMES = ["cross_entropy", "bce", "mse", "mae", "huber"]


def rows_of(name: str, *, weighted: bool) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(3)
    outputs_BK = torch.randn(ROWS, 4 if name == "cross_entropy" else 1, generator=generator) * 2
    if name in ("cross_entropy", "bce"):
        target_B = torch.randint(4 if name == "cross_entropy" else 2, (ROWS,), generator=generator)
    else:
        target_B = torch.randn(ROWS, generator=generator) * 2
    weight_B = torch.rand(ROWS, generator=generator) * 5 if weighted else None
    if weight_B is not None:
        weight_B[2] = 0.0
    empty = torch.zeros(ROWS, 0)
    return outputs_BK, Batch(empty, empty.long(), target_B, weight_B)


def expected_rows(name: str, outputs_BK: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Each loss by its definition, in float64."""
    outputs_BK = outputs_BK.double()
    if name == "cross_entropy":
        return -outputs_BK.log_softmax(1)[torch.arange(ROWS), target_B]
    outputs_B, target_B = outputs_BK[:, 0], target_B.double()
    if name == "bce":
        return -(target_B * F.logsigmoid(outputs_B) + (1 - target_B) * F.logsigmoid(-outputs_B))
    distance_B = (outputs_B - target_B).abs()
    if name == "huber":
        return torch.where(distance_B < 1, distance_B**2 / 2, distance_B - 0.5)
    return distance_B**2 if name == "mse" else distance_B


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_it_is_the_plain_mean(name):
    outputs_BK, batch = rows_of(name, weighted=False)
    expected = expected_rows(name, outputs_BK, batch.target_B).mean()
    torch.testing.assert_close(make_loss(name)(outputs_BK, batch), expected.float())


@pytest.mark.parametrize("name", NAMES)
def test_uneven_weights_count_each_row_by_its_weight(name):
    outputs_BK, batch = rows_of(name, weighted=True)
    rows_B = expected_rows(name, outputs_BK, batch.target_B)
    expected = (rows_B * batch.weight_B).sum() / batch.weight_B.sum()
    torch.testing.assert_close(make_loss(name)(outputs_BK, batch), expected.float())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_of_the_parts_add_up_to_that_of_the_whole(name, weighted):
    outputs_BK, batch = rows_of(name, weighted=weighted)
    loss = make_loss(name)
    whole = outputs_BK.double().requires_grad_()
    loss(whole, batch).backward()
    total = batch.weight_B.sum() if weighted else float(ROWS)
    parts = outputs_BK.double().requires_grad_()
    for rows in (slice(0, 4), slice(4, 12), slice(12, ROWS)):
        weight_B = batch.weight_B[rows] if weighted else None
        piece = Batch(batch.numeric_BF[rows], batch.codes_BC[rows], batch.target_B[rows], weight_B)
        loss(parts[rows], piece, total).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_weight_zero_change_nothing(name):
    outputs_BK, batch = rows_of(name, weighted=True)
    changed_BK = outputs_BK.clone()
    changed_BK[2] += 100
    loss = make_loss(name)
    assert torch.equal(loss(changed_BK, batch), loss(outputs_BK, batch))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_sum_for_evaluation_is_the_weighted_sum_in_float64(name, weighted):
    outputs_BK, batch = rows_of(name, weighted=weighted)
    loss = make_loss(name)
    rows_B = expected_rows(name, outputs_BK, batch.target_B)
    torch.testing.assert_close(loss.per_row(outputs_BK, batch), rows_B.float())
    total = loss.sum(outputs_BK, batch)
    assert total.dtype == torch.float64
    weight_B = batch.weight_B if weighted else torch.ones(ROWS)
    torch.testing.assert_close(total, (rows_B * weight_B).sum(), rtol=1e-6, atol=1e-6)


def test_a_column_of_outputs_is_never_broadcast_over_the_targets():
    outputs_BK = torch.tensor([[1.0], [2.0]])
    empty = torch.zeros(2, 0)
    batch = Batch(empty, empty.long(), torch.tensor([1.0, 2.0]))
    assert make_loss("mse")(outputs_BK, batch) == 0


@pytest.mark.parametrize(
    ("loss", "task", "num_classes", "expected"),
    [
        ("cross_entropy", "classification", 5, 5),
        ("cross_entropy", "classification", 2, 2),
        ("bce", "classification", 2, 1),
        ("mse", "regression", 0, 1),
        ("mae", "regression", 0, 1),
        ("huber", "regression", 0, 1),
    ],
)
def test_the_outputs_that_a_loss_needs(loss, task, num_classes, expected):
    assert num_outputs(loss, task, num_classes) == expected


@pytest.mark.parametrize(
    ("loss", "task", "num_classes"),
    [
        ("bce", "classification", 3),
        ("cross_entropy", "classification", 1),
        ("mse", "classification", 2),
        ("bce", "regression", 0),
    ],
)
def test_a_loss_that_does_not_suit_is_refused(loss, task, num_classes):
    with pytest.raises(SpecError, match=r"training\.loss"):
        num_outputs(loss, task, num_classes)


def test_auto_is_the_tasks_usual_loss():
    assert resolve_loss("auto", "classification") == "cross_entropy"
    assert resolve_loss("auto", "regression") == "mse"
    assert resolve_loss("huber", "regression") == "huber"


def test_probabilities_of_two_outputs_and_of_one_agree():
    logits_B = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0])
    one = activate(logits_B[:, None], "bce")
    two = activate(torch.stack((torch.zeros(5), logits_B), 1), "cross_entropy")
    torch.testing.assert_close(one, two, rtol=1e-5, atol=0)
    assert one.shape == (5, 2)
    assert (one > 0).all()


def test_predicted_values_are_the_outputs():
    outputs_BK = torch.randn(3, 1)
    assert torch.equal(activate(outputs_BK, "mae"), outputs_BK)
