"""The `training` section: epochs, batches, loss, optimizer, schedule, stopping, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "Adam",
    "AdamW",
    "CheckpointSpec",
    "CosineSchedule",
    "EarlyStopping",
    "LossName",
    "OptimizerSpec",
    "PlateauSchedule",
    "ScheduleSpec",
    "Sgd",
    "StepSchedule",
    "TrainingSpec",
]

LossName = Literal["cross_entropy", "bce", "mse", "mae", "huber"]
LearningRate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Sgd(SpecModel):
    """Stochastic gradient descent, with momentum where asked."""

    kind: Literal["sgd"]
    lr: LearningRate = 0.01
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Decay = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov: true` needs a `momentum` above 0")
        return self


class Adam(SpecModel):
    """Adam (Kingma and Ba, 2015); the weight decay is added to the gradient."""

    kind: Literal["adam"]
    lr: LearningRate = 0.001
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: Decay = 0.0


class AdamW(SpecModel):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]
    lr: LearningRate = 0.001
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: Decay = 0.01


OptimizerSpec = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class PlateauSchedule(SpecModel):
    """Multiply the learning rate by `factor` when the validation loss stops falling."""

    kind: Literal["plateau"]
    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=5, ge=0)
    """Epochs without improvement before the rate falls."""
    min_lr: float = Field(default=0.0, ge=0)


class StepSchedule(SpecModel):
    """Multiply the learning rate by `factor` every `every_epochs` epochs."""

    kind: Literal["step"]
    every_epochs: int = Field(default=30, ge=1)
    factor: float = Field(default=0.1, gt=0, le=1)


class CosineSchedule(SpecModel):
    """Let the learning rate fall to `min_lr` along half a cosine over all epochs."""

    kind: Literal["cosine"]
    min_lr: float = Field(default=0.0, ge=0)


ScheduleSpec = Annotated[
    PlateauSchedule | StepSchedule | CosineSchedule, Field(discriminator="kind")
]


class EarlyStopping(SpecModel):
    """Stop when the validation loss has not fallen for `patience` epochs."""

    metric: Literal["valid_loss"] = "valid_loss"
    patience: int = Field(default=12, ge=0)
    min_delta: float = Field(default=0.0, ge=0)
    """A fall smaller than this does not count."""


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


class TrainingSpec(SpecModel):
    """How the model is trained."""

    epochs: int = Field(default=100, ge=1, le=10_000_000)
    batch_size: Literal["auto", "full"] | Annotated[int, Field(ge=1, le=2**31)] = "auto"
    """The global batch; `full` is one step an epoch; `auto` is about a fortieth of the training
    rows, as a power of two from 32 to 1024."""
    loss: Literal["auto"] | LossName = "auto"
    """`auto`: cross_entropy for classification, mse for regression."""
    optimizer: OptimizerSpec = Adam(kind="adam")
    schedule: ScheduleSpec | None = None
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()
