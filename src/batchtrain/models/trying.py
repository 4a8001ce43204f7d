"""A model tried out and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["values_restored"]


@contextmanager
def values_restored(model: nn.Module) -> Iterator[None]:
    """Put the values of parameters and buffers back afterwards, into the same tensors."""
    parameters = [(each, each.detach().clone()) for each in model.parameters()]
    buffers = [
        (module, name, value, None if value is None else value.detach().clone())
        for module in model.modules()
        for name, value in module._buffers.items()  # named_buffers leaves out those that are None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
            for module, name, buffer, saved in buffers:
                if buffer is not None and saved is not None:
                    buffer.copy_(saved)
                # A forward may assign another tensor instead of changing this one.
                module._buffers[name] = buffer
