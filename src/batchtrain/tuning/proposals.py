"""Which values the next trials have: at random, of a grid, or as Optuna's TPE has it."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.search import DEFAULT_TRIALS, Distribution, SearchSpec, same_value
from batchtrain.tuning.space import Space, Values, draw, grid, holds, rounded
from batchtrain.tuning.trials import Goal, TrialRecord

if TYPE_CHECKING:
    import optuna

__all__ = ["TPE_WAVE", "Proposer", "check_proposer", "make_proposer"]

TPE_WAVE = 8
"""So many trials are proposed from the same knowledge, and can run side by side."""

STARTUP_TRIALS = 10
"""So many results are drawn at random before the estimator is asked; Optuna's default."""

MOST_POINTS = 1_000_000
"""Of a grid; more is a mistake in `space` or `points`."""


Where: TypeAlias = Callable[[str], str]


def _nowhere(_key: str) -> str:
    return ""


class Proposer(Protocol):
    """Gives trials their values: a pure function of (search, seed, earlier results).

    Attributes:
        wave: So many trials are proposed from the same knowledge; None: all at once.
        total: How many there are in all; None without end.
    """

    wave: int | None
    total: int | None

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[Values]:
        """The values of some trials.

        Args:
            numbers: Of the trials.
            known: What came of earlier trials. Only those of earlier waves count.
        """
        ...


def make_proposer(
    spec: SearchSpec, seed: int, goals: Sequence[Goal], *, where: Where = _nowhere
) -> Proposer:
    """What the `algorithm` of a search says.

    Args:
        spec: The section.
        seed: Of the search.
        goals: What trials are compared by.
        where: Dotted key to its place, for messages.

    Raises:
        SpecError: If the algorithm needs a package that is not installed, or the grid is larger
            than any search.
    """
    if spec.algorithm == "grid":
        return _GridProposer.of(spec, where)
    if spec.algorithm == "tpe":
        check_proposer(spec, where=where)
        return _TpeProposer(spec.space, seed, tuple(goals), spec.trials or DEFAULT_TRIALS)
    return _RandomProposer(spec.space, seed, spec.trials or DEFAULT_TRIALS)


def check_proposer(spec: SearchSpec, *, where: Where = _nowhere) -> None:
    """Find out before any work whether Optuna can be used where the search asks for it.

    Args:
        spec: The section.
        where: Dotted key to its place, for the message.

    Raises:
        SpecError: If it is not installed.
    """
    if spec.algorithm == "tpe" and importlib.util.find_spec("optuna") is None:
        message = "expected the package optuna for tpe, which is not installed here"
        hint = "Install it with: pip install 'batchtrain[search]', or use random"
        raise SpecError([Problem(where("search.algorithm"), "search.algorithm", message, hint)])


@dataclass
class _RandomProposer:
    space: Space
    seed: int
    total: int | None
    wave: int | None = None

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[Values]:
        return [draw(self.space, self.seed, number) for number in numbers]


@dataclass
class _GridProposer:
    points: Sequence[Values]
    total: int | None
    wave: int | None = None

    @classmethod
    def of(cls, spec: SearchSpec, where: Where) -> _GridProposer:
        most = spec.trials or MOST_POINTS + 1
        points = list(islice(grid(spec.space, spec.points), most))
        if len(points) > MOST_POINTS:
            message = f"a grid over it has more than {MOST_POINTS} points"
            hint = "Set fewer `search.points`, or `search.trials`, or use random"
            raise SpecError([Problem(where("search.space"), "search.space", message, hint)])
        return cls(points, len(points))

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[Values]:
        return [dict(self.points[number]) for number in numbers]


