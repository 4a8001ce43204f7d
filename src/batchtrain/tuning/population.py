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
from batchtrain.spec.search import Distribution, Pbt
from batchtrain.tuning.cohorts import Decision, Known, NoCohorts, cost_at
from batchtrain.tuning.rungs import rungs
from batchtrain.tuning.trials import Goal

__all__ = [
    "FACTORS",
    "Descent",
    "Generations",
    "Member",
    "changes_along",
    "drawn",
    "next_generation",
    "perturbed",
    "quantile_size",
]

FACTORS = (1.2, 0.8)
"""By what a number is multiplied (Jaderberg et al., 2017, appendix A; Ray's default)."""

WORDS_A_KEY = 2
"""Raw words that a key of the space has for itself: so no key's draw depends on another's."""


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
    space: Mapping[str, Distribution],
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
            words = _words(seed, generation, member.number, 1 + WORDS_A_KEY * len(space))
            parent = best[_below(words[0], len(best))]
            values = _explored(parent.values, space, spec.resample, words[1:])
        following.append(Descent(member.number, parent.number, dict(values)))
    return following


class Generations(NoCohorts):
    """The cohort of PBT: all members wait for one another at every rung.

    A member that failed takes part with an infinite cost and goes on as a copy. What it died of
    is over: its state becomes the parent's.
    """

    def __init__(
        self,
        scheduler: Pbt,
        *,
        epochs: int,
        trials: int,
        goal: Goal,
        space: Mapping[str, Distribution],
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
        self._first: dict[int, Mapping[str, Any]] = {}
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

    def lineage(self, number: int, epochs: int) -> list[tuple[int, Mapping[str, Any]]]:
        """How the state that a member has after a rung came about, its ancestors' part included.

        Args:
            number: Of the member.
            epochs: The rung that it trained up to; what is decided there is not in it.

        Returns:
            After how many epochs which values came into force; the first is after 0.
        """
        path: list[tuple[int, Mapping[str, Any]]] = []
        for place in reversed(range(self._rungs.index(epochs))):
            descent = self._after[place][number]
            path.append((self._rungs[place], descent.values))
            number = descent.parent
        return [(0, self._first[number]), *reversed(path)]

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
        if not generation:
            self._first = {member.number: member.values for member in members}
        return members


def changes_along(path: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """`training.changes` of the ordinary run that trains as a lineage did.

    The run's spec has the first values, and these changes.

    Args:
        path: What `Generations.lineage` gave.

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


def drawn(distribution: Distribution, share: float) -> Any:
    """The value at a share, from 0 to below 1, of a distribution."""
    if distribution.choice is not None:
        return distribution.choice[int(share * len(distribution.choice))]
    low, high = distribution.bounds
    match distribution.kind:
        case "uniform":
            return min(low + (high - low) * share, high)
        case "log_uniform":
            return _clipped(low * math.exp(math.log(high / low) * share), low, high)
        case "int":
            return int(low) + int(share * (int(high) - int(low) + 1))
        case _:
            # From half below the lowest to half above the highest, then the nearest.
            bottom, top = math.log(low - 0.5), math.log(high + 0.5)
            return int(_clipped(round(math.exp(bottom + (top - bottom) * share)), low, high))


def perturbed(distribution: Distribution, value: Any, share: float) -> Any:
    """A neighbour of a value: up for a share below 0.5, else down.

    Numbers are multiplied by 1.2 or 0.8 and kept within the bounds; a whole number moves by 1 at
    least, since Ray's rounding would leave 1 and 2 where they are for ever. A choice becomes the
    next or the one before it in the list, and stays where there is none.
    """
    up = share < 0.5
    if distribution.choice is not None:
        place = _place(distribution.choice, value)
        place = min(max(place + (1 if up else -1), 0), len(distribution.choice) - 1)
        return distribution.choice[place]
    low, high = distribution.bounds
    moved = value * FACTORS[0 if up else 1]
    if not distribution.kind.endswith("int"):
        return _clipped(moved, low, high)
    whole = round(moved)
    if whole == value:
        whole += 1 if up else -1
    return int(_clipped(whole, low, high))


def _explored(
    values: Mapping[str, Any],
    space: Mapping[str, Distribution],
    resample: float,
    words: Sequence[int],
) -> dict[str, Any]:
    """The values of a copy; a key whose condition holds only now is drawn, others are left out."""
    found: dict[str, Any] = {}
    for place, (key, distribution) in enumerate(space.items()):
        if not all(_matches(found, other, asked) for other, asked in distribution.when.items()):
            continue
        turn, draw = (_share(word) for word in words[WORDS_A_KEY * place :][:WORDS_A_KEY])
        is_known = key in values and (
            distribution.choice is None or _place(distribution.choice, values[key]) >= 0
        )
        if turn < resample or not is_known:
            found[key] = drawn(distribution, draw)
        else:
            found[key] = perturbed(distribution, values[key], draw)
    return found


def _matches(values: Mapping[str, Any], key: str, asked: Any) -> bool:
    wanted = asked if isinstance(asked, list | tuple) else [asked]
    return key in values and _place(wanted, values[key]) >= 0


def _place(choices: Sequence[Any], value: Any) -> int:
    """Where a value is among others, 1 and true told apart; -1 where it is not."""
    return next(
        (at for at, each in enumerate(choices) if type(each) is type(value) and each == value), -1
    )


def _clipped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _words(seed: int, generation: int, number: int, count: int) -> list[int]:
    words: list[int] = counter_generator(seed, "pbt", generation, number).random_raw(count).tolist()
    return words


def _share(word: int) -> float:
    """A raw word as a share from 0 to below 1, of its 53 highest bits."""
    return (word >> 11) / float(1 << 53)


def _below(word: int, count: int) -> int:
    """A raw word as a number from 0 to below `count`."""
    return (word * count) >> 64
