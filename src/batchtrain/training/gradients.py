"""How the gradient of a global batch comes about: by rank, or in groups that no rank can change.

With `determinism: order` each rank differentiates its rows and DDP takes the mean: the same rows
whatever the number of ranks, and sums that are rounded in another order. With `canonical` each
batch is divided into 8 groups of rows, whoever holds them. The groups' gradients are added in
their order, so that the bits are the same for any number of ranks; dropout draws by the group.

Shapes: G groups, P parameters, B rows of a part, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.points import passed
from batchtrain.row_order import counter_generator
from batchtrain.spec.run import CANONICAL_GROUPS, Determinism
from batchtrain.training.ddp import exact_ddp
from batchtrain.training.ranks import Ranks

__all__ = ["Gradients", "held_groups", "make_gradients"]


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
    determinism: Determinism, ranks: Ranks, device: torch.device, *, seed: int
) -> Gradients:
    """The way of a spec.

    Raises:
        TrainingError: If there are more ranks than a canonical batch has groups.
    """
    if determinism == "order":
        return _ByRank(ranks, device, seed)
    return _InGroups(ranks, device, seed)


class _ByRank:
    """Each rank differentiates its rows at once; DDP takes the mean over the ranks."""

    def __init__(self, ranks: Ranks, device: torch.device, seed: int) -> None:
        self.num_parts = ranks.size
        self.parts = range(ranks.rank, ranks.rank + 1)
        self._device = device
        self._dropout_seed = _dropout_seed(seed, ranks.rank)
        self._awaited: list[tuple[str, nn.Parameter]] = []

    def wrap(self, model: nn.Module, loss: Loss, row: Batch) -> nn.Module:
        """See `Gradients.wrap`; with one rank the model is its own wrapper."""
        if self.num_parts == 1:
            return model
        _refuse_batch_norm(model, "with several workers", "each worker", "LayerNorm, or one worker")

        def backward(wrapped: nn.Module) -> None:
            loss(wrapped(row.numeric_BF, row.codes_BC), row, 1.0).backward()

        wrapped = exact_ddp(model, backward=backward)
        if not wrapped.find_unused_parameters:
            self._awaited = [
                (name, each) for name, each in model.named_parameters() if each.requires_grad
            ]
        return wrapped

    def gradient(
        self, model: nn.Module, loss: Loss, batches: list[Batch], rows: int, step: int
    ) -> Tensor:
        """See `Gradients.gradient`."""
        _seed_dropout(self._dropout_seed + step, self._device)
        (batch,) = batches
        # DDP divides by the ranks; with one of them this is the plain mean.
        denominator = None if self.num_parts == 1 else rows / self.num_parts
        value = loss(model(batch.numeric_BF, batch.codes_BC), batch, denominator)
        passed("step.forward")
        value.backward()
        _check_used(self._awaited)
        passed("step.backward")
        return value.detach()

    def loss_divisor(self, rows: int) -> float:
        """See `Gradients.loss_divisor`."""
        return self.num_parts


class _InGroups:
    """The batch's groups one by one; their gradients are gathered, and added in their order."""

    def __init__(self, ranks: Ranks, device: torch.device, seed: int) -> None:
        if ranks.size > CANONICAL_GROUPS:
            raise TrainingError(
                f"expected at most {CANONICAL_GROUPS} workers with `determinism: canonical`, "
                f"found {ranks.size}: each holds one of the batch's {CANONICAL_GROUPS} groups or "
                "more. Use fewer workers, or `determinism: order`"
            )
        self.num_parts = CANONICAL_GROUPS
        self.parts = held_groups(ranks.size, ranks.rank)
        self._ranks = ranks
        self._device = device
        self._dropout_seeds = [_dropout_seed(seed, part) for part in self.parts]

    def wrap(self, model: nn.Module, loss: Loss, row: Batch) -> nn.Module:
        """See `Gradients.wrap`; DDP would add in an order of its own."""
        _refuse_batch_norm(
            model, "with `determinism: canonical`", "each group", "LayerNorm, or `order`"
        )
        return model

    def gradient(
        self, model: nn.Module, loss: Loss, batches: list[Batch], rows: int, step: int
    ) -> Tensor:
        """See `Gradients.gradient`."""
        trained = [each for each in model.parameters() if each.requires_grad]
        found, values = [], []
        for batch, seed in zip(batches, self._dropout_seeds, strict=True):
            _seed_dropout(seed + step, self._device)
            value = loss(model(batch.numeric_BF, batch.codes_BC), batch, 1.0)
            passed("step.forward")
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            passed("step.backward")
            found.append(gradients)
            values.append(value.detach())
        total_P, used = self._sum_of_groups(found, trained)
        parts = (total_P / rows).split([each.numel() for each in trained])
        for each, is_used, part in zip(trained, used, parts, strict=True):
            # A parameter that the loss does not use has no gradient, as with `order`; the others
            # have one that lies in memory as they do, which the fused kernels take for granted.
            each.grad = torch.empty_like(each).copy_(part.view(each.shape)) if is_used else None
        return torch.stack(values)

    def loss_divisor(self, rows: int) -> float:
        """See `Gradients.loss_divisor`."""
        return rows

    def _sum_of_groups(
        self, mine: Sequence[tuple[Tensor | None, ...]], trained: list[nn.Parameter]
    ) -> tuple[Tensor, list[bool]]:
        """Add up the groups of all ranks, always in the order of the groups.

        Returns:
            The sum: [P]. And for each parameter, whether the loss of any group uses it: the
            groups of one rank may use others than those of the next.
        """
        size = self._ranks.size
        most = -(-CANONICAL_GROUPS // size)
        mine_P = [_flat(each, trained) for each in mine]
        mine_GP = torch.stack([*mine_P, *[torch.zeros_like(mine_P[0])] * (most - len(mine_P))])
        total_P = torch.zeros_like(mine_P[0])
        for rank, gathered_GP in enumerate(self._ranks.gather_tensor(mine_GP)):
            for place in range(len(held_groups(size, rank))):
                total_P += gathered_GP[place]
        sum_P, uses = total_P.split([len(total_P) - len(trained), len(trained)])
        return sum_P, [count > 0 for count in uses.tolist()]


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


def held_groups(size: int, rank: int) -> range:
    """The groups that a rank holds."""
    return range(rank * CANONICAL_GROUPS // size, (rank + 1) * CANONICAL_GROUPS // size)


def _flat(gradients: tuple[Tensor | None, ...], trained: list[nn.Parameter]) -> Tensor:
    """The gradients of all parameters in one row, zeros where there is none; and which there are.

    The marks are behind the gradients, a 1 or a 0 for each parameter.
    """
    flat = [
        (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
        for gradient, parameter in zip(gradients, trained, strict=True)
    ]
    return torch.cat([*flat, flat[0].new_tensor([each is not None for each in gradients])])


def _dropout_seed(seed: int, part: int) -> int:
    """31 bits from which a part of the batch counts the steps.

    torch's CPU generator keeps 32 bits of a seed, so consecutive steps get consecutive seeds: no
    two steps of a part share one.
    """
    key = ("dropout",) if part == 0 else ("dropout", part)
    return int(counter_generator(seed, *key).random_raw(1)[0] >> 33)


def _seed_dropout(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _refuse_batch_norm(model: nn.Module, where: str, who: str, instead: str) -> None:
    """Refuse layers whose output for a row depends on the other rows of its part.

    Raises:
        TrainingError: If the model has one.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                f"expected a model without batch normalisation {where}, found "
                f"{type(module).__name__} in {name!r}: {who} would normalise by its own rows. "
                f"Use {instead}"
            )
