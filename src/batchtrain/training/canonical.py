"""The gradient of a batch whose bits no number of ranks can change.

Shapes: G groups, P parameters, B rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.models.steps import trainable
from batchtrain.spec.run import CANONICAL_GROUPS
from batchtrain.training.micro_batches import micro_batches
from batchtrain.training.passes import (
    TINY,
    GradientRules,
    dropout_seed,
    refuse_batch_norm,
    seed_dropout,
)
from batchtrain.training.ranks import Ranks

__all__ = ["InGroups", "held_groups"]


class InGroups:
    """The batch's groups one by one; their gradients are gathered, and added in their order."""

    def __init__(self, ranks: Ranks, device: torch.device, seed: int, rules: GradientRules) -> None:
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
        self._rules = rules
        self._pass = rules.make_pass(self.num_parts, device)
        self._dropout_seeds = [dropout_seed(seed, part) for part in self.parts]

    def wrap(self, model: nn.Module, loss: Loss, row: Batch) -> nn.Module:
        """See `Gradients.wrap`; DDP would add in an order of its own."""
        refuse_batch_norm(
            model, "with `determinism: canonical`", "each group", "LayerNorm, or `order`"
        )
        return trainable(model)

    def gradient(
        self, model: nn.Module, loss: Loss, batches: list[Batch], rows: int, step: int
    ) -> Tensor:
        """See `Gradients.gradient`."""
        trained = [each for each in model.parameters() if each.requires_grad]
        scale = self._rules.scale
        # In float16 a sum over rows would overflow where their mean does not.
        divisor = 1.0 if self._rules.scaler is None else rows / scale
        found, values = [], []
        for batch, seed in zip(batches, self._dropout_seeds, strict=True):
            seed_dropout(seed + step, self._device)
            pieces = micro_batches(batch, self._rules.micro_rows)
            of_pieces = [self._pass(model, loss, piece, divisor) for piece in pieces]
            values.append(of_pieces[0] if len(pieces) == 1 else torch.stack(of_pieces).sum())
            found.append(_taken(trained))
        weights = [loss.weight_sum(batch) for batch in batches] if loss.is_weighted else None
        total_P, used, weight = self._sum_of_groups(found, trained, weights)
        whole = (rows if weight is None else weight.clamp_min(TINY)) / divisor
        parts = (total_P / whole).split([each.numel() for each in trained])
        for each, is_used, part in zip(trained, used, parts, strict=True):
            # A parameter that the loss does not use has no gradient, as with `order`; the others
            # have one that lies in memory as they do, which the fused kernels take for granted.
            each.grad = torch.empty_like(each).copy_(part.view(each.shape)) if is_used else None
        is_plain = weight is None and self._rules.scaler is None
        return torch.stack(values) if is_plain else torch.stack(values) * (rows / whole)

    def loss_divisor(self, rows: int) -> float:
        """See `Gradients.loss_divisor`."""
        return rows

    def _sum_of_groups(
        self,
        mine: Sequence[tuple[Tensor | None, ...]],
        trained: list[nn.Parameter],
        weights: Sequence[Tensor] | None,
    ) -> tuple[Tensor, list[bool], Tensor | None]:
        """Add up the groups of all ranks, always in the order of the groups.

        Args:
            mine: The gradients of this rank's groups.
            trained: The parameters.
            weights: The weight sums of the groups, scalars; None where each row weighs 1.

        Returns:
            The sum: [P]. For each parameter, whether the loss of any group uses it: the groups of
            one rank may use others than those of the next. The sum of the weights, a scalar.
        """
        size = self._ranks.size
        most = -(-CANONICAL_GROUPS // size)
        mine_P = [_flat(each, trained) for each in mine]
        if weights is not None:
            # At the end, where they take no collective of their own.
            mine_P = [
                torch.cat([flat_P, weight.reshape(1).to(flat_P.dtype)])
                for flat_P, weight in zip(mine_P, weights, strict=True)
            ]
        mine_GP = torch.stack([*mine_P, *[torch.zeros_like(mine_P[0])] * (most - len(mine_P))])
        total_P = torch.zeros_like(mine_P[0])
        for rank, gathered_GP in enumerate(self._ranks.gather_tensor(mine_GP)):
            for place in range(len(held_groups(size, rank))):
                total_P += gathered_GP[place]
        weight = None if weights is None else total_P[-1]
        found_P = total_P if weights is None else total_P[:-1]
        sum_P, uses = found_P.split([len(found_P) - len(trained), len(trained)])
        return sum_P, [count > 0 for count in uses.tolist()], weight


def held_groups(size: int, rank: int) -> range:
    """The groups that a rank holds."""
    return range(rank * CANONICAL_GROUPS // size, (rank + 1) * CANONICAL_GROUPS // size)


def _taken(trained: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """The gradients, which the parameters no longer have then."""
    found = tuple(each.grad for each in trained)
    for each in trained:
        each.grad = None
    return found


def _flat(gradients: tuple[Tensor | None, ...], trained: list[nn.Parameter]) -> Tensor:
    """The gradients of all parameters in one row, zeros where there is none; and which there are.

    The marks are behind the gradients, a 1 or a 0 for each parameter.
    """
    flat = [
        (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
        for gradient, parameter in zip(gradients, trained, strict=True)
    ]
    return torch.cat([*flat, flat[0].new_tensor([each is not None for each in gradients])])
