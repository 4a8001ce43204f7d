"""The `model` section: which network, and its shape."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "ActivationName",
    "CnnModel",
    "CustomModel",
    "InitName",
    "LinearModel",
    "MlpModel",
    "ModelSpec",
    "ResNetModel",
]

Width = Annotated[int, Field(ge=1, le=65536)]

Share = Annotated[float, Field(ge=0, lt=1)]

ASSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A name that is a file's on every system: it is one in the bundle."""

ActivationName = Literal[
    "relu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "relu6",
    "mish",
    "softplus",
    "softsign",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "logsigmoid",
    "tanhshrink",
    "softshrink",
    "hardshrink",
    "prelu",
    "rrelu",
]
"""Activations of torch.nn by their lower-case names, each with torch's own parameters: all that
give a tensor of the shape that they take and need no argument."""

InitName = Literal["auto", "kaiming", "xavier", "lecun"]


class LinearModel(SpecModel):
    """A linear or logistic model; categories enter as one weight per category and output."""

    kind: Literal["linear"]


class MlpModel(SpecModel):
    """Embeddings for the categories, then hidden layers.

    The defaults are between those of Gorishniy et al. 2021 (arXiv 2106.11959: two layers of 384,
    dropout 0.1) and of RealMLP (Holzmueller et al. 2024, arXiv 2407.04491: three of 256, smooth
    activations, dropout 0.15), measured in benchmarks/quality.md.
    """

    kind: Literal["mlp"]
    hidden: tuple[Width, ...] = Field(default=(256, 256), max_length=64)
    """The width of each hidden layer."""
    activation: ActivationName = "silu"
    """The non-linearity of every hidden layer, from torch.nn with its own parameters."""
    dropout: Share = 0.1
    """The share of units dropped after every hidden layer."""
    embedding_dim: Literal["auto"] | Width = "auto"
    """The width of a category's embedding; `auto` grows with the number of categories."""
    normalization: Literal["none", "layer"] = "none"
    """`layer` puts a LayerNorm (Ba et al. 2016, arXiv 1607.06450) before every activation."""
    residual: bool = False
    """Adds the input of a hidden layer to its output (He et al. 2015, arXiv 1512.03385), wherever
    the layer is as wide as its input; any other layer stays as it is, such as the first one of
    `hidden: [128, 128, 128]`. Where no layer is, as in `[128, 64]`, that is an error."""
    init: InitName = "auto"
    """How the weights of the hidden layers begin; all are uniform, between plus and minus a bound.
    `auto`, torch's own: 1 / sqrt(inputs), for weights and biases. The others begin with biases of
    zero: `kaiming` sqrt(6 / inputs), for relu and its kin (He et al. 2015, arXiv 1502.01852),
    `xavier` sqrt(6 / (inputs + outputs)), for tanh and sigmoid (Glorot and Bengio 2010), `lecun`
    sqrt(3 / inputs), for selu (Klambauer et al. 2017, arXiv 1706.02515). The output layer always
    begins as with `auto`."""


class ResNetModel(SpecModel):
    """The tabular ResNet of Gorishniy et al. 2021, arXiv 2106.11959, section 3.2.

    A linear layer to `width`, then blocks that each add `dropout(linear(dropout(activation(linear(
    norm(x))))))` to x, then norm, activation and the output layer. The norm is LayerNorm in place
    of the paper's BatchNorm, so that a row's outputs depend on that row alone. The defaults are
    those of the paper's package `rtdl_revisiting_models` (README, ResNet).
    """

    kind: Literal["resnet"]
    width: Width = 192
    """Of what the blocks add to."""
    blocks: int = Field(default=2, ge=1, le=64)
    """How many."""
    hidden_factor: float = Field(default=2.0, gt=0, le=64)
    """The width inside a block, as a multiple of `width`, rounded down."""
    hidden_dropout: Share = 0.15
    """The share of units dropped inside a block."""
    residual_dropout: Share = 0.0
    """The share dropped of what a block adds."""
    activation: ActivationName = "relu"
    """The non-linearity, from torch.nn with its own parameters."""
    embedding_dim: Literal["auto"] | Width = "auto"
    """The width of a category's embedding; `auto` grows with the number of categories."""


class CnnModel(SpecModel):
    """A small convolutional network (LeCun et al. 1998) for columns that are the pixels of images.

    Each convolution keeps height and width (its borders are filled up with zeros), and is followed
    by the activation and by pooling. What is left is laid flat, the embeddings of the categories
    are put beside it, and hidden layers lead to the output.
    """

    kind: Literal["cnn"]
    shape: Literal["auto"] | tuple[Width, Width, Width] = "auto"
    """[channels, height, width]: the numeric features, in the order of their columns, are the
    pixels of the first channel row by row, then those of the next. `auto` is one channel and a
    square, where the number of numeric features is one."""
    channels: tuple[Width, ...] = Field(default=(16, 32), min_length=1, max_length=16)
    """How many each convolution gives."""
    kernel: int = Field(default=3, ge=1, le=11)
    """The height and width of every convolution, an odd number."""
    pooling: Literal["none", "max", "mean"] = "max"
    """What becomes of each 2 x 2 pixels after a convolution: all of them stay, or their largest or
    mean value does. An odd row or column at the end is left out."""
    hidden: tuple[Width, ...] = Field(default=(64,), max_length=64)
    """The width of each hidden layer after the convolutions."""
    activation: ActivationName = "relu"
    """The non-linearity after every convolution and hidden layer, from torch.nn."""
    dropout: Share = 0.1
    """The share of units dropped after every hidden layer."""
    embedding_dim: Literal["auto"] | Width = "auto"
    """The width of a category's embedding; `auto` grows with the number of categories."""

    @model_validator(mode="after")
    def _the_kernel_has_a_middle(self) -> CnnModel:
        if self.kernel % 2 == 0:
            raise ValueError(
                f"`kernel` is an odd number, so that it has a middle; found {self.kernel}"
            )
        return self


class CustomModel(SpecModel):
    """A network of yours; it runs only where the operator passes `--allow-code`."""

    kind: Literal["custom"]
    target: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*:[A-Za-z][A-Za-z0-9_]*$"
    )
    """`package.module:Class`; called with the inputs' description and `params`."""
    params: dict[str, Any] = {}
    """Keyword arguments of the class."""
    assets: dict[str, str] = {}
    """Files that the class needs, such as a vocabulary: name to path, relative to the spec file. It
    gets their bytes as the keyword argument `assets`, and the bundle holds them."""

    @model_validator(mode="after")
    def _assets_have_a_place(self) -> CustomModel:
        for name in self.assets:
            if not ASSET_NAME.fullmatch(name):
                raise ValueError(
                    f"`assets` needs names of letters, digits, `_`, `-` and `.` that begin with a "
                    f"letter or digit, 64 characters at most, found {name!r}"
                )
        if self.assets and "assets" in self.params:
            raise ValueError("`params.assets` and `assets` are the same argument of the class")
        return self


ModelSpec = Annotated[
    LinearModel | MlpModel | ResNetModel | CnnModel | CustomModel, Field(discriminator="kind")
]
