"""The losses: one number a batch for training, sums in float64 for evaluation.

The loss of a row is what torch's loss of that name gives, with smoothed labels where that is asked
for. A row weighs its sample weight times the weight of its class. The loss of some rows is the
weighted sum over the sum of the weights, for training and validation alike.

Shapes: B rows, K outputs, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from batchtrain.errors import Problem, SpecError
from batchtrain.models.inputs import Batch
from batchtrain.models.target_scale import TargetScale
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
    """One of the losses, callable on a batch; nothing in it waits for the device.

    Attributes:
        name: Which.
        kernel: The loss of each row, smoothed where that was asked for.
        label_smoothing: The share of a label that is spread evenly over all classes.
        class_weights: What a row of each class weighs, by class code; None where all weigh 1.
        has_row_weights: Whether the data have a column of weights.
        target_scale: What the targets were scaled by before this loss sees them; None where they
            are as they were. Nothing here applies it; it is for who tells of values.
    """

    name: LossName
    kernel: Kernel
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    has_row_weights: bool = False
    target_scale: TargetScale | None = None
    weights_C: Tensor | None = field(default=None, repr=False, compare=False)
    """`class_weights` as float32 [C], on the device of the batches."""

    @property
    def is_weighted(self) -> bool:
        """Whether rows may weigh other than 1; the same on all ranks.

        A row of weight 0, which stands in where a rank has none, is no reason for it.
        """
        return self.class_weights is not None or self.has_row_weights

    def on(self, device: torch.device) -> Loss:
        """This loss for batches on a device."""
        if self.weights_C is None or self.weights_C.device == device:
            return self
        return replace(self, weights_C=self.weights_C.to(device))

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
            denominator: Left out, the weight sum of this batch: the plain (weighted) mean. It is
                0 where all weights are 0, as the gradient is.
        """
        if batch.weight_B is None and self.weights_C is None:
            if denominator is None:
                return self.kernel(outputs_BK, batch.target_B, "mean")
            return self.kernel(outputs_BK, batch.target_B, "sum") / denominator
        weight_B = self.weights(batch)
        weighted_sum = (self.per_row(outputs_BK, batch) * weight_B).sum()
        if denominator is None:
            # 0 / 0 would be NaN; every weight is 0 or a normal number of float32.
            denominator = weight_B.sum().clamp_min(torch.finfo(weight_B.dtype).tiny)
        return weighted_sum / denominator

    def weights(self, batch: Batch) -> Tensor:
        """Give what each row weighs, float32 [B]: its own weight times that of its class."""
        if self.weights_C is None:
            if batch.weight_B is None:
                return torch.ones(len(batch.target_B), device=batch.target_B.device)
            return batch.weight_B
        weight_B = self.weights_C.index_select(0, batch.target_B)
        return weight_B if batch.weight_B is None else weight_B * batch.weight_B

    def per_row(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        """Give the loss of each row, without its weight: [B]."""
        return self.kernel(outputs_BK, batch.target_B, "none")

    def sum(self, outputs_BK: Tensor, batch: Batch) -> Tensor:
        """Give the weighted sum over the rows as a float64 scalar on the batch's device.

        The rows' losses are computed in the type of the outputs and added in float64, so that
        the sum of many batches loses nothing to their number.
        """
        losses_B = self.per_row(outputs_BK, batch).to(torch.float64)
        if batch.weight_B is not None or self.weights_C is not None:
            losses_B = losses_B * self.weights(batch)
        return losses_B.sum()

    def weight_sum(self, batch: Batch) -> Tensor:
        """Give what the rows weigh together, a float64 scalar; see `sum`."""
        return self.weights(batch).to(torch.float64).sum()


def make_loss(
    name: LossName,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    row_weights: bool = False,
    target_scale: TargetScale | None = None,
) -> Loss:
    """Give the loss of that name; `auto` is resolved before, by `resolve_loss`.

    The validation loss is computed by the same one, labels smoothed and rows weighted, as Keras
    and torch users know it: so the two curves can be compared. A row of class `c` counts `w_c`
    times whatever the smoothing, as Keras' `class_weight` has it; torch's own `weight=` would
    weigh each class's share of a smoothed label by that class instead.

    Args:
        name: Which.
        label_smoothing: The share of a label that is spread evenly over all classes (Szegedy et
            al., 2016, "Rethinking the Inception Architecture"); for `bce` over its two classes.
        class_weights: What a row of each class weighs, by class code.
        row_weights: Whether the data have a column of weights, so that all ranks know it.
        target_scale: What the targets are scaled by before.
    """
    kernel = KERNELS[name]
    if label_smoothing:
        kernel = partial(SMOOTHED_KERNELS[name], label_smoothing)
    weights = None if class_weights is None else tuple(map(float, class_weights))
    return Loss(
        name,
        kernel,
        label_smoothing=label_smoothing,
        class_weights=weights,
        has_row_weights=row_weights,
        target_scale=target_scale,
        weights_C=None if weights is None else torch.tensor(weights, dtype=torch.float32),
    )


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


def _smooth_cross_entropy(
    smoothing: float, outputs_BK: Tensor, target_B: Tensor, reduction: Reduction
) -> Tensor:
    return F.cross_entropy(outputs_BK, target_B, reduction=reduction, label_smoothing=smoothing)


def _smooth_bce(
    smoothing: float, outputs_BK: Tensor, target_B: Tensor, reduction: Reduction
) -> Tensor:
    """What `cross_entropy` is for two classes: half of what is spread stays with the label."""
    logits_B, target_B = _paired(outputs_BK, target_B)
    smooth_B = target_B * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_B, smooth_B, reduction=reduction)


class SmoothedKernel(Protocol):
    """A loss of torch with smoothed labels."""

    def __call__(
        self, smoothing: float, outputs_BK: Tensor, target_B: Tensor, reduction: Reduction
    ) -> Tensor:
        """See `Kernel`."""
        ...


SMOOTHED_KERNELS: dict[LossName, SmoothedKernel] = {
    "cross_entropy": _smooth_cross_entropy,
    "bce": _smooth_bce,
}
KERNELS: dict[LossName, Kernel] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
    "mae": _mae,
    "huber": _huber,
}
