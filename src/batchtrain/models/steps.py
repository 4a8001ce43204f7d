"""What a model makes of a batch: its loss for training, its outputs and loss for measuring.

A network of the user's may have steps of its own; see `protocol`. For all others this is the
forward pass and the loss, and nothing is asked beyond the type of the model.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, Reduction
from batchtrain.models.protocol import check_losses, own_methods, own_valid_step

__all__ = ["OwnSteps", "batch_loss", "measured", "trainable"]

Kind: TypeAlias = Literal["plain", "own", "steps", "wrapper"]
"""Of a model: one without steps of its own, one with, `OwnSteps` around such a one, and what may be
around any of them (DDP, torch.compile)."""


class OwnSteps(nn.Module):
    """A network whose forward pass is its own training step: it gives each row's loss.

    DDP and torch.compile see only what goes through `forward`. The network stays what it was, and
    so do the names of its parameters: its state is saved from the network itself.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a network that `trainable` found to need it."""
        super().__init__()
        self.model = model

    def forward(
        self, numeric_BF: Tensor, codes_BC: Tensor, target_B: Tensor, weight_B: Tensor | None
    ) -> Tensor:
        """Give the loss of each row, without its weight: [B]."""
        return _own_losses(self.model, Batch(numeric_BF, codes_BC, target_B, weight_B))


_kinds: dict[type, Kind] = {OwnSteps: "steps"}
"""Filled by `trainable`, so that a compiler that looks at a step finds it as it stays."""


def trainable(model: nn.Module) -> nn.Module:
    """The module whose forward pass is all of a training step, for DDP or compile to wrap.

    It is the model itself unless that has a `train_step` or a `loss` of its own.
    """
    return OwnSteps(model) if _kind(model) == "own" else model


def batch_loss(
    model: nn.Module, loss: Loss, batch: Batch, denominator: Tensor | float | None
) -> Tensor:
    """The training loss of a batch, a scalar to call `backward` on; see `Loss.__call__`.

    Args:
        model: What `trainable` gave, or what wraps that (DDP, torch.compile).
        loss: What is minimised.
        batch: The rows.
        denominator: By what the weighted sum over the rows is divided.

    Raises:
        TrainingError: If a step of the user's gives no loss for a row.
    """
    kind = _kind(model)
    if kind == "wrapper":
        kind = _kind_inside(model)
    if kind == "plain":
        return loss(model(batch.numeric_BF, batch.codes_BC), batch, denominator)
    losses_B = _own_losses(model, batch) if kind == "own" else model(*_tensors(batch))
    if losses_B.shape != batch.target_B.shape:
        check_losses(losses_B, len(batch.target_B), "the model's own step")
    return _of_rows(loss)(losses_B.float(), batch, denominator)


@torch.no_grad()
def measured(model: nn.Module, loss: Loss, batch: Batch) -> tuple[Tensor, Tensor]:
    """The outputs [B, K] for a batch, and the weighted sum of its losses as a float64 scalar.

    Args:
        model: In evaluation mode; wrapped or not.
        loss: What is summed, where the model has no other.
        batch: The rows.

    Raises:
        TrainingError: If a step of the user's gives no loss for a row.
    """
    network = _network(model)
    if not own_methods(type(network)):
        outputs_BK = model(batch.numeric_BF, batch.codes_BC)
        return outputs_BK, loss.sum(outputs_BK, batch)
    outputs_BK, losses_B = own_valid_step(network, batch)
    if losses_B is None:
        return outputs_BK, loss.sum(outputs_BK, batch)
    check_losses(losses_B, len(batch.target_B), "the model's own validation")
    return outputs_BK, _of_rows(loss).sum(losses_B, batch)


def _kind(model: nn.Module) -> Kind:
    """What a model is, by its class: asked in every step, so the answer is kept."""
    network = type(model)
    kind = _kinds.get(network)
    if kind is None:
        kind = _kinds[network] = _kind_of(network)
    return kind


def _kind_of(network: type) -> Kind:
    if issubclass(network, OwnSteps):
        return "steps"
    # Importing the class of torch.compile's wrapper would import the compiler, for seconds.
    if issubclass(network, DistributedDataParallel) or network.__name__ == "OptimizedModule":
        return "wrapper"
    return "own" if {"loss", "train_step"} & set(own_methods(network)) else "plain"


def _kind_inside(model: nn.Module) -> Kind:
    """What a wrapper is around; steps that it would pass by are an error.

    Raises:
        TrainingError: If the model was not made `trainable` before.
    """
    while (kind := _kind(model)) == "wrapper":
        model = _wrapped(model)
    if kind == "own":
        raise TrainingError(
            f"expected {type(model).__name__} to be made trainable before it was wrapped, found "
            "its own steps outside of the wrapper's forward. This is a fault of batchtrain, please "
            "report it"
        )
    return kind


def _wrapped(model: nn.Module) -> nn.Module:
    inside: Any = model._modules.get("_orig_mod", model._modules.get("module"))
    found: nn.Module = inside
    return found


def _network(model: nn.Module) -> nn.Module:
    """The model itself, out of everything that is around it."""
    while (kind := _kind(model)) in {"wrapper", "steps"}:
        model = _wrapped(model) if kind == "wrapper" else model.get_submodule("model")
    return model


def _own_losses(model: Any, batch: Batch) -> Tensor:
    """What a network's own step gives: `train_step`, or else `forward` and its `loss`."""
    if hasattr(model, "train_step"):
        losses_B: Tensor = model.train_step(batch)
    else:
        outputs_BK = model(batch.numeric_BF, batch.codes_BC)
        # As a loss of ours: in float32, whatever the forward pass is done in.
        with torch.autocast(outputs_BK.device.type, enabled=False):
            losses_B = model.loss(outputs_BK.float(), batch)
    return losses_B


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return batch.numeric_BF, batch.codes_BC, batch.target_B, batch.weight_B


def _of_rows(loss: Loss) -> Loss:
    """The same weighting and dividing, of losses that are there already."""
    return replace(loss, kernel=_given)


def _given(outputs_BK: Tensor, target_B: Tensor, reduction: Reduction) -> Tensor:  # noqa: ARG001
    """A kernel whose outputs are the losses themselves: [B]."""
    if outputs_BK.dtype in (torch.bfloat16, torch.float16):
        # A sum of many rows needs more than 16 bits.
        outputs_BK = outputs_BK.float()
    if reduction == "none":
        return outputs_BK
    return outputs_BK.mean() if reduction == "mean" else outputs_BK.sum()
