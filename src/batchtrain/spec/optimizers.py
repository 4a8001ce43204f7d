"""The optimizers of the `training` section, each with its checked parameters.

They are the first-order optimizers of torch.optim for dense weights, under their names in lower
case and with torch's own defaults (except for the rate of `sgd`). LBFGS is left out because it
computes the loss several times a step, SparseAdam because it takes sparse gradients alone, and
Muon because it takes matrices alone, while every model here has biases too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Decaying",
    "NAdam",
    "OptimizerSpec",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Sgd",
]

LearningRate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, le=1)]


def _first_is_not_above_second(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


class Decaying(SpecModel):
    """What all optimizers with weight decay have in common."""

    weight_decay: Decay = 0.0
    weight_decay_on: Literal["all", "matrices"] = "all"
    """`matrices`: only weights of two or more dimensions decay, so biases and the scales of
    normalisation do not, as in deep networks (He et al., 2019; Gorishniy et al., 2021)."""


class Sgd(Decaying):
    """Stochastic gradient descent, with momentum where asked."""

    kind: Literal["sgd"]
    lr: LearningRate = 0.01
    momentum: Share = 0.0
    dampening: float = Field(default=0.0, ge=0, le=1)
    """The share of the gradient that does not enter the momentum."""
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov: true` needs a `momentum` above 0")
        if self.nesterov and self.dampening > 0:
            raise ValueError("`nesterov: true` needs a `dampening` of 0")
        return self


class Adam(Decaying):
    """Adam (Kingma and Ba, 2015); the weight decay is added to the gradient."""

    kind: Literal["adam"]
    lr: LearningRate = 0.001
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Small = 1e-8
    amsgrad: bool = False
    """Divide by the largest mean square so far (Reddi, Kale and Kumar, 2018)."""


class AdamW(Decaying):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]
    lr: LearningRate = 0.001
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Small = 1e-8
    weight_decay: Decay = 0.01
    amsgrad: bool = False
    """Divide by the largest mean square so far (Reddi, Kale and Kumar, 2018)."""


class Adamax(Decaying):
    """Adam with the largest gradient in place of the mean square (Kingma and Ba, 2015)."""

    kind: Literal["adamax"]
    lr: LearningRate = 0.002
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Small = 1e-8


class NAdam(Decaying):
    """Adam with Nesterov momentum (Dozat, 2016)."""

    kind: Literal["nadam"]
    lr: LearningRate = 0.002
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Small = 1e-8
    momentum_decay: float = Field(default=0.004, ge=0, le=1)
    """How soon the momentum grows to its full value."""
    decoupled_weight_decay: bool = False
    """Decay the weights themselves, as AdamW does."""


class RAdam(Decaying):
    """Adam that holds back until its mean squares can be trusted (Liu et al., 2020)."""

    kind: Literal["radam"]
    lr: LearningRate = 0.001
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Small = 1e-8
    decoupled_weight_decay: bool = False
    """Decay the weights themselves, as AdamW does."""


class Adagrad(Decaying):
    """A rate for each weight that falls with its gradients so far (Duchi et al., 2011)."""

    kind: Literal["adagrad"]
    lr: LearningRate = 0.01
    lr_decay: float = Field(default=0.0, ge=0, le=1e6)
    """The rate of step t, from 0, is divided by 1 + t x this."""
    initial_accumulator_value: float = Field(default=0.0, ge=0, le=1e6)
    """Where the sums of squares begin."""
    eps: Small = 1e-10


class Adadelta(Decaying):
    """Steps as large as the latest steps relative to their gradients (Zeiler, 2012)."""

    kind: Literal["adadelta"]
    lr: LearningRate = 1.0
    rho: Share = 0.9
    """What is left of the mean squares in each step."""
    eps: Small = 1e-6


class RMSprop(Decaying):
    """The gradient over the root of its mean square (Hinton, 2012; centered: Graves, 2013)."""

    kind: Literal["rmsprop"]
    lr: LearningRate = 0.01
    alpha: Share = 0.99
    """What is left of the mean square in each step."""
    eps: Small = 1e-8
    momentum: Share = 0.0
    centered: bool = False
    """Divide by the deviation instead."""


class Rprop(SpecModel):
    """Steps by the signs of the gradient alone (Riedmiller and Braun, 1993).

    It expects the gradient of all rows: `batch_size: full`. `lr` is each weight's first step and
    has no say after it, so that nothing can lower it later on.
    """

    kind: Literal["rprop"]
    lr: LearningRate = 0.01
    etas: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=1, le=1e6)]] = (
        0.5,
        1.2,
    )
    """By what a step is multiplied where the sign has changed, and where it has not."""
    step_sizes: Annotated[
        tuple[LearningRate, LearningRate], AfterValidator(_first_is_not_above_second)
    ] = (1e-6, 50.0)
    """The smallest and the largest step."""


class ASGD(Decaying):
    """Gradient descent whose rate falls by itself (Polyak and Juditsky, 1992).

    Torch keeps the average of the weights beside them, and nothing reads it; `training.ema` is
    the average that is measured and exported.
    """

    kind: Literal["asgd"]
    lr: LearningRate = 0.01
    lambd: float = Field(default=1e-4, ge=0, le=1)
    """How strongly the weights decay, and how soon the rate falls."""
    alpha: float = Field(default=0.75, ge=0, le=10)
    """The power with which the rate falls."""
    t0: float = Field(default=1e6, ge=0, le=1e12)
    """The step from which the average is taken."""


class Adafactor(Decaying):
    """Adam's idea with a row and a column of squares for each matrix (Shazeer and Stern, 2018).

    `lr` is the most by which a weight changes in one step, relative to the size of its matrix.
    """

    kind: Literal["adafactor"]
    lr: LearningRate = 0.01
    beta2_decay: float = Field(default=-0.8, ge=-10, le=0)
    """What is left of the mean squares in step t is 1 - t to the power of this."""
    eps: tuple[Small | None, Small] = (None, 1e-3)
    """The least of a mean square, null for the type's precision; the least size of a matrix."""
    d: float = Field(default=1.0, ge=1, le=1e6)
    """The largest root of the mean square of an update."""


OptimizerSpec = Annotated[
    Sgd
    | Adam
    | AdamW
    | Adamax
    | NAdam
    | RAdam
    | Adagrad
    | Adadelta
    | RMSprop
    | Rprop
    | ASGD
    | Adafactor,
    Field(discriminator="kind"),
]
