"""Where trials are compared, and which of them go on: the arithmetic of ASHA and HyperBand.

All of it is a pure function of numbers. Which trial is compared with which is in `cohorts`.
A cost is a number of which less is better, and infinity where a trial failed (`Goal.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchtrain.spec.search import Asha, HyperBand, Pbt

__all__ = ["Bracket", "Scheduler", "brackets", "goes_on", "kept", "rungs", "survives"]

Scheduler = Asha | HyperBand | Pbt | None


@dataclass(frozen=True)
class Bracket:
    """Trials that are compared with one another: many to few epochs, then few to many.

    Attributes:
        trials: How many begin.
        rungs: After how many epochs they are compared; the last is the full number.
        counts: How many train up to each rung; the first is `trials`.
    """

    trials: int
    rungs: tuple[int, ...]
    counts: tuple[int, ...]

    def of_size(self, trials: int, factor: int) -> Bracket:
        """The same rungs for another number of trials, as where a search ends within it.

        At least one goes on at every rung.
        """
        counts = tuple(max(1, trials // factor**place) for place in range(len(self.rungs)))
        return Bracket(trials, self.rungs, counts)


def rungs(scheduler: Scheduler, epochs: int) -> tuple[int, ...]:
    """All epochs at which something is decided, and last the full number.

    ASHA has them at `first_epochs` times the powers of `factor`, HyperBand at `epochs` over its
    powers (each bracket has the last few of them), PBT every `interval_epochs`.

    Example:
        >>> rungs(Asha(kind="asha"), 100)
        (1, 4, 16, 64, 100)
        >>> rungs(HyperBand(kind="hyperband"), 100)
        (1, 3, 11, 33, 100)
        >>> rungs(None, 100)
        (100,)
    """
    match scheduler:
        case Asha(first_epochs=first, factor=factor):
            powers = range(_halvings(first, factor, epochs))
            return (*(first * factor**power for power in powers), epochs)
        case HyperBand():
            return brackets(epochs, scheduler.factor, scheduler.first_epochs)[0].rungs
        case Pbt(interval_epochs=interval):
            return (*range(interval, epochs, interval), epochs)
        case _:
            return (epochs,)


def survives(costs: Sequence[float], factor: int) -> bool:
    """Whether ASHA lets a trial go on at a rung.

    It goes on where it is among the best `len(costs) // factor`, and at least the best one, of the
    trials up to and with its own; of two equal ones the earlier is the better. So the first trial
    always goes on, the next ones where they are the best so far, and infinity never does. That
    share is Li et al. (2020), algorithm 2: the top |rung| / factor.

    Ray's `ASHAScheduler` takes those that happened to arrive earlier, without the trial itself,
    draws the line at the percentile 1 - 1 / factor between two of them, and lets ties go on.

    Args:
        costs: Of the trials that reached the rung, in the order of their numbers; the last one is
            the trial's own.
        factor: One in so many goes on.

    Example:
        >>> [survives(costs, 2) for costs in ([3.0], [3.0, 4.0], [3.0, 4.0, 2.0], [3, 4, 2, 2.5])]
        [True, False, True, True]
    """
    own = costs[-1]
    better = sum(cost <= own for cost in costs[:-1])
    return goes_on(own, better=better, count=len(costs), factor=factor)


def goes_on(cost: float, *, better: int, count: int, factor: int) -> bool:
    """`survives` for a trial of which the place is known.

    Args:
        cost: Its own.
        better: How many of the earlier ones are at least as good.
        count: How many there are, with its own.
        factor: One in so many goes on.
    """
    return cost < math.inf and better < max(1, count // factor)


def kept(costs: Mapping[int, float], count: int) -> frozenset[int]:
    """The best so many, ties by number; those of infinite cost are never among them.

    Args:
        costs: By the numbers of the trials.
        count: How many at most.
    """
    able = sorted((cost, number) for number, cost in costs.items() if cost < math.inf)
    return frozenset(number for _, number in able[:count])


def brackets(epochs: int, factor: int, first_epochs: int = 1) -> list[Bracket]:
    """The brackets of HyperBand, in their order (Li et al., 2018, algorithm 1).

    Bracket s, from the largest to 0, begins with n = ceil((s_max + 1) / (s + 1) * factor^s) trials
    of epochs / factor^s epochs, and lets floor(n / factor^i) of them train for factor^i times as
    many. Parts of an epoch are left off. `first_epochs` is the unit in which the paper measures,
    so that s_max is the logarithm of epochs / first_epochs, rounded down.

    Example:
        >>> [(each.rungs, each.counts) for each in brackets(9, 3)]
        [((1, 3, 9), (9, 3, 1)), ((3, 9), (5, 1)), ((9,), (3,))]
    """
    # Nothing is halved where even the first rung is the last.
    most = max(0, _halvings(first_epochs, factor, epochs + 1) - 1)
    made = []
    for halvings in range(most, -1, -1):
        trials = -(-(most + 1) * factor**halvings // (halvings + 1))
        steps = tuple(epochs // factor**power for power in range(halvings, -1, -1))
        made.append(Bracket(trials, steps, ()).of_size(trials, factor))
    return made


def _halvings(first: int, factor: int, end: int) -> int:
    """How many of first, first * factor, ... are below `end`; in whole numbers, so exact."""
    count = 0
    while first * factor**count < end:
        count += 1
    return count
