"""The numbers of a training run that follow from the spec and the prepared data."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.row_order import RowOrder
from batchtrain.spec.training import TrainingSpec

__all__ = ["TrainingPlan", "auto_batch_rows", "global_batch_rows", "make_plan", "row_order"]


@dataclass(frozen=True)
class TrainingPlan:
    """How far and in which steps to train.

    Attributes:
        order: The order of the training rows.
        batch_rows: B, the rows of a global batch.
        epochs: How many epochs at most.
        max_steps: How many steps at most; None where the epochs alone say it.
    """

    order: RowOrder
    batch_rows: int
    epochs: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """How many global batches an epoch has; the last one may be short."""
        return self.order.num_batches(self.batch_rows)

    @property
    def last_step(self) -> int:
        """How many steps are taken where nothing ends the training before."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def end_of(self, epoch: int) -> int:
        """The step with which an epoch ends, which may be in the middle of its rows."""
        return min((epoch + 1) * self.steps_per_epoch, self.last_step)

    def steps_into(self, epoch: int, step: int) -> int:
        """How many steps of an epoch are over where `step` steps are over in all."""
        return step - epoch * self.steps_per_epoch

    def rows_before(self, step: int) -> int:
        """The rows of all global batches before a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.order.num_rows + min(batch * self.batch_rows, self.order.num_rows)


def row_order(prepared: PreparedData, *, seed: int) -> RowOrder:
    """The order of the training rows of prepared data."""
    return RowOrder(
        num_rows=prepared.num_rows("train"),
        lanes=prepared.lanes,
        shards_per_lane=prepared.shards_per_lane,
        window_rows=prepared.window_rows,
        seed=seed,
    )


def auto_batch_rows(num_rows: int) -> int:
    """About a fortieth of the rows, as a power of two from 32 to 1024.

    Forty steps an epoch let a small table learn; more rows a step let a large one run fast.
    """
    fortieth = max(1, num_rows // 40)
    return min(1024, max(32, 1 << (fortieth.bit_length() - 1)))


def global_batch_rows(spec: TrainingSpec, *, num_rows: int) -> int:
    """B for so many training rows."""
    if spec.batch_size == "full":
        return num_rows
    return auto_batch_rows(num_rows) if spec.batch_size == "auto" else spec.batch_size


def make_plan(spec: TrainingSpec, order: RowOrder) -> TrainingPlan:
    """Resolve the batch size against the number of training rows."""
    batch_rows = global_batch_rows(spec, num_rows=order.num_rows)
    return TrainingPlan(order, batch_rows, spec.epochs, spec.max_steps)
