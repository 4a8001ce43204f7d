"""Every optimizer of a spec, each with options that are not its defaults, and torch's own."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from batchtrain.spec import optimizers as specs
from batchtrain.spec.optimizers import Decaying, OptimizerSpec

__all__ = ["EVERY_KIND", "EVERY_OPTIMIZER", "TORCH", "torch_optimizer"]

EVERY_KIND: tuple[type[OptimizerSpec], ...] = get_args(get_args(OptimizerSpec)[0])

TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
}
HAS_FUSED = ("sgd", "adam", "adamw", "adagrad")

DECAY = {"weight_decay": 0.01}
EVERY_OPTIMIZER: dict[str, OptimizerSpec] = {
    "sgd": specs.Sgd(kind="sgd", lr=0.1),
    "dampening": specs.Sgd(kind="sgd", lr=0.1, momentum=0.9, dampening=0.2),
    "nesterov": specs.Sgd(kind="sgd", lr=0.1, momentum=0.9, nesterov=True, **DECAY),
    "adam": specs.Adam(kind="adam", lr=0.1, betas=(0.8, 0.95), **DECAY),
    "amsgrad": specs.Adam(kind="adam", lr=0.1, amsgrad=True),
    "adamw": specs.AdamW(kind="adamw", lr=0.1),
    "adamw_amsgrad": specs.AdamW(kind="adamw", lr=0.1, eps=1e-3, amsgrad=True),
    "adamax": specs.Adamax(kind="adamax", lr=0.1, betas=(0.8, 0.95), eps=1e-3, **DECAY),
    "nadam": specs.NAdam(kind="nadam", lr=0.1, momentum_decay=0.1, eps=1e-3, **DECAY),
    "nadam_decoupled": specs.NAdam(
        kind="nadam", betas=(0.8, 0.9), decoupled_weight_decay=True, **DECAY
    ),
    # Its mean squares can be trusted from step 4 on with such a beta; it steps otherwise then.
    "radam": specs.RAdam(kind="radam", lr=0.1, betas=(0.8, 0.95), eps=1e-3, **DECAY),
    "radam_decoupled": specs.RAdam(kind="radam", decoupled_weight_decay=True, **DECAY),
    "adagrad": specs.Adagrad(
        kind="adagrad", lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1, eps=1e-3, **DECAY
    ),
    "adadelta": specs.Adadelta(kind="adadelta", lr=0.5, rho=0.8, eps=1e-3, **DECAY),
    "rmsprop": specs.RMSprop(kind="rmsprop", lr=0.1, alpha=0.9, eps=1e-3, **DECAY),
    "rmsprop_centered": specs.RMSprop(kind="rmsprop", momentum=0.8, centered=True),
    "rprop": specs.Rprop(kind="rprop", lr=0.1, etas=(0.4, 1.5), step_sizes=(1e-3, 1.0)),
    # The average begins at step 3, so that what it is made with changes on the way.
    "asgd": specs.ASGD(kind="asgd", lr=0.1, lambd=0.1, alpha=0.5, t0=3.0, **DECAY),
    "adafactor": specs.Adafactor(
        kind="adafactor", lr=0.1, beta2_decay=-0.5, eps=(1e-6, 1e-2), d=2.0, **DECAY
    ),
    "adafactor_default": specs.Adafactor(kind="adafactor"),
}


def torch_optimizer(
    spec: OptimizerSpec, model: nn.Module, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Torch's own with the same options, with its fused kernel or all parameters at once."""
    options: dict[str, Any] = spec.model_dump(exclude={"kind", "weight_decay_on"})
    if fused:
        options["fused" if spec.kind in HAS_FUSED else "foreach"] = True
    assert not isinstance(spec, Decaying) or spec.weight_decay_on == "all"
    return TORCH[spec.kind](model.parameters(), **options)
