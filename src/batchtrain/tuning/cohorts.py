"""Which trials are compared with which, and whether one goes on beyond a rung.

A decision follows from the trials' results alone, never from when they came. It may have to wait
for results of others, and then only for trials that never wait for it in turn, so that something
can always be done: with ASHA for trials of smaller numbers, with HyperBand for those of the same
bracket, with PBT for the whole population.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Mapping
from itertools import cycle
from typing import Literal, Protocol

from batchtrain.spec.search import Asha, HyperBand
from batchtrain.tuning.rungs import Bracket, brackets, goes_on, kept, rungs
from batchtrain.tuning.trials import Goal, TrialRecord

__all__ = [
    "AshaCohorts",
    "Cohorts",
    "Decision",
    "Heir",
    "HyperBandCohorts",
    "Known",
    "NoCohorts",
    "cost_at",
]

Decision = Literal["go on", "stop"]

Known = Mapping[int, TrialRecord]
"""What is known of the trials that began, by number. It only grows: what was handed to a cohort
once is true for ever, apart from `state`, `values` and the final scores of a trial at work."""


class Heir(Protocol):
    """How a trial goes on after a rung where it does not simply go on."""

    @property
    def parent(self) -> int:
        """The trial whose state at the rung it goes on with; its own number for its own."""
        ...

    @property
    def values(self) -> Mapping[str, object]:
        """Its values from then on."""
        ...


class Cohorts(Protocol):
    """What a search asks at every rung, whichever scheduler it has."""

    @property
    def compares_latest(self) -> bool:
        """Whether trials are compared by their latest epoch, and not by the best so far."""
        ...

    def rungs_of(self, number: int) -> tuple[int, ...]:
        """After how many epochs a trial pauses; the last is the full number, where it ends."""
        ...

    def together(self, number: int) -> range:
        """The trials that wait for one another, and so must all be there."""
        ...

    def decide(self, number: int, epochs: int, known: Known) -> Decision | None:
        """What follows for a trial at one of its rungs; None while others' results are missing.

        A trial that failed or ended early is asked about at the first rung that it missed; only
        with PBT, where it may take over another's state, can that be `go on`.
        """
        ...

    def heir(self, number: int, epochs: int, known: Known) -> Heir | None:
        """With `go on`: whose state and which values it goes on with; None for its own."""
        ...


def cost_at(record: TrialRecord | None, epochs: int, goal: Goal) -> float | None:
    """The cost of a trial at a rung that it took part in; None while that is not known.

    Its score there, whatever became of it later; infinity where it failed before; and its final
    score where it ended by itself before, since more epochs would not have changed that.
    """
    if record is None:
        return None
    if epochs in record.rungs:
        return goal.cost(record.rungs[epochs].get(goal.metric))
    if record.state == "failed":
        return math.inf
    return goal.cost(record.scores.get(goal.metric)) if record.is_over else None


class NoCohorts:
    """Without a scheduler each trial trains to its end."""

    compares_latest = False

    def __init__(self, epochs: int) -> None:
        """Take the full number of epochs."""
        self._epochs = epochs

    def rungs_of(self, number: int) -> tuple[int, ...]:
        """See `Cohorts`."""
        return (self._epochs,)

    def together(self, number: int) -> range:
        """See `Cohorts`: nobody else."""
        return range(number, number + 1)

    def decide(self, number: int, epochs: int, known: Known) -> Decision | None:
        """See `Cohorts`: nothing follows the last epoch."""
        return "stop"

    def heir(self, number: int, epochs: int, known: Known) -> Heir | None:
        """See `Cohorts`."""
        return None


class AshaCohorts(NoCohorts):
    """ASHA in the order of the trials' numbers.

    At the first rung all trials take part, at each later one those that go on from the one before.
    A trial is compared with those of smaller numbers that take part, so its decision waits until
    each of them has come to the rung, was stopped, or ended. What was decided is remembered: a
    rung is gone through once, in the order of the numbers.
    """

    def __init__(self, scheduler: Asha, *, epochs: int, goal: Goal) -> None:
        """Begin with no trial.

        Args:
            scheduler: Its settings.
            epochs: The full number.
            goal: What trials are compared by.
        """
        self._rungs = rungs(scheduler, epochs)
        self._ladder = [_Rung(each, scheduler.factor, goal) for each in self._rungs[:-1]]

    def rungs_of(self, number: int) -> tuple[int, ...]:
        """See `Cohorts`: the same for all trials."""
        return self._rungs

    def decide(self, number: int, epochs: int, known: Known) -> Decision | None:
        """See `Cohorts`."""
        place = self._rungs.index(epochs)
        if place == len(self._ladder) or known[number].state == "failed":
            return "stop"
        below: _Rung | None = None
        for rung in self._ladder[: place + 1]:
            rung.advance(known, below)
            below = rung
        return _decision(self._ladder[place].survived.get(number))


class _Rung:
    """One rung of ASHA, as far as it is decided.

    Attributes:
        survived: By number whether a trial goes on; of all smaller numbers than `next`.
        next: The first trial that is not decided yet.
    """

    def __init__(self, epochs: int, factor: int, goal: Goal) -> None:
        self.survived: dict[int, bool] = {}
        self.next = 0
        self._epochs = epochs
        self._factor = factor
        self._goal = goal
        self._costs: list[float] = []

    def advance(self, known: Known, below: _Rung | None) -> None:
        """Decide one trial after the other until something is missing.

        Args:
            known: The results so far.
            below: The rung before, which is as far as it can be; None for the first.
        """
        while True:
            number = self.next
            takes_part = True if below is None else below.survived.get(number)
            if takes_part is None:
                return
            goes = False
            if takes_part:
                cost = cost_at(known.get(number), self._epochs, self._goal)
                if cost is None:
                    return
                better = bisect_right(self._costs, cost)
                insort(self._costs, cost)
                goes = goes_on(cost, better=better, count=len(self._costs), factor=self._factor)
            self.survived[number] = goes
            self.next += 1


class HyperBandCohorts(NoCohorts):
    """HyperBand: the trials fill its brackets one after the other, and then the brackets again.

    A decision waits for all trials of the bracket that came as far. The last bracket has the
    trials that are left.
    """

    def __init__(self, scheduler: HyperBand, *, epochs: int, trials: int, goal: Goal) -> None:
        """Divide the trials among the brackets.

        Args:
            scheduler: Its settings.
            epochs: The full number.
            trials: How many there are.
            goal: What trials are compared by.
        """
        self._goal = goal
        self._bands: list[_Band] = []
        self._band_of: list[_Band] = []
        first = 0
        for bracket in cycle(brackets(epochs, scheduler.factor, scheduler.first_epochs)):
            if first >= trials:
                break
            size = min(bracket.trials, trials - first)
            band = _Band(bracket.of_size(size, scheduler.factor), range(first, first + size))
            self._bands.append(band)
            self._band_of += [band] * size
            first += size

    def rungs_of(self, number: int) -> tuple[int, ...]:
        """See `Cohorts`: those of the trial's bracket."""
        return self._band_of[number].bracket.rungs

    def together(self, number: int) -> range:
        """See `Cohorts`: those of the trial's bracket."""
        return self._band_of[number].numbers

    def decide(self, number: int, epochs: int, known: Known) -> Decision | None:
        """See `Cohorts`."""
        band = self._band_of[number]
        place = band.bracket.rungs.index(epochs)
        if place == len(band.bracket.rungs) - 1 or known[number].state == "failed":
            return "stop"
        left = band.left_after(place, known, self._goal)
        return None if left is None else _decision(number in left)


class _Band:
    """The trials of one bracket, and which of them are left after each rung."""

    def __init__(self, bracket: Bracket, numbers: range) -> None:
        self.bracket = bracket
        self.numbers = numbers
        self._left: list[frozenset[int]] = [frozenset(numbers)]

    def left_after(self, place: int, known: Known, goal: Goal) -> frozenset[int] | None:
        """Those that go on from a rung; None while one of those that came as far is missing."""
        while len(self._left) <= place + 1:
            at = len(self._left) - 1
            costs = {}
            for number in sorted(self._left[at]):
                cost = cost_at(known.get(number), self.bracket.rungs[at], goal)
                if cost is None:
                    return None
                costs[number] = cost
            self._left.append(kept(costs, self.bracket.counts[at + 1]))
        return self._left[place + 1]


def _decision(goes: bool | None) -> Decision | None:
    if goes is None:
        return None
    return "go on" if goes else "stop"
