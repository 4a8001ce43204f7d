"""What happens to the weights once the gradient of a batch is there.

One object does it, made once for a run: what is not asked for is not in it, and a plain run takes
the optimizer's step and nothing else. Nothing here waits for the device but the policies that have
to decide on the host whether a step is taken: `on_nan: skip`, and the scaling of float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from batchtrain.errors import DivergedError
from batchtrain.points import passed
from batchtrain.spec.training import TrainingSpec
from batchtrain.training.ranks import Ranks
from batchtrain.training.state import TrainState

__all__ = ["MOST_LEFT_OUT", "Update", "make_update"]

MOST_LEFT_OUT = 100
"""So many steps in a row that change nothing are no bad luck: nothing will change any more."""


class Update(Protocol):
    """Takes a step along the gradient that is in the parameters, or leaves it out."""

    def __call__(self, parts: Tensor) -> Tensor | None:
        """Take the step.

        Args:
            parts: This rank's parts of the batch's loss, on the device.

        Returns:
            The parts, which are NaN where `roll_back` is to find that the step went wrong; None
            where `skip` leaves the step out, on all ranks alike.

        Raises:
            DivergedError: If too many steps in a row were left out.
        """
        ...


def make_update(
    spec: TrainingSpec, state: TrainState, ranks: Ranks, note: Callable[[str], None]
) -> Update:
    """What a spec asks for, and nothing besides.

    Args:
        spec: What to do with a gradient.
        state: Whose step it is; its model has the weights that the steps are to change.
        ranks: Who has to agree on a step that is left out.
        note: Told of the first step that is left out.
    """
    if (
        spec.clip_norm is None
        and spec.clip_value is None
        and spec.on_nan == "stop"
        and state.average is None
        and state.scaler is None
    ):
        take = state.optimizer.step

        def plain(parts: Tensor) -> Tensor:
            take()
            return parts

        return plain
    return _CheckedUpdate(spec, state, ranks, note)


class _CheckedUpdate:
    """Looks at the gradient before the step and at the weights after it, as far as it must."""

    def __init__(
        self, spec: TrainingSpec, state: TrainState, ranks: Ranks, note: Callable[[str], None]
    ) -> None:
        self._spec = spec
        self._state = state
        self._ranks = ranks
        self._note = note
        self._weights = [each for each in state.model.parameters() if each.requires_grad]
        self._may_leave_out = spec.on_nan == "skip" or state.scaler is not None
        self._rolls_back = spec.on_nan == "roll_back"
        self._needs_norm = spec.clip_norm is not None or self._may_leave_out or self._rolls_back
        # A forward over rows that are no numbers spoils running means as well.
        self._buffers = list(state.model.buffers()) if self._may_leave_out else []
        self._good_buffers = [each.clone() for each in self._buffers]

    def __call__(self, parts: Tensor) -> Tensor | None:
        """See `Update`."""
        norm = self._norm() if self._needs_norm else None
        if norm is not None and self._may_leave_out and not self._is_usable(parts, norm):
            self._leave_out()
            # Where only the scale of the loss was too large, its value is as good as any.
            return None if self._spec.on_nan == "skip" else parts
        self._clip(norm)
        self._state.optimizer.step()
        if self._may_leave_out:
            self._keep_buffers()
        if self._state.average is not None:
            self._state.average.update()
        passed("step.averaged")
        if norm is not None and self._rolls_back:
            # 0 times what is not finite is NaN: told on the device, read with the losses.
            parts = parts + 0 * (norm + _norm_of(self._weights))
        return parts

    def _norm(self) -> Tensor:
        """The 2-norm of the whole gradient, a scalar on its device."""
        return _norm_of([each.grad for each in self._weights if each.grad is not None])

    def _is_usable(self, parts: Tensor, norm: Tensor) -> bool:
        """Whether the step is taken; the scaling of the loss learns of it.

        The gradient is the same on all ranks, and their parts of the loss are not.
        """
        scaler = self._state.scaler
        is_finite = bool(norm.isfinite())
        if scaler is not None:
            scaler.update(is_finite)
        if self._spec.on_nan != "skip":
            return is_finite
        mine = (parts.sum() * 0 + norm * 0).reshape(1)
        return all(bool(each.isfinite()) for each in self._ranks.gather_tensor(mine))

    def _leave_out(self) -> None:
        counts = self._state.left_out
        counts.total += 1
        counts.in_epoch += 1
        counts.in_a_row += 1
        with torch.no_grad():
            for buffer, good in zip(self._buffers, self._good_buffers, strict=True):
                buffer.copy_(good)
        if counts.total == 1 and self._state.scaler is None:
            self._note(
                f"step {self._state.step} is left out, since its loss or gradient is not finite; "
                "so are those to come, and the report counts them"
            )
        if counts.in_a_row == MOST_LEFT_OUT:
            raise DivergedError(
                f"expected a finite loss and gradient now and then, found none in "
                f"{MOST_LEFT_OUT} steps in a row, the last of them step {self._state.step}. Lower "
                "`training.optimizer.lr`, or look for extreme values in the data"
            )
        passed("step.left_out")

    def _clip(self, norm: Tensor | None) -> None:
        if self._spec.clip_norm is not None and norm is not None:
            clip_grads_with_norm_(self._weights, self._spec.clip_norm, norm, foreach=True)
        elif self._spec.clip_value is not None:
            clip_grad_value_(self._weights, self._spec.clip_value, foreach=True)

    def _keep_buffers(self) -> None:
        self._state.left_out.in_a_row = 0
        with torch.no_grad():
            for buffer, good in zip(self._buffers, self._good_buffers, strict=True):
                good.copy_(buffer)


@torch.no_grad()
def _norm_of(tensors: Sequence[Tensor]) -> Tensor:
    return get_total_norm(list(tensors), 2.0, foreach=True)
