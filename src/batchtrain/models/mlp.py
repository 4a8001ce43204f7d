"""The multi-layer perceptron with embeddings for the categories.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from batchtrain.errors import Problem, SpecError
from batchtrain.models.activations import new_activation
from batchtrain.models.features import embedding_of, join_features, joined_width
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.resnet import Residual
from batchtrain.spec.model import InitName, MlpModel

__all__ = ["MlpNet"]


class MlpNet(nn.Module):
    """Embeddings beside the numeric features, then per hidden layer linear, activation, dropout.

    Where the spec asks for it, a LayerNorm stands before each activation, and a hidden layer that
    is as wide as its input adds that input to its output.

    Raises:
        SpecError: If `residual` is asked for and no hidden layer is as wide as its input.
    """

    def __init__(self, spec: MlpModel, inputs: ModelInputs) -> None:
        super().__init__()
        self.embedding = embedding_of(spec.embedding_dim, inputs)
        width = joined_width(inputs.num_numeric, self.embedding)
        widths = [width, *spec.hidden]
        if spec.residual:
            _check_residual(widths)
        layers: list[nn.Module] = []
        for before, hidden in pairwise(widths):
            layer = _hidden_layer(spec, before, hidden)
            layers += [Residual(*layer)] if spec.residual and before == hidden else layer
        _initialise(spec.init, layers)
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], inputs.num_outputs))

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """Give the outputs [B, K]: logits, or predicted values."""
        outputs_BK: Tensor = self.layers(join_features(numeric_BF, codes_BC, self.embedding))
        return outputs_BK


def _check_residual(widths: Sequence[int]) -> None:
    """A setting that would have no effect is refused."""
    if all(before != hidden for before, hidden in pairwise(widths)):
        problem = Problem(
            where="",
            key="model.residual",
            message="expected a hidden layer that is as wide as its input, found the widths "
            f"{' to '.join(map(str, widths))}, of which the first is that of all features",
            hint="Write equal widths, such as `hidden: [128, 128]`, or remove `residual`.",
        )
        raise SpecError([problem])


def _hidden_layer(spec: MlpModel, width: int, hidden: int) -> list[nn.Module]:
    layer: list[nn.Module] = [nn.Linear(width, hidden)]
    if spec.normalization == "layer":
        layer.append(nn.LayerNorm(hidden))
    layer.append(new_activation(spec.activation))
    if spec.dropout > 0:
        layer.append(nn.Dropout(spec.dropout))
    return layer


def _initialise(init: InitName, layers: Iterable[nn.Module]) -> None:
    """Draw the weights of the hidden layers anew, unless torch's own draw is asked for.

    Uniform draws only: those of a normal distribution differ between CPUs in the last bits.
    """
    if init == "auto":
        return
    linears = [each for layer in layers for each in layer.modules() if isinstance(each, nn.Linear)]
    for linear in linears:
        inputs, outputs = linear.in_features, linear.out_features
        # The variance of a uniform distribution is a third of its bound's square.
        variance = {"kaiming": 2 / inputs, "xavier": 2 / (inputs + outputs), "lecun": 1 / inputs}
        bound = math.sqrt(3 * variance[init])
        nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.zeros_(linear.bias)
