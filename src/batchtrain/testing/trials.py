"""Which kills the chaos runner tries: a pure function of a seed and of the points seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchtrain.row_order import counter_generator

__all__ = ["Kill", "Seen", "Trial", "plan_trials"]

Counts = Mapping[str, int]
"""Point to how often it was passed."""

MORE_KILLS = 0.3
"""The share of trials that are killed once more than needed."""


@dataclass(frozen=True)
class Kill:
    """One process ends itself without a word at the n-th pass of a point.

    Attributes:
        rank: Whose process; 0 with one rank, where it is the whole run.
        point: The name of the point.
        count: At which pass, from 1.
    """

    rank: int
    point: str
    count: int

    def __str__(self) -> str:
        """Such as `step.backward:3 on rank 1`."""
        return f"{self.point}:{self.count} on rank {self.rank}"


@dataclass(frozen=True)
class Trial:
    """One run that is killed, and resumed until it ends.

    Attributes:
        number: From 0.
        ranks: W.
        kills: One for each attempt; the attempt after the last is left alone.
    """

    number: int
    ranks: int
    kills: tuple[Kill, ...]

    def __str__(self) -> str:
        """Its number, ranks and kills in one line."""
        kills = ", then ".join(map(str, self.kills))
        return f"trial {self.number}, {self.ranks} ranks: {kills}"


@dataclass(frozen=True)
class Seen:
    """How often the ranks of a run pass each point.

    Attributes:
        first: In an attempt that nobody disturbs; one entry a rank.
        resumed: In an attempt that goes on from a checkpoint.
    """

    first: Sequence[Counts]
    resumed: Sequence[Counts]

    def points(self) -> set[str]:
        """The names of all points."""
        return {point for counts in (*self.first, *self.resumed) for point in counts}


def plan_trials(seed: int, number: int, seen: Mapping[int, Seen]) -> list[Trial]:
    """Draw the kills; every point has its turn before one comes again.

    A point that only a resume passes is hit in the second attempt, after a kill between two
    steps. Of a point that is passed often any pass may be the one.

    Args:
        seed: Equal seeds give equal trials.
        number: How many.
        seen: The points, by the number of ranks.
    """
    turns = _turns(seed, number, seen)
    return [_trial(seed, place, ranks, point, seen[ranks]) for place, ranks, point in turns]


def _turns(seed: int, number: int, seen: Mapping[int, Seen]) -> list[tuple[int, int, str]]:
    """Number, ranks and point of each trial: the numbers of ranks take turns.

    Each takes a point that has not been hit, of those the one that the fewest numbers of ranks
    pass; when none is left, all count as not hit again.
    """
    sizes = sorted(seen)
    names = sorted(set().union(*(seen[size].points() for size in sizes)))
    words = counter_generator(seed, "chaos", "points").random_raw(len(names)).tolist()
    passed_by = {name: sum(name in seen[size].points() for size in sizes) for name in names}
    order = sorted(names, key=lambda name: (passed_by[name], words[names.index(name)]))
    waiting: list[str] = []
    turns = []
    for place in range(number):
        size = sizes[place % len(sizes)]
        points = seen[size].points()
        if not points.intersection(waiting):
            waiting += [name for name in order if name not in waiting]
        point = next(name for name in waiting if name in points)
        waiting.remove(point)
        turns.append((place, size, point))
    return turns


def _trial(seed: int, place: int, ranks: int, point: str, seen: Seen) -> Trial:
    draws = counter_generator(seed, "chaos", "trial", place)
    kills = []
    if any(point in counts for counts in seen.first):
        kills.append(_kill(draws, point, seen.first))
    else:
        # There is a checkpoint then. The first pass of the other point: a later one may not come
        # in a resume that has less left to do.
        kills.append(_kill(draws, "checkpoint.named", seen.first))
        kills.append(_kill(draws, point, seen.resumed, first_pass=True))
    if _share(draws) < MORE_KILLS:
        others = sorted(set().union(*seen.resumed))
        other = others[int(_share(draws) * len(others))]
        kills.append(_kill(draws, other, seen.resumed, first_pass=True))
    return Trial(place, ranks, tuple(kills))


def _kill(
    draws: np.random.Philox, point: str, counts: Sequence[Counts], *, first_pass: bool = False
) -> Kill:
    """A rank that passes the point, and one of its passes."""
    ranks = [rank for rank, of_rank in enumerate(counts) if point in of_rank]
    rank = ranks[int(_share(draws) * len(ranks))]
    passes = counts[rank][point]
    return Kill(rank, point, 1 if first_pass else 1 + int(_share(draws) * passes))


def _share(draws: np.random.Philox) -> float:
    """A number of [0, 1): the upper 53 bits of the next word."""
    return int(draws.random_raw(1)[0] >> np.uint64(11)) / 2**53
