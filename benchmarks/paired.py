"""Paired runs: what is compared runs turn by turn, and ratios are taken turn by turn.

A machine that others use too may be twice as slow a minute later. Runs that follow one another
directly are slowed alike, so that their ratio says more than the ratio of two averages.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

__all__ = [
    "Clock",
    "Comparison",
    "Contender",
    "Spread",
    "Taken",
    "compare",
    "run_in_turns",
    "show",
    "timed",
    "write_json",
]

Clock = Literal["wall_s", "cpu_s"]


@dataclass(frozen=True)
class Taken:
    """What one run took.

    Attributes:
        wall_s: Seconds on the clock: what a person waits.
        cpu_s: Seconds of all threads on a processor: they leave out the waiting for a processor
            that somebody else has, but not that a cache is shared.
    """

    wall_s: float
    cpu_s: float


Contender = Callable[[], Taken]
"""Runs once and says what the part that counts took."""


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
    """How one contender did against another, round by round.

    Attributes:
        ours: The contender that is judged.
        theirs: What it is judged against.
        wall: The ratios on the clock.
        cpu: The ratios of processor time.
        rounds: How many ratios each has.
    """

    ours: str
    theirs: str
    wall: Spread
    cpu: Spread
    rounds: int


def timed(run: Callable[[], object]) -> Taken:
    """Run something in this process and say what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return Taken(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)


def run_in_turns(
    contenders: Mapping[str, Contender], *, rounds: int, warm_up: int = 1
) -> dict[str, list[Taken]]:
    """Run all contenders once a round.

    Every second round goes the other way (A B, B A, A B, ...), so that no contender always runs
    behind the same neighbour or in the later, perhaps slower, half of a round.

    Args:
        contenders: By name.
        rounds: How many rounds count, at least 1.
        warm_up: How many rounds before them do not.

    Returns:
        Per contender what each counted round took, in the order of the rounds.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in contenders}
    forth = list(contenders)
    back = forth[::-1]
    for turn in range(-warm_up, rounds):
        for name in forth if turn % 2 == 0 else back:
            gc.collect()
            found = contenders[name]()
            if turn >= 0:
                taken[name].append(found)
    return taken


def compare(
    taken: Mapping[str, Sequence[Taken]], *, ours: str, theirs: str, as_speed: bool
) -> Comparison:
    """Compare two contenders, round by round.

    Args:
        taken: What `run_in_turns` gave.
        ours: The contender that is judged.
        theirs: What it is judged against.
        as_speed: True for how many times as fast as theirs (above 1 is better); False for how
            many times as long (below 1 is better).

    Raises:
        ValueError: If the two did not run the same number of rounds, or none.
    """
    upper, lower = (theirs, ours) if as_speed else (ours, theirs)

    def ratios(clock: Clock) -> Spread:
        pairs = zip(taken[upper], taken[lower], strict=True)
        return Spread.of([getattr(one, clock) / getattr(other, clock) for one, other in pairs])

    return Comparison(ours, theirs, ratios("wall_s"), ratios("cpu_s"), len(taken[ours]))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column holds names, the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A log has no width that must be kept, and a table that was cut cannot be compared.
    Console(width=None if console.is_terminal else 120).print(table)


def write_json(
    path: Path,
    taken: Mapping[str, Mapping[str, Sequence[Taken]]],
    found: Mapping[str, Sequence[Comparison]],
) -> None:
    """Write every single measurement beside the ratios, for whoever wants to look closer.

    Args:
        path: Where; an older file is replaced.
        taken: By case and contender, each round.
        found: By case, the ratios.
    """
    document: dict[str, Any] = {
        case: {
            "taken": {name: [asdict(each) for each in runs] for name, runs in contenders.items()},
            "ratios": [asdict(each) for each in found[case]],
        }
        for case, contenders in taken.items()
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
