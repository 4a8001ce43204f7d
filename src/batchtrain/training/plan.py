"""The numbers of a training run that follow from the spec and the prepared data."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.row_order import num_batches
from batchtrain.spec.training import TrainingSpec

__all__ = ["TrainingPlan", "auto_batch_rows", "make_plan"]


@dataclass(frozen=True)
class TrainingPlan:
    """How far and in which steps to train.

    Attributes:
        num_rows: N, the training rows.
        batch_rows: B, the rows of a global batch.
        steps_per_epoch: How many global batches an epoch has; the last one may be short.
        epochs: How many epochs at most.
        seed: Of the row order and dropout.
        lanes: V of the row order.
    """

    num_rows: int
    batch_rows: int
    steps_per_epoch: int
    epochs: int
    seed: int
    lanes: int


def auto_batch_rows(num_rows: int) -> int:
    """About a fortieth of the rows, as a power of two from 32 to 1024.

    Forty steps an epoch let a small table learn; more rows a step let a large one run fast.
    """
    fortieth = max(1, num_rows // 40)
    return min(1024, max(32, 1 << (fortieth.bit_length() - 1)))


def make_plan(spec: TrainingSpec, *, num_rows: int, seed: int, lanes: int) -> TrainingPlan:
    """Resolve the batch size against the number of training rows."""
    if spec.batch_size == "full":
        batch_rows = num_rows
    elif spec.batch_size == "auto":
        batch_rows = auto_batch_rows(num_rows)
    else:
        batch_rows = spec.batch_size
    return TrainingPlan(
        num_rows=num_rows,
        batch_rows=batch_rows,
        steps_per_epoch=num_batches(num_rows, batch_rows),
        epochs=spec.epochs,
        seed=seed,
        lanes=lanes,
    )
