"""Encoded images as features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchtrain.preprocessing.fitted_wide import FittedImage

__all__ = ["write_pixels"]


def write_pixels(
    values: pa.ChunkedArray,
    fitted: FittedImage,
    out: npt.NDArray[np.float32],
    *,
    name: str,
    row_id: npt.NDArray[np.int64],
) -> None:
    """Write the pixels."""
    raise NotImplementedError
