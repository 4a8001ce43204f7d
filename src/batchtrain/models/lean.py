"""torch's optimizers without what `torch.optim` wraps around a step.

A step of `torch.optim` passes profiler ranges, hooks and guards for `torch.compile`. Around a
small model they take three times as long as a fused kernel, and the first guard imports the
compiler, which takes longer than many a run. Options, state and bits are those of torch; a test
holds them against it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import (
    ASGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adamax,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

__all__ = ["LEAN", "Lean", "bare_step"]


class Lean(Optimizer):
    """What each of them does without the wrapping; to be named before torch's own class."""

    take_step: Callable[[], Any]
    """Torch's step, `bare_step` of its class."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody passes one
        """Take one step; a parameter without a gradient stays as it is."""
        with torch.no_grad():
            self.take_step()

    step.hooked = True  # type: ignore[attr-defined]  # without it torch adds a profiler range

    def _accelerator_graph_capture_health_check(self) -> None:
        """Nothing: torch asks here in each step whether somebody captures a graph."""


def bare_step(kind: type[Optimizer]) -> Any:
    """The step of an optimizer of torch's, without what is wrapped around it."""
    return inspect.unwrap(kind.step)


def _lean(kind: type[Optimizer]) -> type[Optimizer]:
    return type(f"Lean{kind.__name__}", (Lean, kind), {"take_step": bare_step(kind)})


LEAN: dict[Callable[..., Optimizer], Callable[..., Optimizer]] = {
    kind: _lean(kind)
    for kind in (Adamax, NAdam, RAdam, Adagrad, Adadelta, RMSprop, Rprop, ASGD, Adafactor)
}
"""The lean form of each optimizer that has no class in `fused.py`."""
