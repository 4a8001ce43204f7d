"""The `training` section: epochs, batches, loss, precision, stopping, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel
from batchtrain.spec.changes import Change, change_mismatches
from batchtrain.spec.optimizers import AdamW, OptimizerSpec
from batchtrain.spec.schedules import ScheduleSpec, Warmup, rate_mismatches

__all__ = [
    "CheckpointSpec",
    "EarlyStopping",
    "Ema",
    "LossName",
    "NanPolicy",
    "Precision",
    "TrainingSpec",
    "WarmStart",
]

LossName = Literal["cross_entropy", "bce", "mse", "mae", "huber"]
Precision = Literal["float32", "bfloat16", "float16"]
NanPolicy = Literal["stop", "skip", "roll_back"]


class EarlyStopping(SpecModel):
    """Stop when a number of the validation split has not become better for `patience` epochs.

    The weights that are kept are those of the epoch in which it was best.
    """

    metric: str = "valid_loss"
    """`valid_loss`, or `valid_` and the name of a metric, such as `valid_f1_macro`."""
    patience: int = Field(default=12, ge=0)
    min_delta: float = Field(default=0.0, ge=0)
    """A change smaller than this does not count."""


class Ema(SpecModel):
    """Keep an exponential moving average of the weights; it is measured, kept and exported."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """What is left of the average in each step; the newest weights are the rest."""
    ramp: bool = True
    """Begin with a smaller decay, `(1 + n) / (10 + n)` after n steps, so that the first weights
    are forgotten soon (as in TensorFlow's ExponentialMovingAverage)."""


class WarmStart(SpecModel):
    """Begin with the weights of a bundle instead of new ones."""

    bundle: str = Field(min_length=1, max_length=4096)
    """Its folder, relative to the spec file, or an address such as s3://bucket/bundles/name."""
    match: Literal["all", "some"] = "all"
    """`all`: every weight must be there in the same shape. `some`: those that are not begin new,
    and the report counts them."""


class CheckpointSpec(SpecModel):
    """When the state of the training is saved. It never changes the result; a signal saves too."""

    every_steps: int | None = Field(default=None, ge=1)
    """Global steps from one to the next; null saves by time alone."""
    every_seconds: float | None = Field(default=60.0, gt=0, le=1e9)
    """Seconds from one to the next; null saves by steps alone. With null in both only a signal
    saves, and what a killed run had done is lost."""
    keep: int = Field(default=3, ge=1)
    """The newest so many stay; so do the one that a resume began from and the first that holds
    the best weights."""
    keep_best: int = Field(default=1, ge=1, le=100)
    """The trained model holds the weights of the so many best epochs."""


class TrainingSpec(SpecModel):
    """How the model is trained."""

    epochs: int = Field(default=100, ge=1, le=10_000_000)
    batch_size: Literal["auto", "full"] | Annotated[int, Field(ge=1, le=2**31)] = "auto"
    """The global batch; `full` is one step an epoch; `auto` is about a fortieth of the training
    rows, as a power of two from 32 to 1024."""
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=2**31)] = "auto"
    """The most rows that a worker differentiates at once; the gradients of a global batch are
    added up over them. `auto`: all rows at once, and half as many each time memory runs out."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many global steps, also within an epoch."""
    max_time: float | None = Field(default=None, gt=0, le=1e9)
    """Stop after so many seconds of training, over all attempts. The result then depends on the
    machine's speed."""
    loss: Literal["auto"] | LossName = "auto"
    """`auto`: cross_entropy for classification, mse for regression."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of a class label that is spread evenly over all classes (Szegedy et al., 2016).
    The validation loss is smoothed too."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = (
        None
    )
    """What a row of each class weighs in the loss. `balanced`: rows / (classes x rows of the
    class), as scikit-learn has it, over the training rows."""
    target_scale: Literal["auto", "standard", "none"] = "auto"
    """Whether a regression learns its target minus the mean over the deviation of the training
    rows; predictions and metrics are in the target's own units, losses are of the scaled one.
    `auto`: `standard`, and `none` for linear and custom models."""
    optimizer: OptimizerSpec = AdamW(kind="adamw")
    schedule: ScheduleSpec | None = None
    warmup: Warmup | None = None
    clip_norm: float | None = Field(default=None, gt=0)
    """The gradient of a step is scaled down where its 2-norm over all weights is larger."""
    clip_value: float | None = Field(default=None, gt=0)
    """Each number of the gradient is cut to this size."""
    ema: Ema | None = None
    precision: Literal["auto"] | Precision = "auto"
    """`auto` is float32. With the 16-bit types weights stay float32, and what can be computed in
    16 bits is (torch.autocast); float16 scales the loss."""
    compile: Literal["auto"] | bool = "auto"
    """Whether torch.compile makes kernels of the model. `auto`: where the time that the
    compilation takes is soon won back; the choice is part of the numerical result."""
    on_nan: NanPolicy = "stop"
    """What follows a loss or gradient that is not finite. `stop`: the run fails. `skip`: the step
    is left out, and counted. `roll_back`: the run goes on from the end of the epoch before, with
    half the learning rate, at most 5 times."""
    early_stopping: EarlyStopping | None = None
    changes: tuple[Change, ...] = Field(default=(), max_length=100_000)
    """Other values from certain epochs on, such as population-based training finds them."""
    warm_start: WarmStart | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()

    @model_validator(mode="after")
    def _one_way_to_clip(self) -> TrainingSpec:
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("`clip_norm` and `clip_value` exclude each other; choose one")
        return self

    @model_validator(mode="after")
    def _values_can_be_set(self) -> TrainingSpec:
        problems = rate_mismatches(
            self.optimizer, self.schedule, self.warmup, rolls_back=self.on_nan == "roll_back"
        )
        problems += change_mismatches(
            self.changes, self.optimizer, self.schedule, compiles=self.compile is True
        )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def changes_dropout(self) -> bool:
        """Whether a change sets the share of dropout."""
        return any(change.dropout is not None for change in self.changes)
