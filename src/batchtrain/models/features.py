"""All features of a row side by side: the numeric ones, then the embeddings of its categories.

Shapes: B rows, F numeric features, C categorical columns, D the width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from batchtrain.models.inputs import ModelInputs, code_offsets

__all__ = [
    "CategoryEmbedding",
    "auto_embedding_dim",
    "embedding_of",
    "join_features",
    "joined_width",
]

MAX_AUTO_EMBEDDING_DIM = 50


def auto_embedding_dim(cardinalities: Sequence[int]) -> int:
    """Choose the shared width of the embeddings from the largest column.

    The rule of thumb is fastai's, `1.6 * n ** 0.56` (`fastai.tabular.model.emb_sz_rule`), with a
    lower cap, since all columns share the width of the largest.

    Example:
        >>> auto_embedding_dim([3, 4])
        4
    """
    return min(MAX_AUTO_EMBEDDING_DIM, math.ceil(1.6 * math.pow(max(cardinalities), 0.56)))


class CategoryEmbedding(nn.Embedding):
    """One table for all categorical columns, so that a batch takes one lookup whatever C is.

    The row of code 0 starts at zero in each column, so that a category that training never shows
    is neutral.
    """

    offsets_C: Tensor

    def __init__(self, embedding_dim: int, inputs: ModelInputs) -> None:
        super().__init__(sum(inputs.cardinalities), embedding_dim)
        self.joined_width = embedding_dim * len(inputs.cardinalities)
        self.has_numeric = inputs.num_numeric > 0
        offsets_C = code_offsets(inputs.cardinalities)
        self.register_buffer("offsets_C", offsets_C, persistent=False)
        with torch.no_grad():
            self.weight[offsets_C] = 0.0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gave it
        """Look up the codes [B, C]; gives [B, C * D]."""
        # [B, C] -> [B, C, D] -> [B, C * D]
        return super().forward(input + self.offsets_C).flatten(start_dim=1)


def embedding_of(asked: Literal["auto"] | int, inputs: ModelInputs) -> CategoryEmbedding | None:
    """Build the embedding of all categorical columns; None where there is no such column."""
    if not inputs.cardinalities:
        return None
    embedding_dim = auto_embedding_dim(inputs.cardinalities) if asked == "auto" else asked
    return CategoryEmbedding(embedding_dim, inputs)


def joined_width(num_others: int, embedding: CategoryEmbedding | None) -> int:
    """How wide the features of a row are once they are joined."""
    return num_others + (0 if embedding is None else embedding.joined_width)


def join_features(
    others_BF: Tensor, codes_BC: Tensor, embedding: CategoryEmbedding | None
) -> Tensor:
    """Put the embedded categories [B, C * D] beside what the numeric features became [B, F]."""
    if embedding is None:
        return others_BF
    embedded: Tensor = embedding(codes_BC)
    return torch.cat((others_BF, embedded), dim=1) if embedding.has_numeric else embedded
