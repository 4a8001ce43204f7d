"""The tabular ResNet, and the layer that adds its input to its output.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from batchtrain.models.activations import new_activation
from batchtrain.models.features import embedding_of, join_features, joined_width
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import ResNetModel

__all__ = ["Residual", "ResidualNet"]


class Residual(nn.Sequential):
    """Layers whose input is added to their output; both have the same width."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gave it
        """Give the input plus what the layers make of it."""
        added = input
        for layer in self:
            added = layer(added)
        return input + added


class ResidualNet(nn.Module):
    """A linear layer, residual blocks, then norm, activation and the output layer.

    Gorishniy et al. 2021, arXiv 2106.11959, section 3.2, with LayerNorm in place of BatchNorm.
    """

    def __init__(self, spec: ResNetModel, inputs: ModelInputs) -> None:
        super().__init__()
        self.embedding = embedding_of(spec.embedding_dim, inputs)
        width = joined_width(inputs.num_numeric, self.embedding)
        self.first = nn.Linear(width, spec.width)
        self.blocks = nn.Sequential(*(_block(spec) for _ in range(spec.blocks)))
        self.last = nn.Sequential(
            nn.LayerNorm(spec.width),
            new_activation(spec.activation),
            nn.Linear(spec.width, inputs.num_outputs),
        )

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """Give the outputs [B, K]: logits, or predicted values."""
        features = join_features(numeric_BF, codes_BC, self.embedding)
        outputs_BK: Tensor = self.last(self.blocks(self.first(features)))
        return outputs_BK


def _block(spec: ResNetModel) -> Residual:
    hidden = max(1, int(spec.width * spec.hidden_factor))
    layers = [
        nn.LayerNorm(spec.width),
        nn.Linear(spec.width, hidden),
        new_activation(spec.activation),
        *_dropout(spec.hidden_dropout),
        nn.Linear(hidden, spec.width),
        *_dropout(spec.residual_dropout),
    ]
    return Residual(*layers)


def _dropout(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share > 0 else []
