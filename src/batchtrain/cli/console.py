"""What a person sees while a command works: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from batchtrain.cli.outcome import plain
from batchtrain.progress import Progress as Watcher

__all__ = ["ConsoleProgress"]

QUIET_S = 5.0
"""In a log, how often at most a line says how far a long piece of work is."""

STYLES = {"built": "green", "resumed": "yellow", "reused": "cyan"}


class ConsoleProgress(Watcher):
    """Prints one line a stage; epochs as a bar on a terminal, as a line now and then in a log."""

    def __init__(self, console: Console, every_epochs: int) -> None:
        self._console = console
        self._every_epochs = every_epochs
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def stage_started(self, name: str) -> None:
        """See `Progress.stage_started`."""
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
        if self._bar is not None and self._task is not None:
            of = f" of {total:,}" if total else ""
            detail = f"{done:,}{of} {what}"
            self._bar.update(self._task, completed=done, total=total, detail=detail)
        elif time.monotonic() - self._last_line > QUIET_S:
            self._say(f"          {done:,} {what}")

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        epoch = int(record["epoch"])
        line = _epoch_line(record, epochs)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=epoch, total=epochs, detail=line)
        elif epoch and (epoch % self._every_epochs == 0 or epoch in {1, epochs}):
            self._say(f"          {line}")

    def stage_finished(self, name: str, status: str, detail: str, seconds: float) -> None:
        """See `Progress.stage_finished`."""
        self.close()
        style = STYLES.get(status, "")
        self._console.print(
            f"[bold]{name:<9}[/] [{style}]{status:<7}[/] {detail}  [dim]{seconds:.1f} s[/]",
            highlight=False,
            soft_wrap=True,
        )
        self._last_line = time.monotonic()

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
        self._last_line = time.monotonic()


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