@dataclass
class _TpeProposer:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011; Watanabe, 2023).

    Each wave has a study of its own, made anew from the results of the earlier ones, in the order
    of their numbers: nothing is kept between waves, so that a search that was killed goes on with
    the same values. Trials of one wave that were asked for before count as bad ones (the
    "constant liar"), so that a wave is not eight times the same trial.
    """

    space: Space
    seed: int
    goals: tuple[Goal, ...]
    total: int | None
    wave: int | None = field(default=TPE_WAVE)

    def propose(self, numbers: range, known: Sequence[TrialRecord]) -> list[Values]:
        proposed: dict[int, Values] = {}
        for first in sorted({number - number % TPE_WAVE for number in numbers}):
            last = min(first + TPE_WAVE, numbers.stop)
            earlier = sorted(
                (each for each in known if each.number < first), key=lambda each: each.number
            )
            proposed |= zip(range(first, last), self._wave(first, last, earlier), strict=True)
        return [proposed[number] for number in numbers]

    def _wave(self, first: int, last: int, earlier: Sequence[TrialRecord]) -> list[Values]:
        over = [each for each in earlier if each.is_over]
        if len(over) < STARTUP_TRIALS:
            return [draw(self.space, self.seed, number) for number in range(first, last)]
        with _quiet():
            study = self._study(first)
            worst = self._worst(over)
            study.add_trials([self._told(each, worst) for each in over])
            return [self._asked(study.ask()) for _ in range(first, last)]

    def _study(self, first: int) -> optuna.Study:
        import optuna

        digest = hashlib.sha256(f"{self.seed}/search/tpe/{first}".encode()).digest()
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "little"),
            n_startup_trials=0,  # `_wave` sees to it
            # Each key by itself: conditions need it, and on 20 seeds of a function of five keys it
            # did as well as all keys together; without the liar waves did as badly as random.
            multivariate=False,
            constant_liar=True,
        )
        return optuna.create_study(directions=["minimize"] * len(self.goals), sampler=sampler)

    def _worst(self, over: Sequence[TrialRecord]) -> tuple[float, ...] | None:
        """The highest cost of each goal so far; None where no trial has all of them."""
        able = [each.costs(self.goals) for each in over if self._has_result(each)]
        return tuple(map(max, zip(*able, strict=True))) if able else None

    def _has_result(self, record: TrialRecord) -> bool:
        return all(map(math.isfinite, record.costs(self.goals)))

    def _told(
        self, record: TrialRecord, worst: tuple[float, ...] | None
    ) -> optuna.trial.FrozenTrial:
        """A result as Optuna has it: all goals as costs.

        A trial that has failed counts as the worst of all, so that the estimator keeps away from
        such values. In Optuna's own state for it, it is left out, and then TPE was hardly better
        than random search where failures are many: on a function that fails for a third of its
        values the best of 64 trials cost 0.45, as the worst 0.16, at random 0.49 (20 seeds). With
        one goal a trial without a result is sorted behind all that have one; with several Optuna
        has no such state, and it is given the highest cost of each.
        """
        from optuna.trial import TrialState, create_trial

        space = {key: each for key, each in self.space.items() if key in record.values}
        costs: tuple[float, ...] | None = record.costs(self.goals)
        state, intermediate = TrialState.COMPLETE, {}
        is_single = len(self.goals) == 1
        if not self._has_result(record):
            costs = None if is_single else worst
            state = TrialState.PRUNED if is_single else TrialState.FAIL
            state = state if costs is None else TrialState.COMPLETE
        elif record.state == "stopped" and is_single:
            costs, state, intermediate = None, TrialState.PRUNED, self._costs_at_rungs(record)
        return create_trial(
            state=state,
            values=None if costs is None else list(costs),
            params={key: _told_value(record.values[key], each) for key, each in space.items()},
            distributions={key: _optuna_distribution(each) for key, each in space.items()},
            intermediate_values=intermediate,
        )

    def _costs_at_rungs(self, record: TrialRecord) -> dict[int, float]:
        goal = self.goals[0]
        return {
            epochs: goal.cost(scores.get(goal.metric)) for epochs, scores in record.rungs.items()
        }

    def _asked(self, trial: optuna.Trial) -> Values:
        values: Values = {}
        for key, distribution in self.space.items():
            if holds(distribution, values, self.space):
                values[key] = _asked_value(trial, key, distribution)
        return values


def _optuna_distribution(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    """A choice is told by its place, since Optuna has no lists and takes 1 and true for one."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if distribution.kind == "choice":
        return CategoricalDistribution(range(len(distribution.choice or ())))
    low, high = distribution.bounds
    if distribution.is_whole:
        return IntDistribution(int(low), int(high), log=distribution.is_log)
    return FloatDistribution(low, high, log=distribution.is_log)


def _told_value(value: Any, distribution: Distribution) -> Any:
    if distribution.kind != "choice":
        return value
    choices = distribution.choice or ()
    return next(place for place, each in enumerate(choices) if same_value(value, each))


def _asked_value(trial: optuna.Trial, key: str, distribution: Distribution) -> Any:
    if distribution.kind == "choice":
        choices = distribution.choice or ()
        return choices[trial.suggest_categorical(key, range(len(choices)))]
    low, high = distribution.bounds
    if distribution.is_whole:
        return trial.suggest_int(key, int(low), int(high), log=distribution.is_log)
    return rounded(trial.suggest_float(key, low, high, log=distribution.is_log), distribution)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from saying that a study was made, or that an option is experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Before version 5 the constant liar is one.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
