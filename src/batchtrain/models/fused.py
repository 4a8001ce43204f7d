"""torch's optimizers with fused kernels, without what `torch.optim` wraps around them.

A step of `torch.optim` passes profiler ranges, hooks and guards for `torch.compile`. Around a
small model they take three times as long as the kernel, and the first guard imports the
compiler, which takes longer than many a run. Options, state and bits are those of torch; a test
holds them against it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from batchtrain.points import passed

__all__ = ["FusedAdam", "FusedSgd"]

_load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
_sgd_step = inspect.unwrap(SGD.step)


def _drop_gradients(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


class FusedSgd(SGD):
    """SGD, with or without momentum."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = _load_state_dict

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        _drop_gradients(self)

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody passes one
        """Take one step; a parameter without a gradient stays as it is."""
        with torch.no_grad():
            _sgd_step(self)

    step.hooked = True  # type: ignore[attr-defined]  # without it torch adds a profiler range


class _Moments(NamedTuple):
    """The state of some parameters, each list in their order.

    Attributes:
        means: `exp_avg`.
        squares: `exp_avg_sq`.
        steps: `step`, which are views of `counts`.
        counts: All step counts in one tensor, so that one operation raises them.
    """

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counts: Tensor


class FusedAdam(Adam):
    """Adam, or AdamW where the weight decay is decoupled."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled_weight_decay: bool,
    ) -> None:
        """See `torch.optim.Adam`; all parameters are of one type and on one device."""
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            fused=True,
        )
        self._moments: dict[int, _Moments] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        _drop_gradients(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        _load_state_dict(self, state_dict)
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
        moments = self._moments_of(number, params, whole=len(params) == len(group["params"]))
        moments.counts.add_(1.0)
        passed("optimizer.inside")
        beta1, beta2 = group["betas"]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        kernel(
            params,
            [parameter.grad for parameter in params],
            moments.means,
            moments.squares,
            [],
            moments.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _moments_of(self, number: int, params: list[nn.Parameter], *, whole: bool) -> _Moments:
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
        states = [self.state[parameter] for parameter in params]
        counts = torch.stack([state["step"] for state in states])
        for state, step in zip(states, counts.unbind(), strict=True):
            state["step"] = step
        moments = _Moments(
            means=[state["exp_avg"] for state in states],
            squares=[state["exp_avg_sq"] for state in states],
            steps=[state["step"] for state in states],
            counts=counts,
        )
        if whole:
            self._moments[number] = moments
        return moments
