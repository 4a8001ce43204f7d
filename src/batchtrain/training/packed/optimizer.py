"""The steps of all trials' optimizers, each trial with its own rates, by torch's fused kernels.

Shapes: K trials, P numbers of a trial's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from batchtrain.spec.optimizers import Adam, AdamW, Sgd
from batchtrain.training.packed.layout import Layout

__all__ = ["PackableOptimizer", "PackedOptimizer", "num_moments"]

PackableOptimizer = Sgd | Adam | AdamW


class _Part(NamedTuple):
    """Neighbouring numbers of the trials that have the same options: a row for each."""

    spec: PackableOptimizer
    weight_decay: float
    rate_of: int
    weights: list[Tensor]
    grads: list[Tensor]
    moments: list[list[Tensor]]


def num_moments(spec: PackableOptimizer) -> int:
    """How many numbers an optimizer keeps for each weight."""
    if isinstance(spec, Sgd):
        return 1
    return 3 if spec.amsgrad else 2


class PackedOptimizer:
    """Takes a step of every trial at once; the kernels are those of a run of its own."""

    def __init__(
        self,
        specs: Sequence[PackableOptimizer],
        layout: Layout,
        weights_KP: Tensor,
        grads_KP: Tensor,
        moments_KP: Sequence[Tensor],
        *,
        step: int,
    ) -> None:
        """Take over the weights, which the steps change in place.

        Args:
            specs: Of the trials.
            layout: Of a row.
            weights_KP: The weights.
            grads_KP: Where the gradients are before each step.
            moments_KP: What the optimizers keep, `num_moments` of it.
            step: The steps that were taken before.
        """
        self._specs = list(specs)
        self._layout = layout
        self._weights = weights_KP
        self._grads = grads_KP
        self._moments = list(moments_KP)
        self._taken = torch.tensor(float(step), device=weights_KP.device)
        self._is_first = step == 0
        self._rates: list[float] = []
        self._parts: list[_Part] = []

    def step(self, rates: Sequence[float]) -> None:
        """Take a step with these learning rates, one for each trial."""
        if list(rates) != self._rates:
            self._rates = list(rates)
            self._parts = self._made_parts()
        self._taken.add_(1.0)
        for part in self._parts:
            if isinstance(part.spec, Sgd):
                self._step_sgd(part, part.spec)
            else:
                self._step_adam(part, part.spec)
        self._is_first = False

    def _made_parts(self) -> list[_Part]:
        """One call of the kernel for all trials that differ in nothing that it is told."""
        groups: dict[tuple[float, PackableOptimizer], list[int]] = {}
        for number, (rate, spec) in enumerate(zip(self._rates, self._specs, strict=True)):
            groups.setdefault((rate, spec.model_copy(update={"lr": 1.0})), []).append(number)
        return [
            part for (_, spec), numbers in groups.items() for part in self._parts_of(spec, numbers)
        ]

    def _parts_of(self, spec: PackableOptimizer, numbers: list[int]) -> list[_Part]:
        decaying, size = self._layout.num_decaying, self._layout.size
        decay = spec.weight_decay
        places = [(0, size, decay)]
        if spec.weight_decay_on == "matrices" and decay > 0 and decaying < size:
            places = [(0, decaying, decay), (decaying, size, 0.0)]
        return [
            _Part(
                spec,
                weight_decay,
                numbers[0],
                _rows(self._weights, numbers, first, end),
                _rows(self._grads, numbers, first, end),
                [_rows(moment, numbers, first, end) for moment in self._moments],
            )
            for first, end, weight_decay in places
            if first < end
        ]

    def _step_sgd(self, part: _Part, spec: Sgd) -> None:
        has_momentum = spec.momentum != 0
        torch._fused_sgd_(
            part.weights,
            part.grads,
            part.moments[0] if has_momentum else [],
            weight_decay=part.weight_decay,
            momentum=spec.momentum,
            lr=self._rates[part.rate_of],
            dampening=spec.dampening,
            nesterov=spec.nesterov,
            maximize=False,
            is_first_step=self._is_first and has_momentum,
        )

    def _step_adam(self, part: _Part, spec: Adam | AdamW) -> None:
        kernel = torch._fused_adamw_ if isinstance(spec, AdamW) else torch._fused_adam_
        means, squares, *largest = part.moments
        kernel(
            part.weights,
            part.grads,
            means,
            squares,
            largest[0] if largest else [],
            [self._taken] * len(part.weights),
            lr=self._rates[part.rate_of],
            beta1=spec.betas[0],
            beta2=spec.betas[1],
            weight_decay=part.weight_decay,
            eps=spec.eps,
            amsgrad=spec.amsgrad,
            maximize=False,
        )


def _rows(rows_KP: Tensor, numbers: Sequence[int], first: int, end: int) -> list[Tensor]:
    return [rows_KP[number, first:end] for number in numbers]
