"""The exponential moving average of the weights: kept beside them, and measured in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from batchtrain.errors import ArtifactError
from batchtrain.spec.training import Ema

__all__ = ["WeightAverage"]


class WeightAverage:
    """After each step, decay times the average plus the rest times the newest weights.

    The average is of what is trained. What is not (frozen weights, buffers such as those of a
    batch normalisation) is as it is in the model.

    Attributes:
        updates: How often it was updated: the steps that were taken.
    """

    def __init__(self, spec: Ema, model: nn.Module) -> None:
        """Begin with the model's present weights; they are already where the model trains."""
        self.updates = 0
        self._spec = spec
        trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
        self._names = [name for name, _ in trained]
        self._weights: list[Tensor] = [each for _, each in trained]
        self._averages = [each.detach().clone() for each in self._weights]
        place = {id(each): number for number, each in enumerate(self._weights)}
        # Tied weights have several names.
        self._all_names = {
            name: place[id(each)]
            for name, each in model.named_parameters(remove_duplicate=False)
            if id(each) in place
        }

    def decay(self) -> float:
        """What is left of the average in the next update.

        With `ramp` it begins small, as TensorFlow's `ExponentialMovingAverage` with `num_updates`
        has it: min(decay, (1 + n) / (10 + n)) after n steps.
        """
        steps = self.updates + 1
        if not self._spec.ramp:
            return self._spec.decay
        return min(self._spec.decay, (1 + steps) / (10 + steps))

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average; nothing waits for the device."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay())
        self.updates += 1

    def named(self) -> dict[str, Tensor]:
        """The live averages under every name that their weights have in the model."""
        return {name: self._averages[number] for name, number in self._all_names.items()}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Put the averages in the place of the weights, and the same weights back after it.

        They are copied: the last bits of a product depend on where its numbers lie, and compiled
        kernels remember addresses.
        """
        with torch.no_grad():
            weights = [each.detach().clone() for each in self._weights]
            torch._foreach_copy_(self._weights, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, weights)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of each average on the CPU, under the first name of its weight."""
        return {
            name: average.to("cpu", copy=True).contiguous()
            for name, average in zip(self._names, self._averages, strict=True)
        }

    def load(self, tensors: Mapping[str, Tensor], updates: int, *, where: str) -> None:
        """Go on from what `tensors` gave after so many updates.

        Raises:
            ArtifactError: If they are of another model.
        """
        expected = {
            name: (each.shape, each.dtype)
            for name, each in zip(self._names, self._averages, strict=True)
        }
        found = {name: (each.shape, each.dtype) for name, each in tensors.items()}
        if found != expected:
            differing = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            raise ArtifactError(
                f"expected the averages of this model's weights in {where}, found others for "
                f"{', '.join(map(repr, differing[:5]))}. Delete the run's folder to start it anew"
            )
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(tensors[name])
        self.updates = updates
