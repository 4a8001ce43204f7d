"""How a text, a vector or an image becomes several features, as plain values that are JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from batchtrain.tables import BLOCK_ROWS

__all__ = [
    "FittedImage",
    "FittedText",
    "FittedVector",
    "FittedWide",
    "rows_at_once",
    "wide_from_json",
]

BLOCK_NUMBERS = 1 << 25
"""The features of wide columns in one block, at most: 128 MiB of float32."""


@dataclass(frozen=True)
class FittedText:
    """Counts of hashed words; nothing is learned.

    Attributes:
        features: How many features the words are hashed to.
        words: Up to so many words that follow one another count together.
        lowercase: Whether capital letters count as small ones.
    """

    features: int
    words: int
    lowercase: bool

    @property
    def num_features(self) -> int:
        """How many features there are."""
        return self.features


@dataclass(frozen=True)
class FittedVector:
    """The numbers of a list, each `(x - offset) / divisor` where there are such.

    Attributes:
        size: How many numbers a list has.
        offsets: One for each place, in raw units; empty where nothing is scaled.
        divisors: As `offsets`; none is 0.
    """

    size: int
    offsets: tuple[float, ...] = ()
    divisors: tuple[float, ...] = ()

    @property
    def num_features(self) -> int:
        """How many features there are."""
        return self.size


@dataclass(frozen=True)
class FittedImage:
    """The pixels of an image by channel, row and column, from 0 to 1; nothing is learned.

    Attributes:
        channels: 1 for shades of grey, 3 for red, green and blue.
        height: In pixels; images of another size are resized.
        width: As `height`.
    """

    channels: int
    height: int
    width: int

    @property
    def num_features(self) -> int:
        """How many features there are."""
        return self.channels * self.height * self.width


def rows_at_once(num_features: int) -> int:
    """How many rows a block has at most, so that memory does not grow with the width of a row.

    Args:
        num_features: The features of a row's texts, vectors and images together; the other columns
            do not count.

    Example:
        >>> rows_at_once(0), rows_at_once(784), rows_at_once(3 * 224 * 224)
        (65536, 42799, 222)
    """
    return max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // max(num_features, 1)))


FittedWide: TypeAlias = FittedText | FittedVector | FittedImage


def wide_from_json(kind: str, document: Mapping[str, Any] | None) -> FittedWide | None:
    """Read what `dataclasses.asdict` made of one; None where the kind has none.

    Raises:
        TypeError: If it is something else.
        KeyError: As TypeError.
    """
    if kind not in {"text", "vector", "image"}:
        return None
    if document is None:
        raise KeyError("wide")
    if kind == "text":
        return FittedText(**document)
    if kind == "image":
        return FittedImage(**document)
    scales = {key: tuple(document[key]) for key in ("offsets", "divisors")}
    return FittedVector(**{**document, **scales})
