"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn, optim

from batchtrain.models.fused import FusedAdam, FusedSgd
from batchtrain.models.lean import LEAN
from batchtrain.spec import optimizers as specs
from batchtrain.spec.optimizers import Decaying, OptimizerSpec

__all__ = ["build_optimizer", "decays"]

KINDS: dict[type[OptimizerSpec], Callable[..., optim.Optimizer]] = {
    specs.Sgd: optim.SGD,
    specs.Adam: optim.Adam,
    specs.AdamW: optim.AdamW,
    specs.Adamax: optim.Adamax,
    specs.NAdam: optim.NAdam,
    specs.RAdam: optim.RAdam,
    specs.Adagrad: optim.Adagrad,
    specs.Adadelta: optim.Adadelta,
    specs.RMSprop: optim.RMSprop,
    specs.Rprop: optim.Rprop,
    specs.ASGD: optim.ASGD,
    specs.Adafactor: optim.Adafactor,
}


def build_optimizer(
    spec: OptimizerSpec, params: Iterable[nn.Parameter], *, fused: bool
) -> optim.Optimizer:
    """Build the optimizer; weight decay applies to what the spec says, by default to everything.

    Args:
        spec: Which optimizer.
        params: The parameters to train, on their device.
        fused: Take torch's one-kernel step, or where there is none the step that hands all
            parameters to a kernel at once. They round differently, so it is chosen once a run.
    """
    taken = list(params)
    options = {**spec.model_dump(exclude={"kind", "weight_decay_on"}), "params": taken}
    # Apart even where nothing decays: a change may let it decay later.
    if isinstance(spec, Decaying) and spec.weight_decay_on == "matrices":
        options["params"] = _matrices_apart(taken)
    if isinstance(spec, specs.Sgd | specs.Adam | specs.AdamW):
        # One kernel takes one type on one device; torch sorts a mixture, which is rare, by itself.
        is_lean = fused and len({(each.dtype, each.device) for each in taken}) == 1
        return _fused(spec, options) if is_lean else KINDS[type(spec)](**options, fused=fused)
    if isinstance(spec, specs.ASGD):
        # Its step would otherwise wait for the device once for each parameter.
        options["capturable"] = all(each.is_cuda for each in taken)
    if not fused:
        return KINDS[type(spec)](**options)
    options["fused" if isinstance(spec, specs.Adagrad) else "foreach"] = True
    return LEAN[KINDS[type(spec)]](**options)


def decays(spec: OptimizerSpec, params: Sequence[nn.Parameter]) -> bool:
    """Whether a group of the optimizer is one that weight decay applies to."""
    return isinstance(spec, Decaying) and (
        spec.weight_decay_on == "all" or all(each.ndim >= 2 for each in params)
    )


def _fused(
    spec: specs.Sgd | specs.Adam | specs.AdamW, options: dict[str, Any]
) -> FusedSgd | FusedAdam:
    if isinstance(spec, specs.Sgd):
        return FusedSgd(**options, fused=True)
    return FusedAdam(**options, decoupled_weight_decay=isinstance(spec, specs.AdamW))


def _matrices_apart(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters of two or more dimensions, and the others, which do not decay."""
    matrices = [each for each in params if each.ndim >= 2]
    others = [each for each in params if each.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
