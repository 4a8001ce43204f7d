"""What frames a plot: its title, its axes, its legend, and how much of the figure it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchtrain.reporting.wording import shortened, tick

if TYPE_CHECKING:  # matplotlib takes half a second, and a model card needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "INK", "LEGEND_ROW", "RED", "draw", "fill_figure", "new_axes"]

# Okabe and Ito's palette, with a deeper red: told apart by every common kind of colour vision.
BLUE, GREEN, RED, INK = "#0072b2", "#009e73", "#cc3311", "#1f2933"

LEGEND_ROW, TICK_LETTER = 19.0, 7.4
"""The height of a row of a legend, and the width of a letter of a tick."""


def draw(name: str, label: str, size: tuple[float, float], fill: Callable[[Figure], None]) -> str:
    """See `batchtrain.reporting.svg.draw`, which loads matplotlib."""
    from batchtrain.reporting import svg

    return svg.draw(name, label, size, fill)


def new_axes(figure: Figure, title: str, x_label: str, y_label: str) -> Axes:
    """The axes of a figure that has one plot; `fill_figure` puts them in their place."""
    axes = figure.add_axes((0.15, 0.15, 0.8, 0.7))
    axes.set_title(shortened(title, 60))
    axes.set_xlabel(shortened(x_label, 30))
    axes.set_ylabel(shortened(y_label, 24), labelpad=7)
    return axes


def fill_figure(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Put the legend between title and plot, where it hides no point, and use the whole figure.

    Matplotlib's own layout would take a third of the time of a report.

    Args:
        figure: With these axes alone.
        axes: With all that is drawn.
        columns: Of the legend; with 0 there is none.
    """
    labels = axes.get_legend_handles_labels()[1] if columns else []
    rows = math.ceil(len(labels) / columns) if columns else 0
    axes.set_title(axes.get_title("left"), pad=6 + LEGEND_ROW * rows)
    if rows:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            borderpad=0.2,
            columnspacing=1.2,
            handletextpad=0.5,
            handlelength=1.8,
        )
    low, high = sorted(axes.get_ylim())
    names = [tick(place) for place in axes.yaxis.get_majorticklocs() if low <= place <= high]
    left = 36 + TICK_LETTER * max(map(len, names), default=1)
    bottom, top, right = (40.0 if axes.get_xlabel() else 26.0), 24.0 + LEGEND_ROW * rows, 16.0
    width, height = (72 * side for side in figure.get_size_inches())
    axes.set_position(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - bottom - top) / height,
        )
    )
