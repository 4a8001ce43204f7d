"""The multi-layer perceptron with embeddings for the categories.

Shapes: B rows, F numeric features, C categorical columns, D the width of an embedding, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from batchtrain.models.inputs import ModelInputs, code_offsets
from batchtrain.spec.model import MlpModel

__all__ = ["MlpNet", "auto_embedding_dim"]

MAX_AUTO_EMBEDDING_DIM = 50

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


def auto_embedding_dim(cardinalities: Sequence[int]) -> int:
    """Choose the shared width of the embeddings from the largest column.

    The rule of thumb is fastai's, `1.6 * n ** 0.56` (`fastai.tabular.model.emb_sz_rule`), with a
    lower cap, since all columns share the width of the largest.

    Example:
        >>> auto_embedding_dim([3, 4])
        4
    """
    return min(MAX_AUTO_EMBEDDING_DIM, math.ceil(1.6 * math.pow(max(cardinalities), 0.56)))


class MlpNet(nn.Module):
    """Embeddings beside the numeric features, then per hidden layer linear, activation, dropout.

    All categorical columns share one table, so that a batch takes one lookup whatever C is. The
    row of code 0 starts at zero in each column, so that a category that training never shows is
    neutral.
    """

    offsets_C: Tensor

    def __init__(self, spec: MlpModel, inputs: ModelInputs) -> None:
        super().__init__()
        self.has_numeric = inputs.num_numeric > 0
        self.has_categories = bool(inputs.cardinalities)
        width = inputs.num_numeric
        if self.has_categories:
            embedding_dim = _embedding_dim(spec.embedding_dim, inputs.cardinalities)
            offsets_C = code_offsets(inputs.cardinalities)
            self.embedding = nn.Embedding(sum(inputs.cardinalities), embedding_dim)
            self.register_buffer("offsets_C", offsets_C, persistent=False)
            with torch.no_grad():
                self.embedding.weight[offsets_C] = 0.0
            width += embedding_dim * len(inputs.cardinalities)
        self.layers = _layers(spec, width, inputs.num_outputs)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """Give the outputs [B, K]: logits, or predicted values."""
        outputs_BK: Tensor = self.layers(self._features(numeric_BF, codes_BC))
        return outputs_BK

    def _features(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """All features of a row, side by side: [B, F + C * D]."""
        if not self.has_categories:
            return numeric_BF
        # [B, C] -> [B, C, D] -> [B, C * D]
        embedded: Tensor = self.embedding(codes_BC + self.offsets_C).flatten(start_dim=1)
        return torch.cat((numeric_BF, embedded), dim=1) if self.has_numeric else embedded


def _embedding_dim(asked: Literal["auto"] | int, cardinalities: Sequence[int]) -> int:
    return auto_embedding_dim(cardinalities) if asked == "auto" else asked


def _layers(spec: MlpModel, width: int, num_outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in spec.hidden:
        layers += [nn.Linear(width, hidden), ACTIVATIONS[spec.activation]()]
        if spec.dropout > 0:
            layers.append(nn.Dropout(spec.dropout))
        width = hidden
    layers.append(nn.Linear(width, num_outputs))
    return nn.Sequential(*layers)
