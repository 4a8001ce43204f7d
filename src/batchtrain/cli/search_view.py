"""What a person sees of a search while it runs: a live table, or lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Group, OverflowMethod, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchtrain.progress import SearchStanding, SeenTrial
from batchtrain.reporting.search_words import score_text, short_keys, values_text

__all__ = ["SearchView", "best_line", "counts_words", "in_words", "search_line", "trial_table"]

BAR_WIDTH = 16

SHOWN_RUNNING = 4
"""So many of what is at work are named; of the others there is the number."""

STATE_ORDER = ("finished", "stopped", "failed", "skipped", "running", "paused", "waiting")
STATE_STYLES = {"finished": "green", "failed": "red", "running": "cyan"}


class SearchView:
    """The live table; it is drawn anew as time goes on, whether or not anything is heard."""

    def __init__(
        self, standing: SearchStanding, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show a standing, heard of just now."""
        self._standing = standing
        self._clock = clock
        self._heard = clock()

    def __rich__(self) -> RenderableType:
        """Counts and pace, what is at work, and the best trials."""
        standing = self._standing
        passed = self._clock() - self._heard
        seconds = standing.seconds + passed
        parts: list[RenderableType] = [_head(standing), _pace(standing, seconds, passed)]
        if standing.running:
            parts.append(_running(standing))
        if standing.best:
            best = _labelled()
            best.add_row(Text("best", style="bold green"), Text(_best_words(standing.best[0])))
            parts += [best, Text(), trial_table(standing.best)]
        return Group(*parts)


def trial_table(trials: Sequence[SeenTrial], *, whole: bool = False) -> Table:
    """Trials as a table.

    Args:
        trials: Best first.
        whole: Whether values that do not fit go on in the next line; else they are cut.
    """
    metrics = list(dict.fromkeys(name for each in trials for name in each.scores))
    names = short_keys([key for each in trials for key in each.values])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    rows = [
        [
            Text(str(each.number)),
            Text(each.state, style=STATE_STYLES.get(each.state, "")),
            Text(f"{each.epochs:,}"),
            *(Text(score_text(name, each.scores.get(name))) for name in metrics),
        ]
        for each in trials
    ]
    for place, name in enumerate(["trial", "state", "epochs", *metrics]):
        # On a narrow terminal the values are cut, and nothing else.
        width = max([len(name), *(len(row[place]) for row in rows)])
        table.add_column(
            Text(name), justify="left" if name == "state" else "right", no_wrap=True, width=width
        )
    table.add_column("values", ratio=1)
    for each, row in zip(trials, rows, strict=True):
        overflow: OverflowMethod = "fold" if whole else "ellipsis"
        values = Text(values_text(each.values, names), no_wrap=not whole, overflow=overflow)
        table.add_row(*row, values)
    return table


def search_line(standing: SearchStanding) -> str:
    """How far a search is, on one line of a log.

    Example:
        >>> best = SeenTrial(3, "finished", 10, {"valid_loss": 0.25}, {"model.dropout": 0.1})
        >>> search_line(SearchStanding(8, {"finished": 4, "running": 2}, best=(best,)))
        '4 of 8 trials: 4 finished, 2 running, best valid_loss 0.2500'
    """
    parts = [counts_words(standing)]
    if standing.best:
        parts.append(f"best {_scores(standing.best[0])}")
    return ", ".join([*parts, *_pace_words(standing)])


def best_line(trial: SeenTrial) -> str:
    """The best trial so far, on one line of a log.

    Example:
        >>> best_line(SeenTrial(3, "finished", 10, {"valid_loss": 0.25}, {"model.dropout": 0.1}))
        'best so far: trial 3, valid_loss 0.2500 (dropout 0.1)'
    """
    return f"best so far: {_best_words(trial)}"


def counts_words(standing: SearchStanding) -> str:
    """How many trials there are, and in which state.

    Example:
        >>> counts_words(SearchStanding(None, {"failed": 1, "finished": 4}))
        '5 trials: 4 finished, 1 failed'
    """
    known = [name for name in STATE_ORDER if standing.counts.get(name)]
    others = [name for name in standing.counts if name not in STATE_ORDER]
    states = ", ".join(f"{standing.counts[name]:,} {name}" for name in [*known, *others])
    over = f"{standing.over:,}"
    total = f"{over} of {standing.trials:,} trials" if standing.trials else f"{over} trials"
    return f"{total}: {states}" if states else total


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


def _head(standing: SearchStanding) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(width=BAR_WIDTH)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    # Rows tell more than trials: those of a pack end all at once.
    total = standing.total_rows or standing.trials
    done = standing.rows if standing.total_rows else standing.over
    bar = ProgressBar(total=total, completed=min(done, total or done), width=BAR_WIDTH)
    grid.add_row(Text("search", style="bold"), bar, Text(counts_words(standing)))
    return grid


def _pace(standing: SearchStanding, seconds: float, passed: float) -> RenderableType:
    words = [in_words(seconds), *_pace_words(standing, passed)]
    return Text(" " * 8 + ", ".join(words), no_wrap=True, overflow="ellipsis")


def _pace_words(standing: SearchStanding, passed: float = 0.0) -> list[str]:
    words = []
    if standing.rows:
        words.append(f"{standing.rows:,} rows")
    if standing.trials_per_minute is not None:
        rate = standing.trials_per_minute
        words.append(f"{rate:,.0f} trials/min" if rate >= 10 else f"{rate:.2g} trials/min")
    if standing.seconds_left is not None and standing.seconds_left > 0:
        left = max(0.0, standing.seconds_left - passed)
        words.append(f"at most {in_words(left)} left")
    return words


def _running(standing: SearchStanding) -> RenderableType:
    grid = _labelled(no_wrap=True)
    for place, what in enumerate(standing.running[:SHOWN_RUNNING]):
        grid.add_row(Text("running" if place == 0 else "", style="cyan"), Text(what))
    others = len(standing.running) - SHOWN_RUNNING
    if others > 0:
        grid.add_row("", Text(f"and {others:,} more", style="dim"))
    return grid


def _labelled(*, no_wrap: bool = False) -> Table:
    """Words beside a label of the width of `running`."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True, width=len("running"))
    grid.add_column(ratio=1, no_wrap=no_wrap, overflow="ellipsis" if no_wrap else "fold")
    return grid


def _best_words(trial: SeenTrial) -> str:
    values = f" ({values_text(trial.values)})" if trial.values else ""
    return f"trial {trial.number}, {_scores(trial)}{values}"


def _scores(trial: SeenTrial) -> str:
    return ", ".join(f"{name} {score_text(name, value)}" for name, value in trial.scores.items())
