"""The networks of a pack as one.

`torch.func.vmap` over stacked weights gives the same numbers, as a test says, for any network; a
prototype with it took about 1.6 times the time. See `layers` for where that goes.

Shapes: K trials, B rows, F numeric features, C categorical columns, D the width of an embedding,
O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from batchtrain.models.inputs import code_offsets
from batchtrain.models.linear import LinearNet
from batchtrain.models.mlp import MlpNet
from batchtrain.models.resnet import ResidualNet
from batchtrain.training.packed.layers import (
    Bias,
    Chain,
    Embedded,
    Given,
    Layer,
    LayerMaker,
    Linear,
)

__all__ = ["PackedNetwork"]


class PackedNetwork:
    """K networks that differ in their weights.

    Attributes:
        dropout_widths: The width of each dropout layer, in the order in which they draw.
    """

    def __init__(self, model: nn.Module, cardinalities: Sequence[int]) -> None:
        """Take over the structure of a network, which has every dropout layer that a trial has.

        Args:
            model: An `MlpNet`, `ResidualNet` or `LinearNet`.
            cardinalities: The codes of each categorical column.
        """
        maker = LayerMaker(model)
        self.dropout_widths = maker.dropout_widths
        self._codes = (code_offsets(cardinalities), sum(cardinalities))
        self._embedded: Embedded | None = None
        self._adds = isinstance(model, LinearNet)
        self._chain: Layer = self._chain_of(model, maker)
        self._num_numeric = 0

    def forward(self, numeric_KBF: Tensor, codes_KBC: Tensor, given: Given) -> Tensor:
        """Give the outputs [K, B, O].

        Args:
            numeric_KBF: The numeric features; expanded where all trials have the same rows.
            codes_KBC: Likewise, the category codes.
            given: The weights; with masks and gradients where a backward pass follows.
        """
        if self._embedded is None:
            return self._chain.forward(numeric_KBF, given)
        embedded = self._embedded.forward(codes_KBC, given)
        if self._adds:
            return self._chain.forward(numeric_KBF, given) + embedded.sum(dim=2)
        self._num_numeric = numeric_KBF.shape[2]
        joined = embedded.flatten(start_dim=2)
        if self._num_numeric:
            joined = torch.cat((numeric_KBF, joined), dim=2)
        return self._chain.forward(joined, given)

    def backward(self, grad_KBO: Tensor, codes_KBC: Tensor, given: Given) -> None:
        """Leave the gradients of all weights, for that of the outputs of the last forward pass."""
        grad = self._chain.backward(grad_KBO, given)
        if self._embedded is None:
            return
        # All codes of a row have the same gradient where they are added up.
        columns = (*codes_KBC.shape, -1)
        if self._adds:
            of_codes = grad_KBO.unsqueeze(2).expand(columns)
        else:
            of_codes = grad[:, :, self._num_numeric :].reshape(columns)
        self._embedded.backward(of_codes, given)

    def _chain_of(self, model: nn.Module, maker: LayerMaker) -> Chain:
        if isinstance(model, LinearNet):
            if model.has_categories:
                self._embedded = Embedded(maker.place(model.categories.weight), *self._codes)
            if not model.has_numeric:
                return Chain([Bias(maker.place(model.bias))])
            chain = maker.chain([model.linear])
        elif isinstance(model, MlpNet):
            chain = maker.chain([model.layers])
        elif isinstance(model, ResidualNet):
            chain = maker.chain([model.first, model.blocks, model.last])
        else:
            raise TypeError(f"expected a network that can be packed, found {type(model).__name__}")
        if isinstance(model, MlpNet | ResidualNet) and model.embedding is not None:
            self._embedded = Embedded(maker.place(model.embedding.weight), *self._codes)
        first = chain.layers[0]
        if isinstance(first, Linear) and (self._adds or self._embedded is None):
            first.is_first = True
        return chain
