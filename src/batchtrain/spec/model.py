"""The `model` section: which network, and its shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from batchtrain.spec.base import SpecModel

__all__ = ["CustomModel", "LinearModel", "MlpModel", "ModelSpec"]

Width = Annotated[int, Field(ge=1, le=65536)]


class LinearModel(SpecModel):
    """A linear or logistic model; categories enter as one weight per category and output."""

    kind: Literal["linear"]


class MlpModel(SpecModel):
    """Embeddings for the categories, then hidden layers."""

    kind: Literal["mlp"]
    hidden: tuple[Width, ...] = Field(default=(128, 64), max_length=64)
    """The width of each hidden layer."""
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu"] = "relu"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """The share of units dropped after every hidden layer."""
    embedding_dim: Literal["auto"] | Width = "auto"
    """The width of a category's embedding; `auto` grows with the number of categories."""


class CustomModel(SpecModel):
    """A network of yours; it runs only where the operator passes `--allow-code`."""

    kind: Literal["custom"]
    target: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*:[A-Za-z][A-Za-z0-9_]*$"
    )
    """`package.module:Class`; called with the inputs' description and `params`."""
    params: dict[str, Any] = {}
    """Keyword arguments of the class."""


ModelSpec = Annotated[LinearModel | MlpModel | CustomModel, Field(discriminator="kind")]
