"""The networks of a pack as one: every operation works on all trials at once.

What is computed for a trial is what its own network computes, operation by operation, with a
product of matrices for each trial in one call (`torch.baddbmm`). Dropout multiplies by masks that
are given, since each trial has its own.

`torch.func.vmap` over stacked weights would do the same for any network, at 1.3 times the time: its
weights are gathered and its gradients scattered anew in each step, and a mask would be an input.

Shapes: K trials, B rows, F numeric features, C categorical columns, D the width of an embedding,
H the width of a layer, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchtrain.models.features import CategoryEmbedding
from batchtrain.models.inputs import code_offsets
from batchtrain.models.linear import LinearNet
from batchtrain.models.mlp import MlpNet
from batchtrain.models.resnet import Residual, ResidualNet

__all__ = ["Masks", "PackedNetwork"]

Masks = Sequence[Tensor]
"""What each dropout layer multiplies by, float32 [K, B, H] each; none where nothing is dropped."""


class _Given(NamedTuple):
    """What the layers work with.

    Attributes:
        weights: Each parameter of all trials.
        masks: See `Masks`.
    """

    weights: Sequence[Tensor]
    masks: Masks


Layer = Callable[[Tensor, _Given], Tensor]
"""A layer's outputs for its inputs [K, B, H]."""

Forward = Callable[[Tensor, Tensor, _Given], Tensor]
"""The outputs for numeric features [K, B, F] and category codes [K, B, C]."""


