"""What a person sees of a search once it is over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchtrain.cli.outcome import plain
from batchtrain.cli.search_view import counts_words, trial_table
from batchtrain.progress import SearchStanding, SeenTrial
from batchtrain.reporting.search_content import SearchContent, TrialRow

__all__ = ["show_search"]

SHOWN_TRIALS = 10
SHOWN_ERRORS = 3


def show_search(
    document: Mapping[str, Any], console: Console, *, places: Mapping[str, str] | None = None
) -> None:
    """Print the best trials, what failed and why, and what was trained together.

    Args:
        document: The table of a search, as its page takes it.
        console: Where to.
        places: A word, such as `page`, and where it lies; printed last.
    """
    content = SearchContent.from_json(document)
    best = [each for each in content.ranked if math.isfinite(content.cost(each))]
    if best:
        console.print()
        console.print(trial_table([_seen(each) for each in best[:SHOWN_TRIALS]], whole=True))
        console.print()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold", min_width=8)
    table.add_column(overflow="fold")
    last = ""
    for word, text in _lines(content, len(best)):
        table.add_row("" if word == last else word, Text(plain(text)))
        last = word
    console.print(table)
    for word, place in (places or {}).items():
        # On one line, however long: somebody may want to copy it.
        console.print(f"{word:<9} {plain(place)}", markup=False, highlight=False, soft_wrap=True)


def _lines(content: SearchContent, scored: int) -> Iterator[tuple[str, str]]:
    counts = SearchStanding(None, content.counts)
    yield "search", f"{counts_words(counts)}; {content.rows:,} rows trained"
    if scored > SHOWN_TRIALS:
        yield "search", f"the table has the best {SHOWN_TRIALS} of {scored:,} with a score"
    packed = content.packed
    if packed.packs:
        yield "packed", f"{_some(packed.trials, 'trial')} in {_some(packed.packs, 'pack')}"
    for reason, trials in packed.why_not.items():
        yield "alone", f"{_some(trials, 'trial')}: {reason}"
    for error, numbers in content.errors[:SHOWN_ERRORS]:
        yield "failed", f"trial{'s' if ',' in numbers else ''} {numbers}: {error}"
    others = len(content.errors) - SHOWN_ERRORS
    if others > 0:
        yield "failed", f"and {_some(others, 'other error')}"
    if content.best is None:
        yield "best", "no trial has a score"
        return
    metrics = [
        f"{name} {'undefined' if value is None else f'{value:.4g}'}"
        for name, value in content.metrics.items()
    ]
    by_itself = f"; run by itself: {', '.join(metrics)}" if metrics else ""
    yield "best", f"trial {content.best}{by_itself}"


def _some(how_many: int, what: str) -> str:
    return f"{how_many:,} {what}{'' if how_many == 1 else 's'}"


def _seen(trial: TrialRow) -> SeenTrial:
    return SeenTrial(trial.number, trial.state, trial.epochs, trial.scores, trial.values)
