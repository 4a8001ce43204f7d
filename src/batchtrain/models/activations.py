"""The activations by the names of the spec, each with torch's own parameters."""

from __future__ import annotations

from typing import get_args

from torch import nn
from torch.nn.modules import activation as torch_activations

from batchtrain.spec.model import ActivationName

__all__ = ["new_activation"]

_CLASSES = {name.lower(): getattr(nn, name) for name in torch_activations.__all__}


def _class_of(name: str) -> type[nn.Module]:
    """A class of torch.nn; its lower-case name with or without underscores is the spec's."""
    found: type[nn.Module] = _CLASSES[name.replace("_", "")]
    return found


ACTIVATIONS = {name: _class_of(name) for name in get_args(ActivationName)}


def new_activation(name: ActivationName) -> nn.Module:
    """Build an activation; it works on each number alone and keeps the shape."""
    return ACTIVATIONS[name]()
