"""What the parts of `benchmarks.ray_runs` share: how much to measure, and what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from benchmarks.paired import Comparison, Spread, Taken

__all__ = ["FULL", "QUICK", "Effort", "Found", "found_of", "in_turns", "load", "ratios"]

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Paired rounds that count, of whole processes.
        share: Of the rows.
        epochs: Of drug200.
        is_quick: Whether it is only to be seen that it runs.
    """

    rounds: int
    share: float
    epochs: int
    is_quick: bool = False

    def rows(self, num_rows: int) -> int:
        """So many rows, or fewer for a quick look."""
        return int(num_rows * self.share)


FULL = Effort(rounds=3, share=1.0, epochs=10)
QUICK = Effort(rounds=1, share=0.02, epochs=2, is_quick=True)


@dataclass(frozen=True)
class Found:
    """What one part gave.

    Attributes:
        taken: By contender, each round, as JSON.
        ratios: By what is compared with what.
    """

    taken: Mapping[str, Sequence[Any]]
    ratios: Mapping[str, Spread]

    def to_json(self) -> dict[str, Any]:
        """The document of this part."""
        return {
            "taken": dict(self.taken),
            "ratios": {name: asdict(spread) for name, spread in self.ratios.items()},
        }


def found_of(taken: Mapping[str, Sequence[Taken]], compared: Sequence[Comparison]) -> Found:
    """What paired runs in one process gave; the ratios are those on the clock."""
    return Found(
        {name: [asdict(run) for run in runs] for name, runs in taken.items()},
        {f"{each.ours} / {each.theirs}": each.wall for each in compared},
    )


def in_turns(
    contenders: Mapping[str, Callable[[], Measured]], effort: Effort
) -> dict[str, list[Measured]]:
    """Run all contenders once a round, every second round the other way round.

    The first contender runs once more before the rounds, for whatever is done only once.
    """
    taken: dict[str, list[Measured]] = {name: [] for name in contenders}
    forth = list(contenders)
    if not effort.is_quick:
        contenders[forth[0]]()
    for turn in range(effort.rounds):
        for name in forth if turn % 2 == 0 else forth[::-1]:
            taken[name].append(contenders[name]())
    return taken


def ratios(numbers: Mapping[str, Sequence[float]], upper: str, lower: str) -> Spread:
    """One contender over another, round by round."""
    pairs = zip(numbers[upper], numbers[lower], strict=True)
    return Spread.of([one / other for one, other in pairs])


def load() -> str:
    """How busy the machine is: the processes that want a core, over the last minutes."""
    last, five, fifteen = os.getloadavg()
    return f"load {last:.1f}, {five:.1f}, {fifteen:.1f} on {os.cpu_count()} cores"
