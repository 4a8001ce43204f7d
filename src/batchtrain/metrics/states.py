"""What is kept of the rows seen so far: states of torchmetrics that merge in any order.

Counts are int64 and sums float64, so that a billion rows lose nothing. Only the AUROC keeps
every row's probabilities, since it is exact.

Shapes: B rows of a block, N rows so far, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc

__all__ = ["ClassCounts", "LogLoss", "OneVersusRestAuroc", "TargetSpread", "isolated"]

isolated: dict[str, Any] = {"sync_on_compute": False, "compute_with_cache": False}
"""Options for every state: it belongs to its owner, and merging must not leave an old result.

By default torchmetrics exchanges states between ranks whenever a process group is up, which hangs
where one rank evaluates alone, and keeps a result that `merge_state` does not discard.
"""


class ClassCounts(Metric):
    """Per class: the rows predicted right, predicted, and truly of it.

    `MulticlassStatScores` counts the same from a matrix of K by K at each update, which is 800 MB
    for 10,000 classes.
    """

    full_state_update = False
    correct_K: Tensor
    predicted_K: Tensor
    actual_K: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(**isolated)
        self.num_classes = num_classes
        for name in ("correct_K", "predicted_K", "actual_K"):
            zeros_K = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, default=zeros_K, dist_reduce_fx="sum")

    def update(self, probabilities_BK: Tensor, target_B: Tensor) -> None:
        """Count a block; of equal probabilities the first class is the predicted one."""
        predicted_B = probabilities_BK.argmax(dim=1)
        self.correct_K += self._count(target_B[predicted_B == target_B])
        self.predicted_K += self._count(predicted_B)
        self.actual_K += self._count(target_B)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give correct, predicted and actual: int64 [K] each."""
        return self.correct_K, self.predicted_K, self.actual_K

    def _count(self, classes_B: Tensor) -> Tensor:
        return torch.bincount(classes_B, minlength=self.num_classes)


class LogLoss(Metric):
    """The mean of -log p of the true class; p is kept from 0 by its type's epsilon.

    The clipping is scikit-learn's, which depends on the type of the probabilities too.
    """

    full_state_update = False
    total: Tensor
    num_rows: Tensor

    def __init__(self) -> None:
        super().__init__(**isolated)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_rows", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities_BK: Tensor, target_B: Tensor) -> None:
        """Add a block."""
        epsilon = torch.finfo(probabilities_BK.dtype).eps
        true_B = probabilities_BK.gather(1, target_B[:, None]).squeeze(1)
        self.total -= true_B.clamp(epsilon, 1 - epsilon).to(torch.float64).log().sum()
        self.num_rows += target_B.shape[0]

    def compute(self) -> Tensor:
        """Give the mean, a float64 scalar."""
        return self.total / self.num_rows


class OneVersusRestAuroc(Metric):
    """The area under the ROC curve: of class 1 for two classes, else the mean over classes.

    The mean is over the classes that occur in the target; torchmetrics' own counts a class that
    does not as 0.
    """

    full_state_update = False
    probabilities: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__(**isolated)
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, probabilities_BK: Tensor, target_B: Tensor) -> None:
        """Keep a block; of two classes, the second's probabilities say it all."""
        is_binary = probabilities_BK.shape[1] == 2
        kept = probabilities_BK[:, 1:] if is_binary else probabilities_BK
        self.probabilities.append(kept.contiguous())
        self.target.append(target_B)

    def compute(self) -> Tensor:
        """Give the area, a scalar; the target must hold at least two classes."""
        probabilities_NK = torch.cat(self.probabilities)
        target_N = torch.cat(self.target)
        if probabilities_NK.shape[1] == 1:
            area = binary_auroc(probabilities_NK[:, 0], target_N, validate_args=False)
            return area.clamp(max=1)
        areas = [
            binary_auroc(
                probabilities_NK[:, label], (target_N == label).long(), validate_args=False
            )
            for label in target_N.unique().tolist()
        ]
        # Float32 sums of a perfect ranking come out a hair above 1.
        return torch.stack(areas).clamp(max=1).to(torch.float64).mean()


class TargetSpread(Metric):
    """The sum of squared distances of the targets from their mean.

    Kept as (rows, mean, squares) and merged by the formula of Chan, Golub and LeVeque (1979):
    torchmetrics' R2Score subtracts two large sums, which leaves no digit where the mean is large
    against the spread. Equal targets give exactly 0.
    """

    full_state_update = False
    num_rows: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__(**isolated)
        self.add_state("num_rows", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("squares", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)

    def update(self, predictions_B: Tensor, target_B: Tensor) -> None:
        """Add a block; the predictions play no part."""
        # From the first value on: the mean of equal values is then that value to the last bit.
        shifted_B = target_B - target_B[0]
        mean = shifted_B.mean()
        squares = (shifted_B - mean).square().sum()
        self._absorb(torch.tensor(target_B.shape[0]), target_B[0] + mean, squares)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another one has seen."""
        state: dict[str, Any] = (
            incoming_state
            if isinstance(incoming_state, dict)
            else dict(incoming_state.metric_state)
        )
        self._absorb(state["num_rows"], state["mean"], state["squares"])

    def compute(self) -> Tensor:
        """Give the sum of squares, a float64 scalar."""
        return self.squares

    def _absorb(self, num_rows: Tensor, mean: Tensor, squares: Tensor) -> None:
        total = self.num_rows + num_rows
        distance = mean - self.mean
        share = num_rows / total.to(torch.float64)
        self.squares = self.squares + squares + distance.square() * self.num_rows * share
        self.mean = self.mean + distance * share
        self.num_rows = total
