"""Paired runs: what is compared runs turn by turn, and ratios are taken turn by turn.

A machine that others use too may be twice as slow a minute later. Runs that follow one another
directly are slowed alike, so that their ratio says more than the ratio of two averages.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["Comparison", "Contender", "Spread", "compare", "run_in_turns", "show", "write_json"]

Contender = Callable[[], float]
"""Runs once and returns the seconds that count."""


@dataclass(frozen=True)
class Spread:
    """Some numbers in brief.

    Attributes:
        smallest: The smallest.
        median: The one in the middle; of an even count the mean of the two in the middle.
        largest: The largest.
    """

    smallest: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one number.

        Raises:
            ValueError: If there is none.
        """
        if not values:
            raise ValueError("expected at least one run to summarise, found none. Run some rounds")
        return cls(min(values), statistics.median(values), max(values))

    def __format__(self, spec: str) -> str:
        """The median with the range behind it, each in `spec`: `1.20 (1.10 to 1.30)`."""
        return f"{self.median:{spec}} ({self.smallest:{spec}} to {self.largest:{spec}})"


@dataclass(frozen=True)
class Comparison:
    """How one contender did against another.

    Attributes:
        ours: The contender that is judged.
        theirs: What it is judged against.
        ratio: Per round what the caller asked `compare` for, in brief.
        rounds: How many rounds.
    """

    ours: str
    theirs: str
    ratio: Spread
    rounds: int


def run_in_turns(
    contenders: Mapping[str, Contender], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run all contenders once a round.

    Every second round goes the other way (A B, B A, A B, ...), so that no contender always has
    the place behind the same neighbour or the later, perhaps slower, half of a round.

    Args:
        contenders: By name.
        rounds: How many rounds count, at least 1.
        warm_up: How many rounds before them do not.

    Returns:
        Per contender the seconds of each counted round, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, rounds):
        names = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in names:
            gc.collect()
            taken = contenders[name]()
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def compare(
    seconds: Mapping[str, Sequence[float]], *, ours: str, theirs: str, speed: bool
) -> Comparison:
    """Compare two contenders, round by round.

    Args:
        seconds: What `run_in_turns` gave.
        ours: The contender that is judged.
        theirs: What it is judged against.
        speed: True for how many times as fast as theirs (above 1 is faster); False for how many
            times as long (below 1 is faster).

    Raises:
        ValueError: If the two did not run the same number of rounds, or none.
    """
    pairs = list(zip(seconds[ours], seconds[theirs], strict=True))
    ratios = [theirs_s / ours_s if speed else ours_s / theirs_s for ours_s, theirs_s in pairs]
    return Comparison(ours, theirs, Spread.of(ratios), len(ratios))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column holds names, the others numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    # In a log there is no width to respect: a table that is cut in two cannot be compared.
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)


def write_json(
    path: Path, seconds: Mapping[str, Mapping[str, Sequence[float]]], found: Sequence[Comparison]
) -> None:
    """Write every single measurement beside the ratios, for whoever wants to look closer.

    Args:
        path: Where; an older file is replaced.
        seconds: By case and contender, each round.
        found: The ratios.
    """
    document = {"seconds": seconds, "comparisons": [asdict(each) for each in found]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
