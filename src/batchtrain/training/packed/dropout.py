"""The masks of dropout: for each trial those that its own run would have drawn.

A run seeds torch's generator once a step, and each dropout layer draws a number below 1 for every
value: the value stays where the number is below the share that is kept. So trials of one seed see
the same numbers, whatever share each of them keeps, and one draw serves all of them.

Shapes: K trials, B rows, H the width of a layer, N numbers of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from batchtrain.training.packed.layers import Buffers, Masks
from batchtrain.training.passes import dropout_seed, seed_dropout

__all__ = ["DropoutMasks"]


class DropoutMasks:
    """Draws the masks of all trials, step by step."""

    def __init__(
        self,
        seeds: Sequence[int],
        shares: Sequence[Sequence[float]],
        widths: Sequence[int],
        device: torch.device,
    ) -> None:
        """Take over what the trials drop.

        Args:
            seeds: Of the trials' specs.
            shares: What each trial drops in each dropout layer; a layer that drops nothing draws
                nothing.
            widths: H of each dropout layer, in the order in which they draw.
            device: Where the masks are needed.
        """
        self._shares = [tuple(each) for each in shares]
        self._widths = list(widths)
        self._seeds = [dropout_seed(seed, 0) for seed in seeds]
        self._device = device
        self._is_needed = any(share > 0 for each in shares for share in each)
        self._is_shared = device.type == "cpu" and draws_can_be_shared()
        self._generator = torch.Generator()
        self._buffers = Buffers()
        # Layers that draw nothing shift the draws of those after them.
        keys = [(seed, *self._draws(number)) for number, seed in enumerate(self._seeds)]
        drawing = sorted({key for key in keys if any(key[1:])})
        self._groups = drawing
        self._group_K = torch.tensor([drawing.index(key) if key in drawing else 0 for key in keys])
        keep = torch.tensor(
            [[1 - share for share in each] for each in shares], dtype=torch.float64
        ).reshape(len(keys), len(self._widths))
        self._keep_K1 = [column.reshape(-1, 1) for column in keep.unbind(dim=1)]
        # In float32 and divided, as torch's own dropout does it.
        scale = torch.ones(keep.shape) / keep.float()
        self._scale_K1 = [column.reshape(-1, 1) for column in scale.unbind(dim=1)]

    def draw(self, step: int, rows: int) -> Masks:
        """The masks [K, B, H] of a global step; none where no trial drops anything.

        Args:
            step: From which the draws are seeded.
            rows: B.
        """
        if not self._is_needed:
            return ()
        if not self._is_shared:
            return self._drawn_by_each(step, rows)
        edges = [0, *accumulate(rows * width for width in self._widths)]
        numbers_GN = self._numbers(edges[-1])
        for (seed, *draws), numbers_N in zip(self._groups, numbers_GN.unbind(), strict=True):
            self._generator.manual_seed(seed + step)
            for is_drawn, (first, end) in zip(draws, pairwise(edges), strict=True):
                if is_drawn:
                    numbers_N[first:end].uniform_(generator=self._generator)
                else:
                    numbers_N[first:end].zero_()  # Below 1, which is what such a layer keeps.
        if len(self._groups) > 1:
            numbers_GN = numbers_GN.index_select(0, self._group_K)
        return [
            self._mask(numbers_GN[:, first:end], place, rows)
            for place, (first, end) in enumerate(pairwise(edges))
        ]

    def _mask(self, numbers_GN: Tensor, place: int, rows: int) -> Tensor:
        """[K, B, H] of 0, and where the number is below what is kept, of the scale."""
        keep_K1, scale_K1 = self._keep_K1[place], self._scale_K1[place]
        shape = (len(keep_K1), numbers_GN.shape[1])
        # With an output of the inputs' type the comparison takes a third of the time.
        kept_KN = self._buffers.get(f"kept {place}", shape, keep_K1)
        mask_KN = self._buffers.get(f"mask {place}", shape, scale_K1)
        mask_KN.copy_(torch.lt(numbers_GN, keep_K1, out=kept_KN)).mul_(scale_K1)
        return mask_KN.view(-1, rows, self._widths[place])

    def _numbers(self, count: int) -> Tensor:
        return self._buffers.get("numbers", (len(self._groups), count), self._keep_K1[0])

    def _draws(self, number: int) -> Iterator[bool]:
        return (share > 0 for share in self._shares[number])

    def _drawn_by_each(self, step: int, rows: int) -> Masks:
        """The masks as torch's dropout itself makes them, trial after trial."""
        masks = [
            torch.ones((len(self._seeds), rows, width), device=self._device)
            for width in self._widths
        ]
        for number, (seed, shares) in enumerate(zip(self._seeds, self._shares, strict=True)):
            seed_dropout(seed + step, self._device)
            for share, mask in zip(shares, masks, strict=True):
                if share > 0:
                    mask[number] = F.dropout(mask[number], share)
        return masks


@cache
def draws_can_be_shared() -> bool:
    """Whether torch's dropout on a CPU compares numbers that can be drawn apart from it.

    A build of torch may draw by a library instead; then each trial draws its own masks.
    """
    generator = torch.Generator()
    for keep in (0.25, 0.7):
        drawn = torch.empty(300).bernoulli_(keep, generator=generator.manual_seed(1))
        drawn = torch.cat([drawn, torch.empty(33).bernoulli_(keep, generator=generator)])
        numbers = torch.empty(333, dtype=torch.float64)
        numbers.uniform_(generator=generator.manual_seed(1))
        if not torch.equal(drawn > 0, numbers < keep):
            return False
    return True
