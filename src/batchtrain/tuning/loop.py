"""The search as whoever carries it out sees it: the next unit, and what came of the last."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.points import passed
from batchtrain.progress import Progress
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.running import read_outcome
from batchtrain.tuning.search import Search
from batchtrain.tuning.standing import SearchWatch
from batchtrain.tuning.work import Outcome, Unit

__all__ = ["Executor", "SearchLoop"]

TOLD_SECONDS = 0.5
"""An epoch is told of this often; a trial that is over at once, as far as `SHOWN_SHARE` allows."""
TABLE_SECONDS = 5.0
"""The table is written this often while a search goes on: it is for people, and never read back."""
SHOWN_SHARE = 0.05
"""Of the time at most goes into each of the two, so that many trials are shown less often."""


class Executor(Protocol):
    """Carries out the units of a search, in this process or on Ray."""

    def __call__(self, loop: SearchLoop, stop_requested: Callable[[], bool]) -> None:
        """Work until the search is over.

        Raises:
            InterruptedRunError: If a stop was requested.
            BatchtrainError: If something else than a trial failed.
        """
        ...


@dataclass
class SearchLoop:
    """Replays what is published, hands out what is not, and tells how far it is.

    Attributes:
        search: The state of the search.
        layout: Where its outcomes lie.
        watch: Turns records into what is shown.
        progress: Hears of it.
        document: Makes the table.
        max_seconds: No trial begins after so many, over all attempts; None without end.
        clock: Seconds that never go back.
    """

    search: Search
    layout: SearchLayout
    watch: SearchWatch
    progress: Progress
    document: Callable[[], Mapping[str, Any]]
    max_seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    reused: int = 0
    _epochs: dict[int, int] = field(default_factory=dict)
    _told_at: float = -math.inf
    _showing: float = 0.0
    _table_at: float = field(init=False)
    _began: float = field(init=False)
    _seconds_before: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._table_at = self._began + TABLE_SECONDS
        if self.max_seconds is not None:
            with suppress(FileNotFoundError, KeyError, TypeError, ValueError):
                found = json.loads(self.layout.storage.read(self.layout.seconds))
                self._seconds_before = float(found["seconds"])

    def next(self) -> Unit | None:
        """A unit that nobody has done yet; None where there is none before others are done."""
        with self._lock:
            while (unit := self.search.next_unit()) is not None:
                outcome = read_outcome(self.layout, unit)
                if outcome is not None:
                    self.reused += 1
                    self._take(unit, outcome)
                elif self._is_late(unit):
                    self.search.skip(unit)
                else:
                    self._show()
                    return unit
            return None

    def done(self, unit: Unit, outcome: Outcome) -> None:
        """Take what came of a unit, which is published."""
        with self._lock:
            passed("search.taken")
            self._take(unit, outcome)
            self._show(after_seconds=0.0)
            now = self.clock()
            if now > self._table_at:
                self.write_table()
                after = self.clock()
                self._table_at = after + max(TABLE_SECONDS, (after - now) / SHOWN_SHARE)

    def close(self) -> None:
        """Show how far it came, and write the table of that."""
        with self._lock:
            self._tell_standing()
            self.write_table()

    def is_over(self) -> bool:
        """Whether nothing is left to do, or to wait for."""
        with self._lock:
            return self.search.is_over()

    def tell(self, number: int, epoch: int) -> None:
        """Hear how far a unit is; see `Teller`."""
        with self._lock:
            self._epochs[number] = epoch
            self._show()

    def write_table(self) -> None:
        """Write the table as it is now."""
        passed("search.table")
        self.layout.storage.write(self.layout.table, canonical_json(dict(self.document())))
        if self.max_seconds is not None:
            seconds = canonical_json({"seconds": self._seconds()})
            self.layout.storage.write(self.layout.seconds, seconds)

    def _take(self, unit: Unit, outcome: Outcome) -> None:
        self.search.finished(unit, outcome)
        for number in unit.numbers:
            self._epochs.pop(number, None)

    def _is_late(self, unit: Unit) -> bool:
        if self.max_seconds is None or unit.first_epoch:
            return False
        return self._seconds() >= self.max_seconds

    def _seconds(self) -> float:
        return self._seconds_before + self.clock() - self._began

    def _show(self, *, after_seconds: float = TOLD_SECONDS) -> None:
        """Tell how far it is, unless that was told less than so many seconds ago."""
        now = self.clock()
        is_costly = self._showing > SHOWN_SHARE * (now - self._began)
        if is_costly or now - self._told_at < after_seconds:
            return
        self._tell_standing()
        self._told_at = self.clock()
        self._showing += self._told_at - now

    def _tell_standing(self) -> None:
        running = [
            f"{unit.title}, epoch {self._epoch(unit)} of {unit.full_epochs}"
            for unit in self.search.at_work
        ]
        self.progress.searching(self.watch.standing(self.search.trials(), running))

    def _epoch(self, unit: Unit) -> int:
        return max(self._epochs.get(number, unit.first_epoch) for number in unit.numbers)
