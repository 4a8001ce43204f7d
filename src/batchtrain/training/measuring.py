"""How good the model is on a split: its loss, its score, and any other metric that is asked for.

Each rank measures its blocks; what they found is merged in the order of the blocks, so that the
number of ranks does not show in the last bit.

Shapes: B rows of a block, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from batchtrain.errors import DataError, DivergedError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.models.steps import measured
from batchtrain.points import passed
from batchtrain.training.worker import Worker

__all__ = ["ALWAYS_MEASURED", "measure"]

ALWAYS_MEASURED = ("loss", "accuracy", "r2")
"""What comes of the sums that are made anyway, each where it suits the task."""


@torch.no_grad()
def measure(
    model: nn.Module, loss: Loss, worker: Worker, split: str, metrics: Sequence[str] = ()
) -> dict[str, float]:
    """The weighted mean loss of a split and its score: accuracy (a share), or R2.

    Args:
        model: Not wrapped by DDP, which would wait for ranks that have fewer blocks.
        loss: What is summed.
        worker: Serves the blocks.
        split: Which rows.
        metrics: What else to measure, by the names of `batchtrain.metrics`; in the target's own
            units, and each row counted once, as in an evaluation.

    Raises:
        DataError: If no row of the split weighs anything.
        DivergedError: If the loss or a prediction is not finite, on all ranks alike.
        TrainingError: If one of the metrics is not defined for the rows of the split.
    """
    # Imported here: it brings torchmetrics, whose import takes long and which few trainings need.
    extra = import_module("batchtrain.training.block_metrics") if metrics else None
    model.eval()
    mine: list[list[Any]] = []
    for number, batch in worker.split_blocks(split):
        outputs_BK, loss_sum = measured(model, loss, batch)
        found = [number, _block_parts(outputs_BK, batch, loss, float(loss_sum))]
        if extra is not None:
            found.append(extra.packed_metrics(outputs_BK, batch, loss, metrics))
        mine.append(found)
        passed("measure.block")
    gathered = [block for of_rank in worker.ranks.gather(mine) for block in of_rank]
    blocks = sorted(gathered, key=lambda block: int(block[0]))
    total = _merged(block[1] for block in blocks)
    if not math.isfinite(total.loss_sum):
        raise DivergedError(
            f"expected a finite loss on the {split} split, found {total.loss_sum}. "
            "Lower `training.optimizer.lr`, or look for extreme values in the data"
        )
    if not total.weight > 0:
        raise DataError(
            f"expected a row of the {split} split that weighs more than 0, found none: it has no "
            "loss. Look at `data.weight` and `training.class_weights`, or use another split"
        )
    scores = {"loss": total.loss_sum / total.weight}
    if loss.name in {"cross_entropy", "bce"}:
        scores["accuracy"] = total.right / total.rows
    elif total.spread > 0:
        scores["r2"] = 1 - total.residual / total.spread
    if extra is not None:
        scores |= extra.merged_metrics([block[2] for block in blocks], split)
    return scores


@dataclass(frozen=True)
class _Parts:
    """Sums over rows: weights and losses; rows predicted right; squared errors and deviations."""

    rows: int = 0
    loss_sum: float = 0.0
    weight: float = 0.0
    right: int = 0
    residual: float = 0.0
    mean: float = 0.0
    spread: float = 0.0


def _block_parts(outputs_BK: Tensor, batch: Batch, loss: Loss, loss_sum: float) -> list[float]:
    """The parts of one block, as a list in the order of the fields of `_Parts`."""
    rows = len(batch.target_B)
    weight = float(loss.weight_sum(batch)) if loss.is_weighted else float(rows)
    if batch.target_B.is_floating_point():
        target = batch.target_B.double()
        residual = float((outputs_BK[:, 0].double() - target).square().sum())
        mean = float(target.mean())
        spread = float((target - mean).square().sum())
        return [rows, loss_sum, weight, 0, residual, mean, spread]
    if outputs_BK.shape[1] == 1:
        right = int(((outputs_BK[:, 0] > 0) == batch.target_B).sum())
    else:
        right = int((outputs_BK.argmax(dim=1) == batch.target_B).sum())
    return [rows, loss_sum, weight, right, 0.0, 0.0, 0.0]


def _merged(blocks: Iterable[Sequence[Any]]) -> _Parts:
    """All blocks as one; the deviations as Chan, Golub and LeVeque (1983) merge them."""
    all_rows = _Parts()
    for rows, loss_sum, weight, right, residual, mean, spread in blocks:
        total = all_rows.rows + rows
        gap = mean - all_rows.mean
        all_rows = _Parts(
            rows=total,
            loss_sum=all_rows.loss_sum + loss_sum,
            weight=all_rows.weight + weight,
            right=all_rows.right + right,
            residual=all_rows.residual + residual,
            mean=all_rows.mean + gap * rows / total,
            spread=all_rows.spread + spread + gap * gap * all_rows.rows * rows / total,
        )
    return all_rows
