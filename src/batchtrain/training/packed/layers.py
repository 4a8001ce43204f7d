"""The layers of a pack's networks: forward and backward, all trials in one call of an operation.

What is computed for a trial is what its own network computes, operation by operation. The passes
are written by hand where a small step spends its time: in products, relu, dropout and embeddings.
They write into memory of their own, since new memory in each step costs more than what is computed
in it, and leave the gradients where the optimizer reads them. Everything else is differentiated by
torch.autograd, layer by layer.

A layer keeps what its backward pass needs until the next forward pass, and changes no argument.

Shapes: K trials, B rows, I inputs and O outputs of a layer, C categorical columns, S codes of all
of them, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchtrain.models.resnet import Residual

__all__ = [
    "Bias",
    "Buffers",
    "Chain",
    "Embedded",
    "Given",
    "Layer",
    "LayerMaker",
    "Linear",
    "Masks",
]

Masks = Sequence[Tensor]
"""What each dropout layer multiplies by, float32 [K, B, H] each; none where nothing is dropped."""

MOST_ONE_HOT = 128
"""With so many codes at most a product with their indicators is faster than a scatter."""


class Given(NamedTuple):
    """What the layers of a pass work with.

    Attributes:
        weights: Each parameter of all trials: [K, *shape], a linear layer's as [K, I, O].
        masks: See `Masks`.
        grads: Where the gradients go, as the weights lie; none in a pass that only measures.
    """

    weights: Sequence[Tensor]
    masks: Masks = ()
    grads: Sequence[Tensor] = ()


class Layer(Protocol):
    """One layer of all trials."""

    def forward(self, values: Tensor, given: Given) -> Tensor:
        """The outputs for inputs [K, B, I]."""
        ...

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        """The gradient of the inputs of the last forward pass, for that of its outputs."""
        ...


class Buffers:
    """Memory that is used again in each step."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.Size], Tensor] = {}

    def get(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Room of this shape; what lies there is what the last user left."""
        key = (name, torch.Size(shape))
        if key not in self._tensors:
            self._tensors[key] = torch.empty(key[1], dtype=like.dtype, device=like.device)
        return self._tensors[key]


class Chain:
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    def forward(self, values: Tensor, given: Given) -> Tensor:
        """See `Layer.forward`."""
        for layer in self.layers:
            values = layer.forward(values, given)
        return values

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        """See `Layer.backward`."""
        for layer in reversed(self.layers):
            grad = layer.backward(grad, given)
        return grad


class Linear:
    """A product of matrices for each trial, and its bias.

    Attributes:
        is_first: Whether nobody wants the gradient of the inputs.
    """

    def __init__(self, weight: int, bias: int) -> None:
        self.is_first = False
        self._weight = weight
        self._bias = bias
        self._buffers = Buffers()

    def forward(self, values: Tensor, given: Given) -> Tensor:
        """See `Layer.forward`."""
        weight_KIO = given.weights[self._weight]
        self._values = values
        out = self._buffers.get("outputs", (*values.shape[:2], weight_KIO.shape[2]), values)
        bias_K1O = given.weights[self._bias].unsqueeze(1)
        return torch.baddbmm(bias_K1O, values, weight_KIO, out=out)

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        """See `Layer.backward`."""
        of_weight = self._buffers.get("weight", given.weights[self._weight].shape, grad)
        # Right into the gradients, which do not lie side by side, it would be K calls.
        torch.bmm(self._values.mT, grad, out=of_weight)
        given.grads[self._weight].copy_(of_weight)
        torch.sum(grad, dim=1, out=given.grads[self._bias])
        if self.is_first:
            return grad
        out = self._buffers.get("grad", self._values.shape, grad)
        return torch.bmm(grad, given.weights[self._weight].mT, out=out)


class Bias:
    """The same outputs for every row, as of a linear model without numeric features."""

    def __init__(self, bias: int) -> None:
        self._bias = bias

    def forward(self, values: Tensor, given: Given) -> Tensor:
        """See `Layer.forward`."""
        return given.weights[self._bias].unsqueeze(1).expand(-1, values.shape[1], -1)

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        """See `Layer.backward`."""
        torch.sum(grad, dim=1, out=given.grads[self._bias])
        return grad


class _Relu:
    def __init__(self) -> None:
        self._buffers = Buffers()

    def forward(self, values: Tensor, given: Given) -> Tensor:
        out = self._buffers.get("outputs", values.shape, values)
        self._outputs = torch.clamp(values, min=0.0, out=out)
        return out

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        out = self._buffers.get("grad", grad.shape, grad)
        found: Tensor = torch.ops.aten.threshold_backward.grad_input(
            grad, self._outputs, 0.0, grad_input=out
        )
        return found


class _Dropout:
    def __init__(self, number: int) -> None:
        self._number = number
        self._buffers = Buffers()

    def forward(self, values: Tensor, given: Given) -> Tensor:
        return self._masked("outputs", values, given)

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        return self._masked("grad", grad, given)

    def _masked(self, name: str, values: Tensor, given: Given) -> Tensor:
        if not given.masks:
            return values
        out = self._buffers.get(name, values.shape, values)
        return torch.mul(values, given.masks[self._number], out=out)


class _Residual:
    def __init__(self, inside: Chain) -> None:
        self._inside = inside

    def forward(self, values: Tensor, given: Given) -> Tensor:
        return values + self._inside.forward(values, given)

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        return grad + self._inside.backward(grad, given)


class _Differentiated:
    """What torch.autograd differentiates: a function of the inputs and some parameters."""

    def __init__(self, function: Callable[..., Tensor], *places: int) -> None:
        self._function = function
        self._places = places

    def forward(self, values: Tensor, given: Given) -> Tensor:
        arguments = [values, *(given.weights[place] for place in self._places)]
        if not given.grads:
            return self._function(*arguments)
        self._arguments = [each.detach().requires_grad_() for each in arguments]
        self._outputs = self._function(*self._arguments)
        return self._outputs.detach()

    def backward(self, grad: Tensor, given: Given) -> Tensor:
        found, *of_parameters = torch.autograd.grad(self._outputs, self._arguments, grad)
        for place, of_parameter in zip(self._places, of_parameters, strict=True):
            given.grads[place].copy_(of_parameter)
        return found


class Embedded:
    """The rows of each trial's table of embeddings."""

    def __init__(self, table: int, offsets_C: Tensor, num_codes: int) -> None:
        """Tell where the table is.

        Args:
            table: The place of the parameter, [K, S, D].
            offsets_C: Where each column's codes begin in it.
            num_codes: S.
        """
        self._table = table
        self._offsets_C = offsets_C
        self._num_codes = num_codes

    def forward(self, codes_KBC: Tensor, given: Given) -> Tensor:
        """Look up codes, which are expanded where all trials have the same: [K, B, C, D]."""
        table_KSD = given.weights[self._table]
        self._rows = codes_KBC + self._offsets_C.to(codes_KBC.device)
        return F.embedding(self._in_one_table(), table_KSD.flatten(end_dim=1))

    def backward(self, grad: Tensor, given: Given) -> None:
        """Leave the gradient of the table, for that of the rows [K, B, C, D]."""
        into = given.grads[self._table]
        if self._num_codes > MOST_ONE_HOT:
            flat = torch.ops.aten.embedding_dense_backward(
                grad.contiguous(), self._in_one_table(), len(grad) * self._num_codes, -1, False
            )
            into.copy_(flat.view_as(into))
            return
        codes_S = torch.arange(self._num_codes, device=grad.device)
        rows = self._rows.flatten(start_dim=1)
        if self._rows.stride(0) == 0:
            is_code = (rows[:1].unsqueeze(1) == codes_S.view(1, -1, 1)).to(grad.dtype)
            is_code = is_code.expand(len(grad), -1, -1)
        else:
            is_code = (rows.unsqueeze(1) == codes_S.view(1, -1, 1)).to(grad.dtype)
        into.copy_(torch.bmm(is_code, grad.flatten(1, 2)))

    def _in_one_table(self) -> Tensor:
        trials = torch.arange(len(self._rows), device=self._rows.device).view(-1, 1, 1)
        return self._rows + trials * self._num_codes


class LayerMaker:
    """Makes the layers of a network's modules.

    Attributes:
        dropout_widths: The width of each dropout layer that was made, in the order in which they
            draw.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take over the places of a network's parameters."""
        self.dropout_widths: list[int] = []
        self._places = {id(param): place for place, param in enumerate(model.parameters())}
        self._numbers = count()
        self._width = 0

    def place(self, parameter: Tensor) -> int:
        """The place of a parameter among the network's."""
        return self._places[id(parameter)]

    def chain(self, modules: Sequence[nn.Module]) -> Chain:
        """The layers of modules that are applied one after the other."""
        return Chain([layer for module in modules for layer in self._layers(module)])

    def linear(self, module: nn.Linear) -> Linear:
        """A linear layer."""
        self._width = module.out_features
        return Linear(self.place(module.weight), self.place(module.bias))

    def _layers(self, module: nn.Module) -> list[Layer]:
        match module:
            case Residual():
                return [_Residual(self.chain(list(module)))]
            case nn.Sequential():
                return list(self.chain(list(module)).layers)
            case nn.Linear():
                return [self.linear(module)]
            case nn.ReLU():
                return [_Relu()]
            case nn.Dropout():
                self.dropout_widths.append(self._width)
                return [_Dropout(next(self._numbers))]
            case nn.LayerNorm():
                places = (self.place(module.weight), self.place(module.bias))
                return [_Differentiated(_norm_of(module), *places)]
            case nn.PReLU():
                return [_Differentiated(_prelu, self.place(module.weight))]
        # What has no weights works on each number alone.
        return [_Differentiated(module)]


def _norm_of(module: nn.LayerNorm) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    shape, eps = list(module.normalized_shape), module.eps

    def norm(values: Tensor, weight_KI: Tensor, bias_KI: Tensor) -> Tensor:
        normal = F.layer_norm(values, shape, eps=eps)
        return torch.addcmul(bias_KI.unsqueeze(1), normal, weight_KI.unsqueeze(1))

    return norm


def _prelu(values: Tensor, weight_K1: Tensor) -> Tensor:
    return torch.where(values > 0, values, values * weight_K1.unsqueeze(1))
