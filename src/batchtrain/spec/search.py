"""The `search` section: which values are tried, in how many trials, and what ends a trial early.

Only `batchtrain tune` reads it; every other command trains the spec as it stands.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel

__all__ = [
    "DEFAULT_TRIALS",
    "Algorithm",
    "Asha",
    "Distribution",
    "HyperBand",
    "Objective",
    "Pbt",
    "SchedulerSpec",
    "SearchSpec",
    "scheduler_of",
]

Algorithm = Literal["random", "grid", "tpe"]
DEFAULT_TRIALS = 32

Bounds = tuple[float, float]
WholeBounds = tuple[int, int]


class Distribution(SpecModel):
    """The values that one key of the spec may take: exactly one of the five kinds.

    With several conditions, all must hold for the key to be set in a trial.
    """

    uniform: Bounds | None = None
    """Any number from the first to the second."""
    log_uniform: Bounds | None = None
    """Any number between the two, each order of magnitude as likely as the next."""
    int: WholeBounds | None = None
    """Any whole number from the first to the second, both among them."""
    log_int: WholeBounds | None = None
    """Whole numbers as well, the smaller ones more often, as `log_uniform`."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, max_length=1000)
    """One of these values, of any type that the key takes."""
    when: dict[str, Any] = {}
    """Keys of the space and the value, or a list of the values, that they must have; else this
    key stays as the spec has it."""

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value; not for `choice`."""
        low, high = getattr(self, self.kind)
        return low, high

    @model_validator(mode="after")
    def _is_one_kind(self) -> Distribution:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"expected exactly one of {', '.join(KINDS)}, found {found}")
        if given[0] == "choice":
            return self
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"expected the lower bound first, found {low} and {high}")
        if given[0].startswith("log") and low <= 0:
            raise ValueError(f"expected bounds above 0 for {given[0]}, found {low}")
        if not math.isfinite(high - low):
            raise ValueError("expected bounds that are not so far apart")
        return self


KINDS = ("uniform", "log_uniform", "int", "log_int", "choice")


class Objective(SpecModel):
    """One number that the search makes as good as it can."""

    metric: str = Field(pattern=r"^(valid_[a-z0-9_]+|parameters)$")
    """`valid_loss`, `valid_accuracy`, `valid_r2`, what early stopping follows, or `parameters`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; `auto` knows it of every metric of batchtrain."""


class Asha(SpecModel):
    """Stop a trial at a rung where it is not among the best of those that came before it there.

    Asynchronous successive halving (Li et al., 2020, "A System for Massively Parallel
    Hyperparameter Tuning"), decided in the order of the trials' numbers, not of their arrival: so
    a search gives the same table whatever the machine.
    """

    kind: Literal["asha"]
    first_epochs: int = Field(default=1, ge=1)
    """The epochs of the first rung."""
    factor: int = Field(default=4, ge=2, le=100)
    """One in so many goes on; each rung has so many times the epochs of the one before."""


class HyperBand(SpecModel):
    """Brackets of successive halving, from many short trials to few long ones (Li et al., 2018)."""

    kind: Literal["hyperband"]
    first_epochs: int = Field(default=1, ge=1)
    """The epochs of the shortest rung."""
    factor: int = Field(default=3, ge=2, le=100)
    """One in so many goes on, with so many times the epochs."""


class Pbt(SpecModel):
    """Population-based training (Jaderberg et al., 2017): the worst go on as changed copies.

    `search.trials` is the population. It suits keys that may change while a model trains.
    """

    kind: Literal["pbt"]
    interval_epochs: int = Field(default=5, ge=1)
    """The epochs between two exchanges."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """The share that is replaced, and the share that it is replaced from."""
    resample: float = Field(default=0.25, ge=0, le=1)
    """How often a changed value is drawn anew and not changed by a factor of 0.8 or 1.2."""


SchedulerSpec = Annotated[Asha | HyperBand | Pbt, Field(discriminator="kind")]


class SearchSpec(SpecModel):
    """What `batchtrain tune` tries."""

    metric: str | tuple[Objective, ...] | None = None
    """What is to become best: the name of a metric, or several, then the trials that no other is
    better than in all of them are kept. Left out, what early stopping follows, or `valid_loss`."""
    space: dict[str, Distribution] = Field(min_length=1, max_length=100)
    """Dotted keys of the spec, and their values."""
    algorithm: Algorithm = "random"
    """`tpe` is Optuna's tree-structured Parzen estimator, asked in waves of eight trials."""
    trials: int | None = Field(default=None, ge=1, le=1_000_000)
    """How many at most; left out, 32, and for a grid all of its points."""
    points: int = Field(default=5, ge=2, le=1000)
    """Into how many points a grid divides a range."""
    scheduler: Literal["none", "asha", "hyperband", "pbt"] | SchedulerSpec = "none"
    max_time: float | None = Field(default=None, gt=0, le=1e9)
    """No trial begins after so many seconds. What is tried then depends on the machine."""
    max_rows: int | None = Field(default=None, ge=1)
    """No trial begins that could bring the rows trained, over all trials, above this."""
    pack: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """How many trials of one shape are trained together at most; 1 trains each by itself, and
    `auto` decides by the size of the model."""
    concurrent: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    """How many trials, or packs of them, run at a time at most; `auto`: as many as fit."""
    export: bool = True
    """Whether the best trial is evaluated and exported at the end."""

    @model_validator(mode="after")
    def _conditions_are_of_the_space(self) -> SearchSpec:
        seen: list[str] = []
        for key, distribution in self.space.items():
            for other in distribution.when:
                if other not in seen:
                    raise ValueError(
                        f"`space.{key}.when` names `{other}`, which is no key of the space that "
                        "stands before it"
                    )
            seen.append(key)
        if self.algorithm == "grid" and self.scheduler == "pbt":
            raise ValueError("`scheduler: pbt` changes values as it goes, which a grid does not")
        return self


SHORT: dict[str, Asha | HyperBand | Pbt] = {
    "asha": Asha(kind="asha"),
    "hyperband": HyperBand(kind="hyperband"),
    "pbt": Pbt(kind="pbt"),
}


def scheduler_of(spec: SearchSpec) -> Asha | HyperBand | Pbt | None:
    """The scheduler with its settings, where only its name was given."""
    if isinstance(spec.scheduler, str):
        return SHORT.get(spec.scheduler)
    return spec.scheduler
