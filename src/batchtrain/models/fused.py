"""torch's SGD and Adam with fused kernels; see `lean.py` for what they leave out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from batchtrain.models.lean import Lean, bare_step
from batchtrain.points import passed

__all__ = ["FusedAdam", "FusedSgd"]


class FusedSgd(Lean, SGD):
    """SGD, with or without momentum."""

    take_step = bare_step(SGD)


class _Moments(NamedTuple):
    """The state of some parameters, each list in their order.

    Attributes:
        means: `exp_avg`.
        squares: `exp_avg_sq`.
        largest: `max_exp_avg_sq` where the largest square counts, else nothing.
        steps: `step`, which are views of `counts`.
        counts: All step counts in one tensor, so that one operation raises them.
    """

    means: list[Tensor]
    squares: list[Tensor]
    largest: list[Tensor]
    steps: list[Tensor]
    counts: Tensor


class FusedAdam(Lean, Adam):
    """Adam, or AdamW where the weight decay is decoupled."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        amsgrad: bool,
        decoupled_weight_decay: bool,
    ) -> None:
        """See `torch.optim.Adam`; all parameters are of one type and on one device."""
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            decoupled_weight_decay=decoupled_weight_decay,
            fused=True,
        )
        self._moments: dict[int, _Moments] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._moments.clear()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody passes one
        """Take one step; a parameter without a gradient stays as it is."""
        with torch.no_grad():
            for number, group in enumerate(self.param_groups):
                self._step_group(number, group)

    step.hooked = True  # type: ignore[attr-defined]  # without it torch adds a profiler range

    def _step_group(self, number: int, group: dict[str, Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        whole = len(params) == len(group["params"])
        moments = self._moments_of(number, params, whole=whole, amsgrad=group["amsgrad"])
        moments.counts.add_(1.0)
        passed("optimizer.inside")
        beta1, beta2 = group["betas"]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        kernel(
            params,
            [parameter.grad for parameter in params],
            moments.means,
            moments.squares,
            moments.largest,
            moments.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=False,
        )

    def _moments_of(
        self, number: int, params: list[nn.Parameter], *, whole: bool, amsgrad: bool
    ) -> _Moments:
        """The state of a group's parameters; kept from step to step while all take part."""
        if whole and number in self._moments:
            return self._moments[number]
        self._moments.pop(number, None)
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
                if amsgrad:
                    self.state[parameter]["max_exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in params]
        counts = torch.stack([state["step"] for state in states])
        for state, step in zip(states, counts.unbind(), strict=True):
            state["step"] = step
        moments = _Moments(
            means=[state["exp_avg"] for state in states],
            squares=[state["exp_avg_sq"] for state in states],
            largest=[state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            steps=[state["step"] for state in states],
            counts=counts,
        )
        if whole:
            self._moments[number] = moments
        return moments
