"""The `search` section: which values are tried, in how many trials, and what ends a trial early.

Only `batchtrain tune` reads it; every other command trains the spec as it stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchtrain.spec.base import SpecModel
from batchtrain.spec.evaluation import CLASSIFICATION_METRICS, REGRESSION_METRICS
from batchtrain.spec.suggest import did_you_mean

__all__ = [
    "DEFAULT_TRIALS",
    "METRICS",
    "Algorithm",
    "Asha",
    "Distribution",
    "HyperBand",
    "Objective",
    "Pbt",
    "SchedulerSpec",
    "SearchSpec",
    "allowed_by",
    "metrics_of",
    "rank_key",
    "same_value",
    "scheduler_of",
]

Algorithm = Literal["random", "grid", "tpe"]
DEFAULT_TRIALS = 32

METRICS = (
    "valid_loss",
    *(f"valid_{name}" for name in (*CLASSIFICATION_METRICS, *REGRESSION_METRICS)),
    "parameters",
)
"""What a search may go by: numbers of the validation split, and the size of the model."""

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
    key stays as the spec has it. A key that is not set itself has none of them."""

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value; not for `choice`."""
        low, high = getattr(self, self.kind)
        return low, high

    @property
    def is_log(self) -> bool:
        """Whether its values lie evenly in their logarithms."""
        return self.kind.startswith("log")

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return self.kind in {"int", "log_int"}

    def takes(self, value: Any) -> bool:
        """Whether a value may come of it."""
        if self.kind == "choice":
            return any(same_value(value, each) for each in self.choice or ())
        if isinstance(value, bool) or not isinstance(value, WHOLE | float):
            return False
        low, high = self.bounds
        return low <= value <= high and not (self.is_whole and value != round(value))

    @model_validator(mode="after")
    def _is_one_kind(self) -> Distribution:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"expected exactly one of {', '.join(KINDS)}, found {found}")
        problem = _twice(self.choice) if given[0] == "choice" else self._wrong_bounds()
        if problem:
            raise ValueError(problem)
        return self

    def _wrong_bounds(self) -> str:
        """What is wrong with a range, as a sentence; empty where nothing is."""
        low, high = self.bounds
        if not low < high:
            return f"expected the lower bound first, and a higher one, found {low} and {high}"
        if self.is_log and low <= 0:
            return f"expected bounds above 0 for {self.kind}, found {low}"
        if self.is_whole and not -MOST_WHOLE <= low < high <= MOST_WHOLE:
            return "expected whole numbers of at most 63 bits"
        if not math.isfinite(high - low):
            return "expected bounds that are not so far apart"
        return ""


KINDS = ("uniform", "log_uniform", "int", "log_int", "choice")
WHOLE = int
"""The type; in the class above `int` is the name of a key."""
MOST_WHOLE = 2**63 - 1


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a spec are the same: 1 and 1.0 are, 1 and true are not.

    Example:
        >>> same_value([1, "a"], [1.0, "a"]), same_value(1, True), same_value("1", 1)
        (True, False, False)
    """
    return _as_text(one) == _as_text(other)


def rank_key(number: int, state: str, costs: Sequence[float]) -> tuple[Any, ...]:
    """What the trials of a search are sorted by, wherever some are shown or one is chosen.

    One that trained to its end goes before any other: its score is that of the model that its spec
    gives. Then the goals decide, one after the other, and then the number. Trials without a score
    by the first goal are last.

    Args:
        number: Of the trial.
        state: Of the trial.
        costs: Its scores by each goal, as numbers of which less is better; infinity for none.
    """
    return (costs[0] == math.inf, state != "finished", tuple(costs), number)


def _as_text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _twice(values: tuple[Any, ...] | None) -> str:
    texts = [_as_text(value) for value in values or ()]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    return f"expected each value once, found {twice} again" if twice is not None else ""


def allowed_by(asked: Any, other: Distribution) -> tuple[Any, ...]:
    """The values that a condition asks for: a value that the other key takes, or a list of them.

    A list that is itself one of the other key's choices is that value.

    Example:
        >>> allowed_by([1, 2], Distribution(choice=(1, 2, 3)))
        (1, 2)
        >>> allowed_by([1, 2], Distribution(choice=([1, 2], [3])))
        ([1, 2],)
    """
    return tuple(asked) if isinstance(asked, list) and not other.takes(asked) else (asked,)


