"""What a person sees while a command works: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from batchtrain.cli.epoch_line import epoch_line, step_line
from batchtrain.cli.outcome import plain
from batchtrain.cli.search_view import SearchView, best_line, in_words, search_line
from batchtrain.progress import Progress as Watcher
from batchtrain.progress import SearchStanding, TrainingStanding

__all__ = ["ConsoleProgress", "Pace", "in_words"]

QUIET_S = 5.0
"""In a log, how soon at the earliest a line says how far a long piece of work is ..."""
LONGEST_QUIET_S = 60.0
"""... and how late: each such line doubles the time to the next one, up to this."""

WINDOW_S = 60.0
"""A pace is that of the last minute: what was slower at the start does not count for hours."""

STYLES = {"built": "green", "resumed": "yellow", "reused": "cyan"}
INDENT = " " * 10


class Pace:
    """How fast something is done: over the last minute, or since it was first heard of.

    A run that resumes begins somewhere in the middle: what was done before does not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: deque[tuple[float, int]] = deque()

    def hear(self, done: int) -> None:
        """So much is done now."""
        now = self._clock()
        if self._heard and done < self._heard[-1][1]:
            self._heard.clear()  # another attempt, which begins before
        self._heard.append((now, done))
        while len(self._heard) > 2 and self._heard[1][0] <= now - WINDOW_S:
            self._heard.popleft()

    def rate(self, unit: str) -> list[str]:
        """Such as `["5,300 rows/s"]`; empty before anything can be told."""
        each = self._seconds_each
        if each is None:
            return []
        rate = 1 / each
        return [f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"]

    def left(self, total: int | None) -> list[str]:
        """Such as `["4 min left"]`; empty before anything can be told, and at the end."""
        each = self._seconds_each
        if each is None or total is None or self._heard[-1][1] >= total:
            return []
        return [f"{in_words((total - self._heard[-1][1]) * each)} left"]

    @property
    def _seconds_each(self) -> float | None:
        if len(self._heard) < 2:
            return None
        (first, done_first), (last, done_last) = self._heard[0], self._heard[-1]
        seconds, done = last - first, done_last - done_first
        return seconds / done if seconds > 0 and done > 0 else None


class ConsoleProgress(Watcher):
    """Prints a line a stage, a line for some epochs, and a word now and then in long work.

    On a terminal there is a live bar below the lines. What it is told may come from two threads.
    """

    def __init__(
        self,
        console: Console,
        every_epochs: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say nothing yet.

        Args:
            console: Where to.
            every_epochs: Every how many epochs a line is printed.
            clock: Seconds that never go back.
        """
        self._console = console
        self._clock = clock
        self._every_epochs = every_epochs
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        """Forget the stage before."""
        self._last_line, self._quiet = self._clock(), QUIET_S
        self._paces: dict[str, Pace] = {}
        self._rows = Pace(self._clock)
        self._standing: TrainingStanding | None = None
        self._unsaid: str | None = None
        self._best: tuple[int, Mapping[str, float | None]] | None = None

    def stage_started(self, name: str) -> None:
        """See `Progress.stage_started`."""
        with self._lock:
            self._begin()
            if self._console.is_terminal:
                self._bar = Progress(
                    TextColumn("[bold]{task.description}"),
                    BarColumn(bar_width=12),
                    TextColumn("{task.fields[pace]}", markup=False),
                    # On a narrow terminal it is cut, not wrapped: a bar of two lines flickers.
                    TextColumn(
                        "{task.fields[detail]}",
                        markup=False,
                        table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                    ),
                    console=self._console,
                    transient=True,
                    expand=True,
                    refresh_per_second=8,
                )
                self._task = self._bar.add_task(name.ljust(9), total=None, detail="", pace="")
                self._bar.start()

    def working(self, what: str, done: int, total: int | None) -> None:
        """See `Progress.working`."""
        with self._lock:
            pace = self._paces.setdefault(what, Pace(self._clock))
            pace.hear(done)
            of = f" of {total:,}" if total else ""
            rate = pace.rate("rows" if "rows" in what else what)
            self._show(f"{done:,}{of} {what}", [*rate, *pace.left(total)], done, total)

    def training(self, standing: TrainingStanding) -> None:
        """See `Progress.training`."""
        with self._lock:
            self._standing = standing
            self._rows.hear(standing.rows)
            pace = self._pace(standing.total_rows)
            if standing.step == 0 and standing.epoch > 1 and self._bar is None:
                # An epoch is just over, and its own line comes next.
                return
            self._show(step_line(standing), pace, standing.rows, standing.total_rows)

    def searching(self, standing: SearchStanding) -> None:
        """See `Progress.searching`."""
        with self._lock:
            if self._console.is_terminal:
                self._draw(SearchView(standing, self._clock))
                return
            best = standing.best[0] if standing.best else None
            if best is not None and (best.number, best.scores) != self._best:
                self._best = (best.number, best.scores)
                self._say(plain(f"{INDENT}{best_line(best)}"))
            if self._is_quiet():
                self._quiet = min(2 * self._quiet, LONGEST_QUIET_S)
                self._say(plain(f"{INDENT}{search_line(standing)}"))

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        with self._lock:
            epoch = int(record["epoch"])
            total = None
            if self._standing is not None and epoch:
                total = self._standing.total_rows
                # The last one may be cut short by a limit of steps or time.
                self._rows.hear(min(epoch * self._standing.epoch_rows, total))
            pace, shown = self._pace(total), epoch_line(record, epochs)
            line = ", ".join([shown, *pace])
            is_due = epoch % self._every_epochs == 0 or epoch in {1, epochs}
            if epoch and (is_due or self._is_quiet()):
                self._say(f"{INDENT}{line}")
                self._unsaid = None
            elif epoch:
                self._unsaid = f"{INDENT}{line}"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, detail=shown, pace=", ".join(pace))
                if total is None:
                    self._bar.update(self._task, completed=epoch, total=epochs)

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """See `Progress.stage_finished`."""
        with self._lock:
            self.close()
            if self._unsaid is not None:
                # Of the epoch with which the training ended early.
                self._say(self._unsaid)
                self._unsaid = None
            style = STYLES.get(status, "")
            self._console.print(
                f"[bold]{name:<9}[/] [{style}]{status:<7}[/] {detail}  [dim]{seconds:.1f} s[/]",
                highlight=False,
                soft_wrap=True,
            )
            self._last_line = self._clock()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        with self._lock:
            self._say(plain(text))

    def close(self) -> None:
        """Take the bar away; also when a stage failed."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = self._task = None
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _draw(self, view: SearchView) -> None:
        """Put the table of a search where the bar of the stage was."""
        if self._live is None:
            self.close()
            self._live = Live(view, console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        else:
            self._live.update(view)

    def _pace(self, total_rows: int | None) -> list[str]:
        return [*self._rows.rate("rows"), *self._rows.left(total_rows)]

    def _show(self, what: str, pace: list[str], done: int, total: int | None) -> None:
        """Put a word on the bar, or in a log if it was quiet for long."""
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=done, total=total, detail=what, pace=", ".join(pace)
            )
        elif self._is_quiet():
            self._quiet = min(2 * self._quiet, LONGEST_QUIET_S)
            self._say(", ".join([f"{INDENT}{what}", *pace]))

    def _is_quiet(self) -> bool:
        return self._clock() - self._last_line > self._quiet

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last_line = self._clock()
