"""How the gradient of a global batch comes about: by rank, or in groups that no rank can change.

With `determinism: order` each rank differentiates its rows and DDP takes the mean: the same rows
whatever the number of ranks, and sums that are rounded in another order. With `canonical` each
batch is divided into 8 groups of rows, whoever holds them. The groups' gradients are added in
their order, so that the bits are the same for any number of ranks; dropout draws by the group.

Either way the rows of a part may be differentiated in micro-batches, in 16 bits or by compiled
kernels; see `GradientRules`. The gradient is that of the whole batch: what is divided by is known
before the first row is differentiated.

Shapes: G groups, P parameters, B rows of a part, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.models.steps import trainable
from batchtrain.spec.run import Determinism
from batchtrain.training.canonical import InGroups, held_groups
from batchtrain.training.ddp import FlatMean, check_reduced, exact_ddp
from batchtrain.training.micro_batches import micro_batches
from batchtrain.training.passes import (
    PLAIN,
    TINY,
    GradientRules,
    dropout_seed,
    make_forward,
    refuse_batch_norm,
    seed_dropout,
)
from batchtrain.training.ranks import Ranks

__all__ = ["PLAIN", "GradientRules", "Gradients", "held_groups", "make_gradients"]


class Gradients(Protocol):
    """Divides batches among the ranks, and makes one gradient of what the ranks find.

    Attributes:
        num_parts: The parts of a global batch, over all ranks.
        parts: Those of them that this rank holds.
    """

    num_parts: int
    parts: range

    def wrap(self, model: nn.Module, loss: Loss, row: Batch) -> nn.Module:
        """The model as `gradient` wants it; `row` is a row of weight 0 to try it with."""
        ...

    def gradient(
        self, model: nn.Module, loss: Loss, batches: list[Batch], rows: int, step: int
    ) -> Tensor:
        """Leave the gradient of the whole batch in the parameters, which have none.

        Args:
            model: What `wrap` gave.
            loss: What is minimised.
            batches: The rows of each of this rank's parts.
            rows: Of the global batch, over all ranks.
            step: The global step, from which dropout is seeded.

        Returns:
            The losses of this rank's parts. Those of all ranks, added and divided by
            `loss_divisor`, are the mean loss of the batch.
        """
        ...

    def loss_divisor(self, rows: int) -> float:
        """See `gradient`."""
        ...


def make_gradients(
    determinism: Determinism,
    ranks: Ranks,
    device: torch.device,
    *,
    seed: int,
    rules: GradientRules = PLAIN,
) -> Gradients:
    """The way of a spec.

    Raises:
        TrainingError: If there are more ranks than a canonical batch has groups.
    """
    if determinism == "order":
        return _ByRank(ranks, device, seed, rules)
    return InGroups(ranks, device, seed, rules)


class _ByRank:
    """Each rank differentiates its rows; the mean over the ranks is taken by DDP.

    Compiled kernels give their gradients all at once, so that DDP has nothing to overlap: the mean
    is taken in one go then.
    """

    def __init__(self, ranks: Ranks, device: torch.device, seed: int, rules: GradientRules) -> None:
        self.num_parts = ranks.size
        self.parts = range(ranks.rank, ranks.rank + 1)
        self._ranks = ranks
        self._device = device
        self._rules = rules
        self._pass = rules.make_pass(self.num_parts, device)
        self._dropout_seed = dropout_seed(seed, ranks.rank)
        self._awaited: list[tuple[str, nn.Parameter]] = []
        self._mean: FlatMean | None = None

    def wrap(self, model: nn.Module, loss: Loss, row: Batch) -> nn.Module:
        """See `Gradients.wrap`; with one rank the model is its own wrapper."""
        inside = trainable(model)
        if self.num_parts == 1:
            return inside
        refuse_batch_norm(model, "with several workers", "each worker", "LayerNorm, or one worker")
        forward = make_forward(self._rules.precision, self._device)

        def backward(wrapped: nn.Module) -> None:
            forward(wrapped, loss, row, 1.0).backward()

        if self._rules.compile:
            self._mean = FlatMean.of(inside, self._ranks, backward=backward)
            return inside
        wrapped = exact_ddp(inside, backward=backward)
        if not wrapped.find_unused_parameters:
            self._awaited = [
                (name, each) for name, each in model.named_parameters() if each.requires_grad
            ]
        return wrapped

    def gradient(
        self, model: nn.Module, loss: Loss, batches: list[Batch], rows: int, step: int
    ) -> Tensor:
        """See `Gradients.gradient`."""
        seed_dropout(self._dropout_seed + step, self._device)
        (batch,) = batches
        scale = self._rules.scale
        pieces = micro_batches(batch, self._rules.micro_rows)
        denominator = self._denominator(loss, batch, rows)
        if denominator is None and (len(pieces) > 1 or scale != 1.0):
            denominator = float(rows)
        if denominator is not None and scale != 1.0:
            denominator = denominator / scale
        value = self._added(model, loss, pieces, denominator)
        _check_used(self._awaited)
        if self._mean is not None:
            self._mean.take()
        if scale != 1.0:
            _multiply(model, 1.0 / scale)
            value = value / scale
        return value

    def loss_divisor(self, rows: int) -> float:
        """See `Gradients.loss_divisor`."""
        return self.num_parts

    def _denominator(self, loss: Loss, batch: Batch, rows: int) -> Tensor | float | None:
        """By what the sum over this rank's rows is divided; None for the mean over them."""
        if not loss.is_weighted:
            # DDP divides by the ranks; with one of them this is the plain mean.
            return None if self.num_parts == 1 else rows / self.num_parts
        mine = loss.weight_sum(batch)
        if self.num_parts == 1:
            return mine.clamp_min(TINY)
        everyone = self._ranks.gather_tensor(mine.reshape(1))
        return torch.stack(everyone).sum().clamp_min(TINY) / self.num_parts

    def _added(
        self,
        model: nn.Module,
        loss: Loss,
        pieces: Sequence[Batch],
        denominator: Tensor | float | None,
    ) -> Tensor:
        """Differentiate one piece after the other; the ranks take the mean with the last one."""
        *others, last = pieces
        if not others:
            return self._pass(model, loss, last, denominator)
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            values = [self._pass(model, loss, piece, denominator) for piece in others]
        values.append(self._pass(model, loss, last, denominator))
        if self._awaited:
            # The pieces before have left a gradient of each, so that none can tell.
            check_reduced(model)
        return torch.stack(values).sum()


def _multiply(model: nn.Module, factor: float) -> None:
    found = [each.grad for each in model.parameters() if each.grad is not None]
    torch._foreach_mul_(found, factor)


def _check_used(awaited: list[tuple[str, nn.Parameter]]) -> None:
    """Make sure that DDP had a gradient of each parameter that it waits for.

    Without one it adds up nothing in this step, and says so in the next at the earliest: a state
    that came of this rank's rows alone would be saved meanwhile, and other ranks would wait.

    Raises:
        TrainingError: If the step did not use a parameter.
    """
    for name, parameter in awaited:
        if parameter.grad is None:
            raise TrainingError(
                f"expected every step to use the parameters that the first one used, found one "
                f"that does not use {name!r}: several workers cannot add up their gradients then. "
                "Use it in each forward, times 0 where it is not wanted; or take "
                "`determinism: canonical`, or one worker"
            )
