"""The losses and scores of all trials of a pack at once, as a run of its own has them.

Shapes: K trials, B rows, O outputs, N sums: of losses, of squared errors, of rows predicted right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchtrain.errors import DataError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.training.packed.layers import Given
from batchtrain.training.packed.network import PackedNetwork
from batchtrain.training.packed.rows import PackedBatch, packed_blocks
from batchtrain.training.passes import TINY
from batchtrain.training.rows import ResidentSplit

__all__ = ["BatchLosses", "batch_losses", "measure_all"]


@dataclass(frozen=True)
class BatchLosses:
    """What a batch of each trial gave.

    Attributes:
        losses_K: The training loss of each trial, float32.
        weighs_K: What its rows weigh, float64; None where each row weighs 1.
        grad_KBO: The gradient of each trial's loss for its outputs.
    """

    losses_K: Tensor
    weighs_K: Tensor | None
    grad_KBO: Tensor


def batch_losses(loss: Loss, outputs_KBO: Tensor, batch: PackedBatch) -> BatchLosses:
    """The training loss of each trial's batch, and its gradient."""
    outputs_KBO = outputs_KBO.detach().requires_grad_()
    losses_KB, weight_KB = _of_rows(loss, outputs_KBO, batch)
    weighs_K = None
    if weight_KB is None:
        share_KB = torch.full_like(losses_KB, 1 / len(batch))
    else:
        weighs_K = weight_KB.double().sum(dim=1)
        # 0 / 0 would be NaN.
        share_KB = weight_KB / weighs_K.clamp_min(TINY).float().unsqueeze(1)
    (grad_KBO,) = torch.autograd.grad(losses_KB, outputs_KBO, share_KB)
    return BatchLosses((losses_KB.detach() * share_KB).sum(dim=1), weighs_K, grad_KBO)


@torch.no_grad()
def measure_all(
    network: PackedNetwork, weights: Sequence[Tensor], loss: Loss, split: ResidentSplit, name: str
) -> list[dict[str, float]]:
    """Each trial's weighted mean loss on a split and its score; see `measuring.measure`.

    A loss that is not finite is given as it is.

    Raises:
        DataError: If no row of the split weighs anything.
    """
    trials = len(weights[0])
    sums_NK = torch.zeros((3, trials), dtype=torch.float64, device=split.target_N.device)
    weighs = 0.0
    for batch in packed_blocks(split, trials):
        outputs_KBO = network.forward(batch.numeric_KBF, batch.codes_KBC, Given(weights))
        losses_KB, weight_KB = _of_rows(loss, outputs_KBO, batch)
        losses_KB = losses_KB.double()
        if weight_KB is None:
            weighs += len(batch)
        else:
            losses_KB = losses_KB * weight_KB
            weighs += float(weight_KB[0].double().sum())
        sums_NK[0] += losses_KB.sum(dim=1)
        if batch.target_KB.is_floating_point():
            sums_NK[1] += (outputs_KBO[:, :, 0].double() - batch.target_KB).square().sum(dim=1)
        else:
            sums_NK[2] += (_classes(outputs_KBO) == batch.target_KB).sum(dim=1)
    if not weighs > 0:
        raise DataError(
            f"expected a row of the {name} split that weighs more than 0, found none: it has no "
            "loss. Look at `data.weight` and `training.class_weights`, or use another split"
        )
    spread = _spread(split)
    return [
        {"loss": loss_sum / weighs} | _score(loss, residual, right, spread, len(split))
        for loss_sum, residual, right in sums_NK.T.tolist()
    ]


def _score(loss: Loss, residual: float, right: float, spread: float, rows: int) -> dict[str, float]:
    if loss.name in {"cross_entropy", "bce"}:
        return {"accuracy": right / rows}
    return {"r2": 1 - residual / spread} if spread > 0 else {}


def _spread(split: ResidentSplit) -> float:
    target_N = split.target_N.double()
    return float((target_N - target_N.mean()).square().sum())


def _classes(outputs_KBO: Tensor) -> Tensor:
    """The class that each row is said to be of: [K, B]."""
    if outputs_KBO.shape[2] == 1:
        return outputs_KBO[:, :, 0] > 0
    return outputs_KBO.argmax(dim=2)


def _of_rows(loss: Loss, outputs_KBO: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, and its weight where rows may weigh other than 1: [K, B] each."""
    shape = outputs_KBO.shape[:2]
    weight_KB = batch.weight_KB
    # The loss of a row knows nothing of the other rows, so those of all trials are one batch.
    flat = Batch(
        batch.numeric_KBF,
        batch.codes_KBC,
        batch.target_KB.reshape(-1),
        None if weight_KB is None else weight_KB.reshape(-1),
    )
    losses_KB = loss.per_row(outputs_KBO.flatten(end_dim=1), flat).view(shape)
    return losses_KB, loss.weights(flat).view(shape) if loss.is_weighted else None
