"""What a person sees while a command works: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from batchtrain.cli.outcome import plain
from batchtrain.progress import Progress as Watcher

__all__ = ["ConsoleProgress", "Pace", "in_words"]

QUIET_S = 5.0
"""In a log, how often at most a line says how far a long piece of work is."""

TRAINED = "rows trained"
"""What a training counts, where it does."""

STYLES = {"built": "green", "resumed": "yellow", "reused": "cyan"}


class Pace:
    """How fast something is done, from the first time that it was heard of.

    A run that resumes begins somewhere in the middle: what was done before does not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def hear(self, done: int) -> None:
        """So much is done now."""
        now = self._clock()
        if self._first is None or done < self._first[1]:
            self._first = now, done
        self._last = now, done

    def rate(self, unit: str) -> list[str]:
        """Such as `["5,300 rows/s"]`; empty before anything can be told."""
        each = self._seconds_each
        return [f"{1 / each:,.0f} {unit}/s"] if each else []

    def left(self, total: int | None) -> list[str]:
        """Such as `["4 min left"]`; empty before anything can be told, and at the end."""
        each = self._seconds_each
        if each is None or self._last is None or total is None or self._last[1] >= total:
            return []
        return [f"{in_words((total - self._last[1]) * each)} left"]

    @property
    def _seconds_each(self) -> float | None:
        if self._first is None or self._last is None:
            return None
        seconds, done = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return seconds / done if seconds > 0 and done > 0 else None


def in_words(seconds: float) -> str:
    """A span of time as people say it.

    Example:
        >>> in_words(0.4), in_words(89), in_words(300), in_words(4000), in_words(200_000)
        ('0 s', '89 s', '5 min', '1 h 7 min', '56 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{minutes / 60:.0f} h"


class ConsoleProgress(Watcher):
    """Prints one line a stage; epochs as a bar on a terminal, as a line now and then in a log."""

    def __init__(
        self,
        console: Console,
        every_epochs: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._every_epochs = every_epochs
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = self._clock()
        self._paces: dict[str, Pace] = {}
        self._epochs = Pace(self._clock)

    def stage_started(self, name: str) -> None:
        """See `Progress.stage_started`."""
        self._paces, self._epochs = {}, Pace(self._clock)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                refresh_per_second=8,
            )
            self._task = self._bar.add_task(name.ljust(9), total=None, detail="")
            self._bar.start()

    def working(self, what: str, done: int, total: int | None) -> None:
        """See `Progress.working`."""
        pace = self._paces.setdefault(what, Pace(self._clock))
        pace.hear(done)
        of = f" of {total:,}" if total else ""
        line = ", ".join([f"{done:,}{of} {what}", *pace.rate("rows" if "rows" in what else what)])
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, detail=line)
        elif self._clock() - self._last_line > QUIET_S:
            self._say(", ".join([f"          {line}", *pace.left(total)]))

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        epoch = int(record["epoch"])
        self._epochs.hear(epoch)
        line = _epoch_line(record, epochs)
        if TRAINED in self._paces:
            line = ", ".join([line, *self._paces[TRAINED].rate("rows")])
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, detail=line)
            if TRAINED not in self._paces:
                self._bar.update(self._task, completed=epoch, total=epochs)
        elif epoch and (epoch % self._every_epochs == 0 or epoch in {1, epochs}):
            self._say(", ".join([f"          {line}", *self._epochs.left(epochs)]))

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """See `Progress.stage_finished`."""
        self.close()
        style = STYLES.get(status, "")
        self._console.print(
            f"[bold]{name:<9}[/] [{style}]{status:<7}[/] {detail}  [dim]{seconds:.1f} s[/]",
            highlight=False,
            soft_wrap=True,
        )
        self._last_line = self._clock()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._say(plain(text))

    def close(self) -> None:
        """Take the bar away; also when a stage failed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last_line = self._clock()


def _epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """Such as `Epoch [10/100], Loss: 0.4321, valid 0.3987, lr 0.001`."""
    loss = record["train_loss"]
    shown = "-" if loss is None else f"{loss:.4f}"
    parts = [f"Epoch [{record['epoch']}/{epochs}], Loss: {shown}"]
    for key, value in record.items():
        if key.endswith("_loss") and key != "train_loss":
            parts.append(f"{key.removesuffix('_loss')} {value:.4f}")
        elif key.endswith("_accuracy"):
            parts.append(f"{100 * value:.1f} %")
    parts.append(f"lr {record['lr']:.3g}")
    return ", ".join(parts)