class Objective(SpecModel):
    """One number that the search makes as good as it can."""

    metric: str
    """`valid_loss`, `valid_accuracy`, `valid_r2`, what early stopping follows, or `parameters`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; `auto` knows it of every metric of batchtrain."""

    @model_validator(mode="after")
    def _metric_is_known(self) -> Objective:
        problem = _unknown_metric(self.metric)
        if problem:
            raise ValueError(problem)
        return self


def _unknown_metric(name: str) -> str:
    """What is wrong with a metric's name, as a sentence; empty where nothing is."""
    if name in METRICS:
        return ""
    close = did_you_mean(name, METRICS)
    close = close or (f"valid_{name}" if f"valid_{name}" in METRICS else None)
    hint = f"did you mean {close!r}?" if close else f"choose one of {', '.join(METRICS)}"
    return f"`metric` is {name[:60]!r}, which is no metric of a trial; {hint}"


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

    metric: str | Annotated[tuple[Objective, ...], Field(min_length=1, max_length=10)] | None = None
    """What is to become best: the name of a metric, or several, then the trials that no other is
    better than in all of them are kept. Left out, what early stopping follows, or `valid_loss`."""
    space: dict[str, Distribution] = Field(min_length=1, max_length=100)
    """Dotted keys of the spec, such as `training.optimizer.lr`, and their values. A trial sets
    them in this order, so that a section stands before the keys in it."""
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
    def _is_one_search(self) -> SearchSpec:
        problems = [*self._metric_problems(), *self._space_problems(), *self._pbt_problems()]
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    def _metric_problems(self) -> Iterator[str]:
        if isinstance(self.metric, str) and (problem := _unknown_metric(self.metric)):
            yield problem
        if isinstance(self.metric, tuple):
            names = metrics_of(self)
            for name in names:
                if names.count(name) > 1:
                    yield f"`metric` names {name!r} twice; keep one of the two"

    def _space_problems(self) -> Iterator[str]:
        """Conditions that cannot hold, and keys that others would overwrite."""
        for earlier, later in combinations(self.space, 2):
            if earlier.startswith(f"{later}."):
                yield (
                    f"`space.{later}` would overwrite `{earlier}`, which stands before it; put "
                    "the section first"
                )
        seen: dict[str, Distribution] = {}
        for key, distribution in self.space.items():
            for name, asked in distribution.when.items():
                if name not in seen:
                    yield (
                        f"`space.{key}.when` names `{name}`, which is no key of the space that "
                        "stands before it"
                    )
                elif problem := _impossible(asked, seen[name]):
                    yield f"`space.{key}.when.{name}` {problem}"
            seen[key] = distribution

    def _pbt_problems(self) -> Iterator[str]:
        if self.scheduler != "pbt" and not isinstance(self.scheduler, Pbt):
            return
        if self.algorithm != "random":
            yield (
                "`scheduler: pbt` changes values as it goes, and begins with all trials at once; "
                f"it needs `algorithm: random`, found {self.algorithm}"
            )
        if self.trials == 1:
            yield "`trials` is the population of `scheduler: pbt`, which needs two at least"


def _impossible(asked: Any, other: Distribution) -> str:
    """Why a condition can never hold, as the rest of a sentence; empty where it can."""
    if other.kind in {"uniform", "log_uniform"}:
        return "needs a key of whole numbers or choices, since a range has no exact values"
    values = allowed_by(asked, other)
    if not values:
        return "is an empty list; name a value that the key must have"
    wrong = next((value for value in values if not other.takes(value)), NOTHING)
    return "" if wrong is NOTHING else f"is {_as_text(wrong)[:60]}, which that key never has"


NOTHING = object()


def metrics_of(spec: SearchSpec) -> tuple[str, ...]:
    """The names of the metrics that are asked for; none where it is left to the training."""
    if spec.metric is None:
        return ()
    if isinstance(spec.metric, str):
        return (spec.metric,)
    return tuple(objective.metric for objective in spec.metric)


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
