"""What a feature column is: `data.columns` of a spec."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "MAX_WIDTH",
    "BooleanColumn",
    "CategoricalColumn",
    "ColumnSpec",
    "ImageColumn",
    "NumericColumn",
    "TextColumn",
    "VectorColumn",
]

MAX_WIDTH = 1 << 20
"""The most features of one column: 4 MiB of float32 a row."""

Column = TypeVar("Column", "NumericColumn", "CategoricalColumn", "BooleanColumn")


class NumericColumn(SpecModel):
    """A number. It reaches the model as float32, after filling and scaling."""

    kind: Literal["numeric"]
    missing: Literal["mean", "median", "most_frequent", "constant", "drop", "error"] = "mean"
    """What a missing value becomes; the statistics come from the training rows alone."""
    fill_value: float | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a second feature that is 1 where the value was missing."""
    scale: Literal["standard", "minmax", "robust", "none"] = "standard"

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> NumericColumn:
        return _check_fill(self)


class CategoricalColumn(SpecModel):
    """One of a set of names. Code 0 is for values that the training rows do not have."""

    kind: Literal["categorical"]
    missing: Literal["unknown", "most_frequent", "constant", "drop", "error"] = "unknown"
    """`unknown` gives a missing value code 0, as an unseen one."""
    fill_value: str | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a numeric feature that is 1 where the value was missing."""

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> CategoricalColumn:
        return _check_fill(self)


class BooleanColumn(SpecModel):
    """True or false. It reaches the model as 1.0 or 0.0."""

    kind: Literal["boolean"]
    missing: Literal["most_frequent", "constant", "drop", "error"] = "most_frequent"
    fill_value: bool | None = None
    """The value for `missing: constant`."""
    indicator: bool = False
    """Add a second feature that is 1 where the value was missing."""

    @model_validator(mode="after")
    def _constant_has_a_value(self) -> BooleanColumn:
        return _check_fill(self)


class TextColumn(SpecModel):
    """Words, in any order; they reach the model as counts, hashed to a fixed number of features.

    Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning".
    """

    kind: Literal["text"]
    features: int = Field(default=256, ge=2, le=1 << 16)
    """How many features the words are hashed to; with few of them many words share one."""
    words: int = Field(default=2, ge=1, le=5)
    """Words that follow one another count together too, up to so many."""
    missing: Literal["empty", "drop", "error"] = "empty"
    """`empty` takes a missing value for a text without words: zeros."""
    lowercase: bool = True
    """Whether `Good` and `good` are one word."""

    @property
    def num_features(self) -> int:
        """How many numeric features the column gives."""
        return self.features


class VectorColumn(SpecModel):
    """A list of numbers, of one length in all rows, such as an embedding or pixels.

    Lists of lists are read row by row; each number reaches the model as float32.
    """

    kind: Literal["vector"]
    size: int = Field(ge=1, le=MAX_WIDTH)
    """How many numbers each list holds, inner lists included."""
    scale: Literal["none", "standard"] = "none"
    """`standard` shifts and divides each place by its own mean and deviation in the training
    rows."""
    missing: Literal["zeros", "drop", "error"] = "zeros"
    """`zeros` is the mean where the numbers are scaled."""

    @property
    def num_features(self) -> int:
        """How many numeric features the column gives."""
        return self.size


class ImageColumn(SpecModel):
    """A PNG or JPEG file as bytes; its pixels reach the model as numbers from 0 to 1.

    They come channel by channel and row by row, as `model: {kind: cnn, shape: [channels, height,
    width]}` takes them.
    """

    kind: Literal["image"]
    height: int = Field(ge=1, le=4096)
    """Images of another size are resized."""
    width: int = Field(ge=1, le=4096)
    channels: int = Field(default=3, ge=1, le=3)
    """1: shades of grey; 3: red, green, blue."""
    missing: Literal["drop", "error"] = "drop"

    @property
    def num_features(self) -> int:
        """How many numeric features the column gives."""
        return self.channels * self.height * self.width

    @model_validator(mode="after")
    def _is_an_image_of_a_sane_size(self) -> ImageColumn:
        if self.channels == 2:
            raise ValueError(
                "`channels` must be 1 (shades of grey) or 3 (red, green, blue), found 2"
            )
        if self.num_features > MAX_WIDTH:
            raise ValueError(
                f"`height` x `width` x `channels` must be at most {MAX_WIDTH}, found "
                f"{self.num_features}"
            )
        return self


def _check_fill(column: Column) -> Column:
    if column.missing == "constant" and column.fill_value is None:
        raise ValueError("`missing: constant` needs a `fill_value`")
    if column.missing != "constant" and column.fill_value is not None:
        raise ValueError(f"`fill_value` has no effect with `missing: {column.missing}`")
    return column


ColumnSpec = Annotated[
    NumericColumn | CategoricalColumn | BooleanColumn | TextColumn | VectorColumn | ImageColumn,
    Field(discriminator="kind"),
]
