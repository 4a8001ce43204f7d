"""The confusion matrix.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["confusion"]


def confusion(probabilities_BK: Tensor, target_B: Tensor, num_classes: int) -> Tensor:
    """Count the rows of each true and predicted class: int64 [K, K], true down, predicted across.

    The predicted class is the one of the highest probability, the first of equals. The matrices
    of blocks add up to the matrix of all rows.
    """
    predicted_B = probabilities_BK.argmax(dim=1)
    cells_B = target_B * num_classes + predicted_B
    counts = torch.bincount(cells_B, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)
