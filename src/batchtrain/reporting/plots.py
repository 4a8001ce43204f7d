"""Curves and scatter plots, each as one `<svg>` element; legible without colour vision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchtrain.reporting.content import EpochRow, LineData, RegressionData
from batchtrain.reporting.framing import (
    BLUE,
    GREEN,
    INK,
    LEGEND_ROW,
    RED,
    draw,
    fill_figure,
    new_axes,
)
from batchtrain.reporting.wording import shortened, tick

if TYPE_CHECKING:  # matplotlib takes half a second, and a model card needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "learning_curves",
    "monitored_curves",
    "predicted_against_actual",
    "regression_line",
]

MAX_EPOCHS_DRAWN = 1000

LARGEST_DRAWN = 1e100

LONG_TICK = 8
"""Of labels with more letters fewer fit below a plot."""

MONITORED = (BLUE, "#d55e00", GREEN, "#aa4499", "#806000", "#56b4e9")

SIZE = (400.0, 280.0)
"""A plot's width and height: on a phone it is shrunk by a sixth, in a column of a wide page grown
by a quarter."""


def learning_curves(history: Sequence[EpochRow], *, best: EpochRow | None = None) -> str:
    """Loss by epoch on train, valid and monitored test rows; the epoch that was kept is marked.

    The loss axis is logarithmic where the losses span more than a factor of 50.
    """
    rows = _thinned(history, best)
    epochs = [row.epoch for row in rows]
    train = [_drawable(row.train_loss) for row in rows]
    held_out = (
        ("valid", RED, (4, 1.6), [_drawable(row.valid_loss) for row in rows]),
        ("test", GREEN, (1.5, 1.5), [_drawable(row.test_loss) for row in rows]),
    )

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, "Loss by epoch", "Epoch", "Loss")
        marker = "o" if len(rows) <= 12 else None
        axes.plot(epochs, train, color=BLUE, marker=marker, markersize=4, label="train")
        for label, color, dashes, losses in held_out:
            if any(map(math.isfinite, losses)):
                line: dict[str, Any] = {"dashes": dashes, "marker": marker, "markersize": 4}
                axes.plot(epochs, losses, color=color, label=label, **line)
        if best is not None:
            loss = _drawable(best.train_loss if best.valid_loss is None else best.valid_loss)
            axes.axvline(best.epoch, color="#9aa5b1", linewidth=1, linestyle=":")
            ring: dict[str, Any] = {
                "marker": "o",
                "markersize": 8,
                "markerfacecolor": "none",
                "linestyle": "none",
            }
            kept = f"kept: epoch {best.epoch}"
            axes.plot([best.epoch], [loss], color=INK, markeredgewidth=1.5, label=kept, **ring)
        _scale_losses(axes, [*train, *(loss for *_, losses in held_out for loss in losses)])
        _epoch_ticks(axes)
        fill_figure(figure, axes)

    return draw("losses", "Learning curves: loss by epoch", SIZE, fill)


def monitored_curves(history: Sequence[EpochRow], *, best: EpochRow | None = None) -> str:
    """Each monitored value by epoch, such as the accuracy on the valid split."""
    rows = _thinned(history, best)
    tags = list(dict.fromkeys(tag for row in rows for tag in row.monitored))
    columns = 2 if max(map(len, tags), default=0) <= 16 else 1
    width, height = SIZE
    size = (width, height + LEGEND_ROW * (math.ceil(len(tags) / columns) - 1))

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, "Monitored by epoch", "Epoch", "Value")
        for index, tag in enumerate(tags):
            points = [(row.epoch, row.monitored[tag]) for row in rows if tag in row.monitored]
            axes.plot(
                [epoch for epoch, _ in points],
                [_drawable(value) for _, value in points],
                color=MONITORED[index % len(MONITORED)],
                linestyle=("-", "--", ":", "-.")[index % 4],
                marker="o" if len(points) <= 12 else None,
                markersize=4,
                label=shortened(tag, 24),
            )
        if best is not None:
            axes.axvline(best.epoch, color="#9aa5b1", linewidth=1, linestyle=":")
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
        _epoch_ticks(axes)
        fill_figure(figure, axes, columns)

    return draw("monitored", "Monitored values by epoch", size, fill)


def predicted_against_actual(regression: RegressionData) -> str:
    """Predictions over true values, with the line on which they would be equal."""
    actual = [_drawable(value) for value in regression.actual]
    predicted = [_drawable(value) for value in regression.predicted]
    finite = [value for value in (*actual, *predicted) if math.isfinite(value)] or [0.0, 1.0]
    base = _common_part(min(finite), max(finite))
    actual, predicted, finite = (
        [value - base for value in values] for values in (actual, predicted, finite)
    )
    less = f", {'less' if base > 0 else 'plus'} {abs(base):,.15g}" if base else ""
    margin = 0.04 * (max(finite) - min(finite)) or 0.5
    limits = (min(finite) - margin, max(finite) + margin)

    def fill(figure: Figure) -> None:
        split = shortened(regression.split, 12)
        axes = new_axes(figure, f"Predicted against actual, {split}", "", "")
        axes.set(xlabel=f"Actual{less}", ylabel=f"Predicted{less}")
        axes.plot(limits, limits, color=INK, linewidth=1, linestyle="--", label="equal")
        _points(axes, actual, predicted, BLUE, "o", f"{split} rows")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        _plain_ticks(axes)
        fill_figure(figure, axes)

    return draw("predictions", "Predicted against actual values", (400.0, 400.0), fill)


def regression_line(line: LineData, *, target: str) -> str:
    """A regression on one feature: train rows blue, test rows green, predictions red."""

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, "Data and predictions", shortened(line.feature, 24), "")
        axes.set_ylabel(shortened(target, 24))
        _points(axes, line.train_x, line.train_y, BLUE, "o", "train")
        _points(axes, line.test_x, line.test_y, GREEN, "s", "test")
        _points(axes, line.test_x, line.predicted_y, RED, "x", "predictions")
        _plain_ticks(axes)
        fill_figure(figure, axes)

    return draw("line", "Train rows, test rows and predictions", (400.0, 320.0), fill)


def _points(
    axes: Axes, x: Sequence[float], y: Sequence[float], color: str, marker: str, label: str
) -> None:
    few = len(x) <= 200
    axes.plot(
        [_drawable(value) for value in x],
        [_drawable(value) for value in y],
        linestyle="none",
        marker=marker,
        markersize=5 if few else 3,
        markeredgewidth=1.4 if marker == "x" else 0,
        color=color,
        alpha=0.85 if few else 0.45,
        label=label,
    )


def _common_part(low: float, high: float) -> float:
    """What numbers have in common that differ in their last digits only, else 0; a round number."""
    span = high - low
    if not 0 < 1e4 * span < max(abs(low), abs(high)):
        return 0.0
    step = 10.0 ** (math.ceil(math.log10(span)) + 1)
    return float(math.floor(low / step) * step)


def _plain_ticks(axes: Axes) -> None:
    longest = max((len(tick(place)) for place in axes.xaxis.get_majorticklocs()), default=1)
    axes.locator_params("x", nbins=5 if longest <= LONG_TICK else 3)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))


def _epoch_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and min(finite) > 0 and max(finite) > 50 * min(finite):
        from matplotlib.ticker import NullFormatter

        axes.set_yscale("log")
        axes.set_ylabel("Loss (logarithmic)")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))


def _thinned(history: Sequence[EpochRow], best: EpochRow | None) -> list[EpochRow]:
    """At most about 1000 evenly spaced epochs, with the first, the last and the best."""
    if len(history) <= MAX_EPOCHS_DRAWN:
        return list(history)
    step = math.ceil(len(history) / MAX_EPOCHS_DRAWN)
    last = len(history) - 1
    return [
        row
        for index, row in enumerate(history)
        if index % step == 0 or index == last or (best is not None and row.epoch == best.epoch)
    ]


def _drawable(value: float | None) -> float:
    """The value, or NaN, which leaves a gap, for what has no place on an axis.

    Numbers near the limits of float64 overflow inside matplotlib when it adds margins.
    """
    if value is None or not abs(value) < LARGEST_DRAWN:
        return math.nan
    return float(value) if abs(value) > 1 / LARGEST_DRAWN else 0.0
