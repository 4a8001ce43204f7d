"""Products in 16 bits: which part of a step they are for, and how float16 is kept from underflow.

The weights stay what they are. Under `torch.autocast` the forward pass of the model computes in 16
bits what can be (products above all), its backward pass follows, and the loss of its outputs is
computed in float32.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from batchtrain.errors import ArtifactError, TrainingError
from batchtrain.models.losses import Kernel, Loss, Reduction
from batchtrain.spec.training import Precision

__all__ = ["LossScaler", "autocast_of", "in_float32", "precision_in_force"]

FIRST_SCALE = 2.0**16
GROWTH = 2.0
BACKOFF = 0.5
GROWTH_STEPS = 2000
"""The numbers of `torch.amp.GradScaler`, after Micikevicius et al., Mixed Precision Training (2018,
arXiv 1710.03740), section 3.2. All scales are powers of two, so that scaling rounds nothing."""

TYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class LossScaler:
    """What the loss of float16 is multiplied by, so that small gradients do not become 0.

    It begins high, falls by half at each gradient that is not finite, and doubles after so many
    steps in a row that were: as `torch.amp.GradScaler`, whose state would be pickled.

    Attributes:
        scale: The factor of the next step.

    Example:
        >>> scaler = LossScaler()
        >>> scaler.update(False)
        >>> scaler.scale
        32768.0
    """

    def __init__(self) -> None:
        self.scale = FIRST_SCALE
        self._good_steps = 0

    def update(self, is_finite: bool) -> None:
        """Learn whether the latest gradient was finite; a step along another is left out."""
        if not is_finite:
            self.scale *= BACKOFF
            self._good_steps = 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_STEPS:
            self._good_steps = 0
            if self.scale * GROWTH < torch.finfo(torch.float32).max:
                self.scale *= GROWTH

    def state(self) -> dict[str, Any]:
        """Give what a resume needs, as a JSON object."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the scaler that gave `state` would.

        Raises:
            ArtifactError: If it is something else.
        """
        try:
            scale, good_steps = float(state["scale"]), int(state["good_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "expected the scale of the loss in the checkpoint of a float16 training, found "
                f"{state!r}. Delete the run's folder to start it anew"
            ) from error
        self.scale, self._good_steps = scale, good_steps


def precision_in_force(asked: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """What a step computes in; `auto` is float32.

    Raises:
        TrainingError: If the device cannot.
    """
    if asked in {"auto", "float32"}:
        return "float32"
    found: Precision = "bfloat16" if asked == "bfloat16" else "float16"
    if device.type == "cuda":
        can = found == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.amp.is_autocast_available(device.type)
    if not can:
        raise TrainingError(
            f"training.precision: expected a device that computes in {found}, found {device}. Use "
            "`precision: float32`, or another device"
        )
    return found


def autocast_of(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[Any]] | None:
    """What the forward pass is done in; None where it needs nothing."""
    if precision == "float32":
        return None
    dtype = TYPES[precision]

    def autocast() -> AbstractContextManager[Any]:
        # Copies of weights in 16 bits are kept until the outermost context ends, which a training
        # is in: the next step would compute with the weights of this one.
        return torch.autocast(device.type, dtype=dtype, cache_enabled=False)

    return autocast


@dataclass(frozen=True)
class _InFloat32:
    """A loss of outputs that were computed in 16 bits."""

    kernel: Kernel

    def __call__(self, outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:
        """See `Kernel`."""
        with torch.autocast(outputs_BK.device.type, enabled=False):
            return self.kernel(outputs_BK.float(), target_B, reduction)


def in_float32(loss: Loss) -> Loss:
    """The loss, computed in float32 whatever the outputs are and whatever is around it."""
    return replace(loss, kernel=_InFloat32(loss.kernel))
