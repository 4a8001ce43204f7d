"""The weights of a pack and what a step does to them, all trials in one go.

Nothing in a step waits for the device. No number of a trial enters another's: what is not finite
stays where it came about.

Shapes: K trials, P numbers of a trial's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from batchtrain.models.losses import Loss
from batchtrain.training.packed.dropout import DropoutMasks
from batchtrain.training.packed.layers import Given
from batchtrain.training.packed.layout import Layout
from batchtrain.training.packed.losses import BatchLosses, batch_losses, measure_all
from batchtrain.training.packed.member import Member
from batchtrain.training.packed.network import PackedNetwork
from batchtrain.training.packed.optimizer import PackedOptimizer
from batchtrain.training.packed.rows import PackedBatch
from batchtrain.training.rows import ResidentSplit

__all__ = ["Program"]


class Program:
    """The trials that are at work; where one of them is over, a new program is made without it.

    Attributes:
        members: The trials.
        weights: Each parameter of all of them: [K, *shape].
    """

    def __init__(
        self,
        members: Sequence[Member],
        network: PackedNetwork,
        layout: Layout,
        loss: Loss,
        shares: Sequence[Sequence[float]],
        device: torch.device,
    ) -> None:
        """Put the trials' rows side by side.

        Args:
            members: At least one, all at the end of the same epoch.
            network: Their networks.
            layout: Of their weights.
            loss: What each minimises.
            shares: What each drops in each dropout layer.
            device: Where they train.
        """
        self.members = list(members)
        self._network = network
        self._loss = loss
        columns = zip(*(member.moving for member in members), strict=True)
        self._moving = [torch.stack([row.to(device) for row in rows]) for rows in columns]
        for member, *rows in zip(members, *self._moving, strict=True):
            member.moving = rows
        weights_KP, *moments_KP = self._moving
        grads_KP = torch.zeros_like(weights_KP)
        self._grads = layout.views(grads_KP)
        self.weights = layout.views(weights_KP)
        self._masks = DropoutMasks(
            [member.facts.spec.seed for member in members],
            shares,
            network.dropout_widths,
            device,
        )
        self._optimizer = PackedOptimizer(
            [member.optimizer for member in members],
            layout,
            weights_KP,
            grads_KP,
            moments_KP,
            step=members[0].step,
        )

    def step(self, batch: PackedBatch, step: int) -> BatchLosses:
        """Take a step of every trial; give the losses before it, on the device."""
        for member in self.members:
            if member.schedule.per_step:
                member.schedule.before_step(step)
        given = Given(self.weights, self._masks.draw(step, len(batch)), self._grads)
        outputs_KBO = self._network.forward(batch.numeric_KBF, batch.codes_KBC, given)
        losses = batch_losses(self._loss, outputs_KBO, batch)
        self._network.backward(losses.grad_KBO, batch.codes_KBC, given)
        self._optimizer.step([member.learning_rate() for member in self.members])
        return losses

    def measure(self, split: ResidentSplit, name: str) -> list[dict[str, float]]:
        """Loss and score of each trial on a split; see `measure_all`."""
        return measure_all(self._network, self.weights, self._loss, split, name)

    def copies(self) -> list[Tensor]:
        """A copy of all that a step changes."""
        return [rows_KP.clone() for rows_KP in self._moving]

    def put_back(self, copies: Sequence[Tensor]) -> None:
        """Put back what `copies` gave."""
        for rows_KP, copy_KP in zip(self._moving, copies, strict=True):
            rows_KP.copy_(copy_KP)
