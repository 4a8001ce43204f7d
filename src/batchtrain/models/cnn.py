"""A small convolutional network for columns that are the pixels of images.

Shapes: B rows, F numeric features, C categorical columns, K outputs.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from batchtrain.errors import Problem, SpecError
from batchtrain.models.activations import new_activation
from batchtrain.models.features import embedding_of, join_features, joined_width
from batchtrain.models.inputs import ModelInputs
from batchtrain.spec.model import CnnModel

__all__ = ["CnnNet", "image_shape"]

POOLED = 2
"""The height and width of what pooling makes one pixel of; the usual choice (LeCun et al. 1998)."""


def image_shape(spec: CnnModel, num_numeric: int) -> tuple[int, int, int]:
    """Give the channels, height and width of the image that a row's numeric features are.

    Raises:
        SpecError: If that many features are no such image.

    Example:
        >>> image_shape(CnnModel(kind="cnn"), 64)
        (1, 8, 8)
    """
    side = math.isqrt(num_numeric)
    if spec.shape == "auto":
        if num_numeric == 0 or side * side != num_numeric:
            raise _wrong(
                "shape",
                "with `auto`, expected as many numeric features as a square image of one channel "
                f"has pixels, such as {max(1, side) ** 2} or {(side + 1) ** 2}, "
                f"found {num_numeric}",
                "Write `shape: [channels, height, width]`, and look at which columns are numeric.",
            )
        return 1, side, side
    channels, height, width = spec.shape
    if channels * height * width != num_numeric:
        raise _wrong(
            "shape",
            f"expected {channels} x {height} x {width} = {channels * height * width} numeric "
            f"features, one for each pixel, found {num_numeric}",
            "The product of `model.shape` is the number of numeric columns, indicators of missing "
            "values included.",
        )
    return spec.shape


class CnnNet(nn.Module):
    """Convolutions on the numeric features as an image, then hidden layers on what they give.

    Embedded categories join after the convolutions.

    Raises:
        SpecError: If the numeric features are no image of the spec's shape, or pooling leaves
            nothing of it.
    """

    def __init__(self, spec: CnnModel, inputs: ModelInputs) -> None:
        super().__init__()
        self.image_shape = image_shape(spec, inputs.num_numeric)
        num_pixels = spec.channels[-1] * math.prod(_last_size(spec, self.image_shape))
        self.convolutions = nn.Sequential(*_convolutions(spec, self.image_shape[0]))
        self.embedding = embedding_of(spec.embedding_dim, inputs)
        width = joined_width(num_pixels, self.embedding)
        layers: list[nn.Module] = []
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), new_activation(spec.activation)]
            if spec.dropout > 0:
                layers.append(nn.Dropout(spec.dropout))
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, inputs.num_outputs))

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        """Give the outputs [B, K]: logits, or predicted values."""
        # [B, F] -> [B, channels, height, width] -> [B, pixels that are left]
        images = numeric_BF.unflatten(1, self.image_shape)
        pixels_BF: Tensor = self.convolutions(images).flatten(start_dim=1)
        outputs_BK: Tensor = self.layers(join_features(pixels_BF, codes_BC, self.embedding))
        return outputs_BK


def _convolutions(spec: CnnModel, channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wanted in spec.channels:
        # Half the kernel on each side keeps height and width.
        layers.append(nn.Conv2d(channels, wanted, spec.kernel, padding=spec.kernel // 2))
        layers.append(new_activation(spec.activation))
        if spec.pooling != "none":
            layers.append(nn.MaxPool2d(POOLED) if spec.pooling == "max" else nn.AvgPool2d(POOLED))
        channels = wanted
    return layers


def _last_size(spec: CnnModel, shape: tuple[int, int, int]) -> tuple[int, int]:
    """The height and width after all convolutions."""
    if spec.pooling == "none":
        return shape[1:]
    shrunk = POOLED ** len(spec.channels)
    height, width = shape[1] // shrunk, shape[2] // shrunk
    if height * width == 0:
        most = int(math.log2(min(shape[1:])))
        raise _wrong(
            "channels",
            f"each of the {len(spec.channels)} convolutions is followed by pooling, which halves "
            f"height and width; of {shape[1]} x {shape[2]} pixels nothing would be left",
            f"Write at most {most} channels, or `pooling: none`."
            if most
            else "Write `pooling: none`.",
        )
    return height, width


def _wrong(key: str, message: str, hint: str) -> SpecError:
    return SpecError([Problem(where="", key=f"model.{key}", message=message, hint=hint)])
