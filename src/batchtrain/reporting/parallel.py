"""Parallel coordinates: each trial as a line over the keys that were tried, up to its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchtrain.reporting.search_axes import KeyAxis, ScoreAxis
from batchtrain.reporting.search_content import SearchContent, TrialRow
from batchtrain.reporting.wording import shortened

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_AXES", "MOST_LINES", "parallel_coordinates"]

MOST_AXES = 12
MOST_LINES = 300

INK, MUTED, RED = "#1f2933", "#9aa5b1", "#cc3311"
GOOD, BAD = (0.0, 0.353, 0.588), (0.835, 0.87, 0.905)
"""From dark blue to a pale grey: the good ones stand out, also in grey."""

NOT_SET = -0.12
"""Where a line passes a key that was not set in its trial: below its axis."""


def parallel_coordinates(content: SearchContent, keys: Sequence[KeyAxis], score: ScoreAxis) -> str:
    """Draw the trials that have a score, at most `MOST_LINES`: the best ones."""
    shown = content.ranked[: len(content.scored)][:MOST_LINES]
    width = max(520.0, min(1100.0, 130.0 * (len(keys) + 1)))

    def fill(figure: Figure) -> None:
        axes = figure.add_axes((0.05, 0.01, 0.87, 0.89))
        _plain(axes, len(keys))
        for place, trial in reversed(list(enumerate(shown))):
            _line(axes, trial, keys, score, place / max(1, len(shown) - 1), content.best)
        lowest = 0.0
        for place, key in enumerate(keys):
            ticks = key.ticks
            if any(key.place(each.values) is None for each in shown):
                lowest, ticks = NOT_SET, [(NOT_SET, "not set"), *ticks]
            _axis(axes, place, key.label, ticks)
        _axis(axes, len(keys), shortened(score.metric, 18), score.ticks)
        axes.set_ylim(lowest - 0.06, 1.04)

    label = "Parallel coordinates: each trial's values and its score"
    from batchtrain.reporting.svg import draw

    return draw("parallel", label, (width, 340.0), fill)


def _line(
    axes: Axes,
    trial: TrialRow,
    keys: Sequence[KeyAxis],
    score: ScoreAxis,
    rank: float,
    best: int | None,
) -> None:
    found = [key.place(trial.values) for key in keys]
    heights = [NOT_SET if each is None else each for each in found]
    heights.append(score.place(trial.scores.get(score.metric) or 0.0))
    is_best = trial.number == best
    # By the square root the best tenth is spread over a third of the colours.
    share = math.sqrt(rank)
    color = RED if is_best else tuple(a + (b - a) * share for a, b in zip(GOOD, BAD, strict=True))
    look: dict[str, Any] = {"linewidth": 2.8 if is_best else 1.2, "zorder": 5 if is_best else 2}
    axes.plot(range(len(heights)), heights, color=color, solid_joinstyle="round", **look)


def _plain(axes: Axes, last: int) -> None:
    axes.set_xlim(-0.05, last + 0.05)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _axis(axes: Axes, place: int, label: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([place, place], [0, 1], color=MUTED, linewidth=1.2, zorder=3)
    axes.text(place, 1.06, label, ha="center", va="bottom", color=INK, fontweight="bold")
    for height, text in ticks:
        axes.plot([place - 0.015, place + 0.015], [height, height], color=MUTED, linewidth=1.2)
        # A white edge keeps the text legible over the lines.
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        axes.text(
            place + 0.03,
            height,
            shortened(text, 12),
            ha="left",
            va="center",
            fontsize=10.5,
            color=INK,
            bbox=box,
            zorder=6,
        )
