"""Encoded images as features."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from batchtrain.errors import DataError
from batchtrain.preprocessing.fitted_wide import FittedImage

__all__ = ["MAX_PIXELS", "decoded", "write_pixels"]

FORMATS = ("PNG", "JPEG")
"""Pillow can read dozens; each of its decoders is one more that input of strangers may attack."""

MAX_PIXELS = 64 << 20
"""A few bytes can say that an image has billions of pixels; those of a camera have at most this
many. An image that says more is refused before its pixels are decoded."""

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes of Pillow for shades of grey with 16 bits, which it would cut off instead of scaling."""


def write_pixels(
    values: pa.ChunkedArray,
    fitted: FittedImage,
    out: npt.NDArray[np.float32],
    *,
    name: str,
    row_id: npt.NDArray[np.int64],
) -> None:
    """Write the pixels of images, from 0 to 1, channel by channel and row by row.

    Args:
        values: large_binary `[n]`.
        fitted: The size and the channels.
        out: float32 `[n, C * H * W]`; zeros where an image is missing.
        name: The column, for messages.
        row_id: int64 `[n]`, the number of each row in the input, for messages.

    Raises:
        DataError: If an image is broken, too large, or neither PNG nor JPEG.
    """
    for row, image in enumerate(values):
        if not image.is_valid:
            out[row] = 0
            continue
        try:
            pixels = decoded(image.as_buffer(), fitted)
        except Exception as error:  # what a decoder raises on damaged bytes is not to be told ahead
            raise DataError(
                f"column {name!r}: expected a whole PNG or JPEG file of at most {MAX_PIXELS} "
                f"pixels in every row, found in row {row_id[row]}: {_told(error)}. Replace the "
                "image, or make the value missing"
            ) from error
        np.divide(pixels.reshape(-1), np.float32(255), out=out[row], dtype=np.float32)


def decoded(data: bytes | pa.Buffer, fitted: FittedImage) -> npt.NDArray[np.uint8]:
    """Decode one image: uint8 `[C, H, W]`.

    It is turned as its EXIF entry says, transparency is left out, and 16 bits become 8. Another
    size is reached by Pillow's bilinear filter, which averages where it shrinks.

    Raises:
        ValueError: If it has more than `MAX_PIXELS`.
        Exception: Whatever Pillow raises on bytes that are no whole PNG or JPEG file.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels")
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode in DEEP:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "P":  # its palette may have transparency, of which Pillow would warn
        image = image.convert("RGBA")
    image = image.convert("L" if fitted.channels == 1 else "RGB")
    size = (fitted.width, fitted.height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _eight_bits(deep: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """The nearest of 256 shades for each of 65,536, as libpng's `png_set_scale_16` has it."""
    shades = np.clip(deep.astype(np.int64), 0, 65_535)
    return ((shades * 255 + 32_895) >> 16).astype(np.uint8)


def _told(error: Exception) -> str:
    """What a decoder says, without the address of its buffer."""
    if isinstance(error, UnidentifiedImageError):
        return "bytes that are neither"
    return f"{type(error).__name__}: {str(error)[:200]}"
