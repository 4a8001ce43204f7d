"""Population-based training: from one generation to the next, and the cohort of all members.

Jaderberg et al. (2017), "Population Based Training of Neural Networks": truncation selection, then
the exploration of Ray's `PopulationBasedTraining`. Unlike Ray's, a generation is complete before
the next one begins, and every draw belongs to the seed, the generation and the member, so that
the result does not depend on who came first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from batchtrain.row_order import counter_generator
from batchtrain.spec.changes import CHANGEABLE
from batchtrain.spec.search import Pbt
from batchtrain.tuning.cohorts import Decision, Known, NoCohorts, cost_at
from batchtrain.tuning.rungs import rungs
from batchtrain.tuning.space import Space, explore
from batchtrain.tuning.trials import Goal

__all__ = [
    "Descent",
    "Generations",
    "Member",
    "changes_along",
    "next_generation",
    "quantile_size",
]


@dataclass(frozen=True)
class Member:
    """A member of the population at the end of a generation.

    Attributes:
        number: Of the trial.
        values: By dotted key of the spec, those of this generation.
        cost: Of which less is better; infinity where it failed.
    """

    number: int
    values: Mapping[str, Any]
    cost: float


@dataclass(frozen=True)
class Descent:
    """How a member begins the next generation.

    Attributes:
        number: Of the trial.
        parent: The trial whose state it goes on with; its own number where it keeps its own.
        values: With which values.
    """

    number: int
    parent: int
    values: Mapping[str, Any]


def quantile_size(members: int, quantile: float) -> int:
    """How many are replaced, at most half of them; none of a single one (as Ray has it)."""
    return min(math.ceil(members * quantile), members // 2)


def next_generation(
    members: Sequence[Member],
    *,
    space: Space,
    spec: Pbt,
    seed: int,
    generation: int,
) -> list[Descent]:
    """Replace the worst members by changed copies of some of the best.

    Members of infinite cost are replaced whether or not they are within the quantile. Where all
    are, nobody is. Each parent is drawn at random from the best, as the paper's truncation
    selection has it.

    Args:
        members: All of them, by number.
        space: The values that may be tried.
        spec: The settings.
        seed: Of the search.
        generation: The number of the generation that ends; the first is 0.

    Returns:
        One for each member, by number.
    """
    ordered = sorted(members, key=lambda each: (each.cost, each.number))
    able = sum(each.cost < math.inf for each in ordered)
    size = quantile_size(len(ordered), spec.quantile)
    best = ordered[: min(size, able)] if size else []
    worst = {each.number for each in ordered[min(len(ordered) - size, able) :]} if best else set()
    following = []
    for member in sorted(members, key=lambda each: each.number):
        parent, values = member, member.values
        if member.number in worst:
            key = (seed, "pbt", generation, member.number)
            parent = best[int(counter_generator(*key).random_raw()) * len(best) >> 64]
            values = explore(space, parent.values, *key, resample=spec.resample)
        following.append(Descent(member.number, parent.number, dict(values)))
    return following


class Generations(NoCohorts):
    """The cohort of PBT: all members wait for one another at every rung.

    A member that failed takes part with an infinite cost and goes on as a copy. What it died of
    is over: its state becomes the parent's.
    """

    compares_latest = True

    def __init__(
        self,
        scheduler: Pbt,
        *,
        epochs: int,
        trials: int,
        goal: Goal,
        space: Space,
        seed: int,
    ) -> None:
        """Begin with no generation.

        Args:
            scheduler: Its settings.
            epochs: The full number.
            trials: The size of the population.
            goal: What members are compared by.
            space: The values that may be tried.
            seed: Of the search.
        """
        self._scheduler = scheduler
        self._rungs = rungs(scheduler, epochs)
        self._trials = trials
        self._goal = goal
        self._space = space
        self._seed = seed
        self._after: list[dict[int, Descent]] = []
        self._is_lost = False

    def rungs_of(self, number: int) -> tuple[int, ...]:
        """See `Cohorts`: the same for all members."""
        return self._rungs

    def together(self, number: int) -> range:
        """See `Cohorts`: the whole population."""
        return range(self._trials)

    def decide(self, number: int, epochs: int, known: Known) -> Decision | None:
        """See `Cohorts`: all go on together, unless all of them failed."""
        if epochs == self._rungs[-1]:
            return "stop"
        if self.heir(number, epochs, known) is not None:
            return "go on"
        return "stop" if self._is_lost else None

    def heir(self, number: int, epochs: int, known: Known) -> Descent | None:
        """See `Cohorts`; the last rung has none."""
        place = self._rungs.index(epochs)
        if place == len(self._rungs) - 1:
            return None
        while len(self._after) <= place and not self._is_lost:
            members = self._members(len(self._after), known)
            if members is None:
                return None
            if all(math.isinf(member.cost) for member in members):
                self._is_lost = True
                return None
            found = next_generation(
                members,
                space=self._space,
                spec=self._scheduler,
                seed=self._seed,
                generation=len(self._after),
            )
            self._after.append({each.number: each for each in found})
        return self._after[place][number] if place < len(self._after) else None

    def _members(self, generation: int, known: Known) -> list[Member] | None:
        """The population at the end of a generation; None while one of them is missing."""
        before = self._after[generation - 1] if generation else None
        members = []
        for number in range(self._trials):
            cost = cost_at(known.get(number), self._rungs[generation], self._goal)
            if cost is None:
                return None
            values = known[number].values if before is None else before[number].values
            members.append(Member(number, values, cost))
        return members


def changes_along(path: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """`training.changes` of the ordinary run that trains as a lineage did.

    The run's spec has the first values, and these changes.

    Args:
        path: After how many epochs which values came into force; the first is after 0.

    Raises:
        ValueError: If a key differs that cannot change while a model trains.

    Example:
        >>> lr = "training.optimizer.lr"
        >>> changes_along([(0, {lr: 0.1}), (5, {lr: 0.1}), (10, {lr: 0.2})])
        [{'epoch': 10, 'lr': 0.2}]
    """
    found: list[dict[str, Any]] = []
    for (_, before), (epoch, values) in pairwise(path):
        moved = {key for key in {*before, *values} if before.get(key) != values.get(key)}
        if not moved <= CHANGEABLE.keys():
            raise ValueError(f"expected only {', '.join(CHANGEABLE)} to differ, found {moved}")
        if moved:
            change: dict[str, Any] = {"epoch": epoch}
            found.append(change | {CHANGEABLE[key]: values[key] for key in sorted(moved)})
    return found
