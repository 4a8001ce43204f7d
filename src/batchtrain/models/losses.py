"""The losses: one number a batch for training, sums in float64 for evaluation.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from batchtrain.errors import Problem, SpecError
from batchtrain.models.inputs import Batch
from batchtrain.spec.task import LOSSES_OF_TASK, Task
from batchtrain.spec.training import LossName

__all__ = ["Loss", "activate", "make_loss", "num_outputs", "resolve_loss"]

Reduction = Literal["none", "mean", "sum"]


class Kernel(Protocol):
    """A loss of torch, reduced over the rows as asked."""

    def __call__(self, outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
        """Give [B] for `none`, else a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class Loss:
    """One of the losses, callable on a batch; nothing in it waits for the device."""

    name: LossName
    kernel: Kernel

    def __call__(
        self, outputs_BK: Tensor, batch: Batch, denominator: Tensor | float | None = None
    ) -> Tensor:
        """Give the training loss of a batch, a scalar to call `backward` on.

        It is the weighted sum over the rows divided by `denominator`. With the weight sum of the
        *global* batch over the number of workers, the mean of the workers' gradients is the
        gradient of the whole batch.

        Args:
            outputs_BK: What the model gave for the rows of `batch`.
            batch: The rows.
            denominator: Left out, the weight sum of this batch: the plain (weighted) mean.
        """
        if batch.weight_B is None:
            if denominator is None:
                return self.kernel(outputs_BK, batch.target_B, "mean")
            return self.kernel(outputs_BK, batch.target_B, "sum") / denominator
        weighted_sum = (self.per_row(outputs_BK, batch) * batch.weight_B).sum()
        return weighted_sum / (batch.weight_B.sum() if denominator is None else denominator)

    def per_row(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        """Give the loss of each row, without its weight: [B]."""
        return self.kernel(outputs_BK, batch.target_B, "none")

    def sum(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        """Give the weighted sum over the rows as a float64 scalar on the batch's device.

        The rows' losses are computed in the type of the outputs and added in float64, so that
        the sum of many batches loses nothing to their number.
        """
        losses_B = self.per_row(outputs_BK, batch).to(torch.float64)
        if batch.weight_B is not None:
            losses_B = losses_B * batch.weight_B
        return losses_B.sum()


def make_loss(name: LossName) -> Loss:
    """Give the loss of that name; `auto` is resolved before, by `resolve_loss`."""
    return Loss(name, KERNELS[name])


def resolve_loss(name: Literal["auto"] | LossName, task: Task) -> LossName:
    """Name the loss in force: what was asked, or the task's usual one for `auto`.

    Raises:
        SpecError: If the loss does not suit the task.
    """
    if name == "auto":
        return "cross_entropy" if task == "classification" else "mse"
    if name not in LOSSES_OF_TASK[task]:
        suiting = ", ".join(LOSSES_OF_TASK[task])
        raise _loss_problem(
            f"expected a loss for {task}, found {name!r}", f"Choose one of {suiting}."
        )
    return name


def num_outputs(loss: LossName, task: Task, num_classes: int) -> int:
    """How many outputs K a model needs for this loss.

    Args:
        loss: The loss in force.
        task: What is predicted.
        num_classes: The classes of the target; not read for regression.

    Raises:
        SpecError: If the loss does not suit the task or the number of classes.
    """
    resolve_loss(loss, task)
    if task == "regression":
        return 1
    if num_classes < 2 or (loss == "bce" and num_classes != 2):
        wanted = "exactly 2 classes" if loss == "bce" else "at least 2 classes"
        raise _loss_problem(
            f"{loss} needs {wanted} in the target, found {num_classes}",
            "Use cross_entropy." if num_classes > 2 else "Choose another target.",
        )
    return 1 if loss == "bce" else num_classes


def activate(outputs_BK: Tensor, loss: LossName) -> Tensor:
    """Turn a model's outputs into what is predicted.

    Returns:
        Probabilities for classification, [B, K], or [B, 2] of (1 - p, p) for `bce`; the outputs
        as they are for regression, [B, 1].
    """
    if loss == "cross_entropy":
        return outputs_BK.softmax(dim=1)
    if loss == "bce":
        # sigmoid(-x) and not 1 - sigmoid(x), which is 0 from x = 17 on in float32
        return torch.cat((-outputs_BK, outputs_BK), dim=1).sigmoid()
    return outputs_BK


def _loss_problem(message: str, hint: str) -> SpecError:
    return SpecError([Problem(where="", key="training.loss", message=message, hint=hint)])


def _cross_entropy(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
    return F.cross_entropy(outputs_BK, target_B, reduction=reduction)


def _paired(outputs_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The one output of each row beside its target: [B] each, of the outputs' type."""
    return outputs_BK.squeeze(1), target_B.to(outputs_BK.dtype)


def _bce(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
    logits_B, target_B = _paired(outputs_BK, target_B)
    return F.binary_cross_entropy_with_logits(logits_B, target_B, reduction=reduction)


def _mse(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
    values_B, target_B = _paired(outputs_BK, target_B)
    return F.mse_loss(values_B, target_B, reduction=reduction)


def _mae(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
    values_B, target_B = _paired(outputs_BK, target_B)
    return F.l1_loss(values_B, target_B, reduction=reduction)


def _huber(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
    values_B, target_B = _paired(outputs_BK, target_B)
    return F.huber_loss(values_B, target_B, reduction=reduction)


KERNELS: dict[LossName, Kernel] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
    "mae": _mae,
    "huber": _huber,
}
