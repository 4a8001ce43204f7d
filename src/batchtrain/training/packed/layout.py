"""Where the weights of a network lie in a row of numbers, one row for each trial of a pack.

Shapes: K trials, P numbers of a row, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Layout", "Slot"]

ALIGNED_NUMBERS = 16
"""64 bytes of float32: the last bits of a product depend on where its numbers lie, so that every
trial's numbers lie alike whatever its place in the pack."""


@dataclass(frozen=True)
class Slot:
    """The place of one parameter.

    Attributes:
        start: The first of its numbers.
        shape: As it lies there.
        is_turned: Whether it is the transpose of the parameter, as for the weights of a linear
            layer: then their gradient comes out of a product as it is to lie.
    """

    start: int
    shape: tuple[int, ...]
    is_turned: bool

    @property
    def end(self) -> int:
        """Behind the last of its numbers."""
        return self.start + torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """The row of a trial: matrices first, then all other parameters, filled up with zeros.

    Attributes:
        slots: Of each parameter, in the order of the model's.
        num_decaying: How many numbers from the first on belong to matrices.
        size: P.
    """

    slots: tuple[Slot, ...]
    num_decaying: int
    size: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a network's parameters."""
        turned = {each.weight for each in model.modules() if isinstance(each, nn.Linear)}
        params = list(model.parameters())
        slots: dict[int, Slot] = {}
        size = num_decaying = 0
        for place in sorted(range(len(params)), key=lambda place: params[place].ndim < 2):
            param = params[place]
            shape = tuple(param.shape[::-1]) if param in turned else tuple(param.shape)
            slots[place] = Slot(size, shape, param in turned)
            size += -(-param.numel() // ALIGNED_NUMBERS) * ALIGNED_NUMBERS
            if param.ndim >= 2:
                num_decaying = size
        return cls(tuple(slots[place] for place in range(len(params))), num_decaying, size)

    def views(self, rows_KP: Tensor) -> list[Tensor]:
        """Each parameter of all trials, as views of their rows: [K, *shape]."""
        return [
            rows_KP[:, slot.start : slot.end].view(len(rows_KP), *slot.shape) for slot in self.slots
        ]

    def row(self, tensors: Sequence[Tensor]) -> Tensor:
        """The row [P] of a model's parameters."""
        row_P = torch.zeros(self.size)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            value = tensor.detach().T if slot.is_turned else tensor.detach()
            row_P[slot.start : slot.end] = value.reshape(-1)
        return row_P

    def tensors(self, row_P: Tensor) -> list[Tensor]:
        """The parameters of a row, each a copy as the model has it."""
        found = [row_P[slot.start : slot.end].view(slot.shape) for slot in self.slots]
        return [
            (value.T if slot.is_turned else value).clone(memory_format=torch.contiguous_format)
            for slot, value in zip(self.slots, found, strict=True)
        ]