class PackedNetwork:
    """The forward pass of K networks that differ in their weights.

    Attributes:
        dropout_widths: H of each dropout layer, in the order in which they draw.
    """

    def __init__(self, model: nn.Module, cardinalities: Sequence[int]) -> None:
        """Take over the structure of a network, which has every dropout layer that a trial has.

        Args:
            model: An `MlpNet`, `ResidualNet` or `LinearNet`.
            cardinalities: The codes of each categorical column.
        """
        self.dropout_widths: list[int] = []
        self._places = {id(param): place for place, param in enumerate(model.parameters())}
        self._dropouts = count()
        self._width = 0
        self._num_codes = sum(cardinalities)
        self._offsets_C = code_offsets(cardinalities)
        self._layers: list[Layer]
        self._forward = self._of(model)

    def __call__(
        self, weights: Sequence[Tensor], numeric_KBF: Tensor, codes_KBC: Tensor, masks: Masks = ()
    ) -> Tensor:
        """Give the outputs [K, B, O].

        Args:
            weights: Each parameter of all trials, as `Layout.views` gives them.
            numeric_KBF: The numeric features; expanded where all trials have the same rows.
            codes_KBC: Likewise, the category codes.
            masks: Of the dropout layers; none while the networks are measured.
        """
        return self._forward(numeric_KBF, codes_KBC, _Given(weights, masks))

    def _of(self, model: nn.Module) -> Forward:
        if isinstance(model, LinearNet):
            return self._linear_net(model)
        if isinstance(model, MlpNet):
            layers = list(self._layers_of(model.layers))
        elif isinstance(model, ResidualNet):
            parts = (model.first, model.blocks, model.last)
            layers = [layer for part in parts for layer in self._layers_of(part)]
        else:
            raise TypeError(f"expected a network that can be packed, found {type(model).__name__}")
        join = self._join(model.embedding)

        def forward(numeric_KBF: Tensor, codes_KBC: Tensor, given: _Given) -> Tensor:
            values = join(numeric_KBF, codes_KBC, given)
            for layer in layers:
                values = layer(values, given)
            return values

        return forward

    def _linear_net(self, model: LinearNet) -> Forward:
        linear = self._linear(model.linear) if model.has_numeric else self._bias(model.bias)
        if not model.has_categories:
            return lambda numeric_KBF, _codes, given: linear(numeric_KBF, given)
        table = self._places[id(model.categories.weight)]

        def forward(numeric_KBF: Tensor, codes_KBC: Tensor, given: _Given) -> Tensor:
            outputs_KBO = linear(numeric_KBF, given)
            return outputs_KBO + self._looked_up(given.weights[table], codes_KBC).sum(dim=2)

        return forward

    def _join(self, embedding: CategoryEmbedding | None) -> Forward:
        """See `join_features`."""
        if embedding is None:
            return lambda numeric_KBF, _codes, _given: numeric_KBF
        place, has_numeric = self._places[id(embedding.weight)], embedding.has_numeric

        def join(numeric_KBF: Tensor, codes_KBC: Tensor, given: _Given) -> Tensor:
            embedded = self._looked_up(given.weights[place], codes_KBC).flatten(start_dim=2)
            return torch.cat((numeric_KBF, embedded), dim=2) if has_numeric else embedded

        return join

    def _looked_up(self, tables_KSD: Tensor, codes_KBC: Tensor) -> Tensor:
        """The rows of each trial's table: [K, B, C, D]."""
        trials = torch.arange(len(tables_KSD), device=codes_KBC.device).view(-1, 1, 1)
        offsets = self._offsets_C.to(codes_KBC.device) + trials * self._num_codes
        return F.embedding(codes_KBC + offsets, tables_KSD.flatten(end_dim=1))

    def _layers_of(self, module: nn.Module) -> Iterator[Layer]:
        """The layers of a module in the order in which it applies them."""
        if isinstance(module, Residual):
            inside = [layer for part in module for layer in self._layers_of(part)]
            yield _residual(inside)
        elif isinstance(module, nn.Sequential):
            for part in module:
                yield from self._layers_of(part)
        elif isinstance(module, nn.Linear):
            yield self._linear(module)
        elif isinstance(module, nn.LayerNorm):
            yield self._norm(module)
        elif isinstance(module, nn.Dropout):
            self.dropout_widths.append(self._width)
            yield _dropout(next(self._dropouts))
        elif isinstance(module, nn.PReLU):
            yield self._prelu(module)
        else:
            # What has no weights works on each number alone.
            yield lambda values, _given: module(values)

    def _linear(self, module: nn.Linear) -> Layer:
        weight, bias = self._places[id(module.weight)], self._places[id(module.bias)]
        self._width = module.out_features

        def linear(values_KBI: Tensor, given: _Given) -> Tensor:
            weights = given.weights
            return torch.baddbmm(weights[bias].unsqueeze(1), values_KBI, weights[weight])

        return linear

    def _bias(self, parameter: nn.Parameter) -> Layer:
        bias = self._places[id(parameter)]

        def constant(values_KBF: Tensor, given: _Given) -> Tensor:
            return given.weights[bias].unsqueeze(1).expand(-1, values_KBF.shape[1], -1)

        return constant

    def _norm(self, module: nn.LayerNorm) -> Layer:
        weight, bias = self._places[id(module.weight)], self._places[id(module.bias)]
        shape, eps = list(module.normalized_shape), module.eps

        def norm(values: Tensor, given: _Given) -> Tensor:
            scale, shift = given.weights[weight].unsqueeze(1), given.weights[bias].unsqueeze(1)
            return torch.addcmul(shift, F.layer_norm(values, shape, eps=eps), scale)

        return norm

    def _prelu(self, module: nn.PReLU) -> Layer:
        weight = self._places[id(module.weight)]

        def prelu(values: Tensor, given: _Given) -> Tensor:
            return torch.where(values > 0, values, values * given.weights[weight].unsqueeze(1))

        return prelu


def _residual(layers: Sequence[Layer]) -> Layer:
    def residual(values: Tensor, given: _Given) -> Tensor:
        added = values
        for layer in layers:
            added = layer(added, given)
        return values + added

    return residual


def _dropout(number: int) -> Layer:
    def dropout(values: Tensor, given: _Given) -> Tensor:
        return values * given.masks[number] if given.masks else values

    return dropout
