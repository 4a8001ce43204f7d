"""The linear and logistic model.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchtrain.models.inputs import ModelInputs, code_offsets

__all__ = ["LinearNet"]


class LinearNet(nn.Module):
    """A weight per numeric feature and output, one per category and output, and a bias.

    All category weights start at zero: the model is convex, so the start decides nothing but what
    a category weighs that training never shows, code 0 included, and that should be nothing.
    Numeric weights and bias have torch's default start; without numeric features the bias is
    zero. Without categorical columns the parameters are `linear.weight` and `linear.bias`.
    """

    offsets_C: Tensor

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self.has_numeric = inputs.num_numeric > 0
        self.has_categories = bool(inputs.cardinalities)
        if self.has_numeric:
            self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        else:
            self.bias = nn.Parameter(torch.zeros(inputs.num_outputs))
        if self.has_categories:
            self.categories = nn.Embedding(sum(inputs.cardinalities), inputs.num_outputs)
            nn.init.zeros_(self.categories.weight)
            offsets_C = code_offsets(inputs.cardinalities)
            self.register_buffer("offsets_C", offsets_C, persistent=False)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """Give the outputs [B, K]: logits, or predicted values."""
        outputs_BK: Tensor = self.linear(numeric_BF) if self.has_numeric else self.bias
        if self.has_categories:
            outputs_BK = outputs_BK + self.categories(codes_BC + self.offsets_C).sum(dim=1)
        return outputs_BK
