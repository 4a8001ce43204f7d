"""The plots of a search, each as one `<svg>` element; legible without colour vision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchtrain.reporting.framing import BLUE, GREEN, INK, RED, draw, fill_figure, new_axes
from batchtrain.reporting.search_axes import KeyAxis, ScoreAxis, score_axis
from batchtrain.reporting.search_content import SearchContent, TrialRow
from batchtrain.reporting.wording import count, shortened, tick

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["best_history", "front_plot", "key_scatter", "rung_curves"]

MUTED = "#9aa5b1"
WIDE = (860.0, 300.0)
SMALL = (300.0, 230.0)
MOST_CURVES = 200
MOST_LETTERS = 32
"""Of the ticks below a small plot."""

HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.2}


def best_history(content: SearchContent, axis: ScoreAxis) -> str:
    """Each trial's score by its number, and the best score up to it."""
    goal = content.goals[0]
    numbers, best, cost = [], [], math.inf
    for trial in content.trials:
        if content.cost(trial) < cost:
            cost = content.cost(trial)
        if math.isfinite(cost):
            numbers.append(trial.number)
            best.append(axis.drawn(cost if goal.mode == "min" else -cost))

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, "Score of each trial, and the best so far", "Trial", goal.metric)
        _score_scale(axes, axis)
        axes.step(numbers, best, where="post", color=GREEN, linewidth=2, label="best so far")
        _dots(axes, content, axis, content.trials, lambda trial: float(trial.number))
        _ring(axes, content, axis, lambda trial: float(trial.number))
        _whole_ticks(axes)
        fill_figure(figure, axes, 6)

    return draw("history", "Score of each trial, and the best so far", WIDE, fill)


def rung_curves(content: SearchContent, axis: ScoreAxis) -> str:
    """Each trial's score at the rungs that it reached."""
    metric = content.goals[0].metric
    ranked = [each for each in content.ranked if _curve(each, metric)][:MOST_CURVES]
    epochs = sorted({epoch for each in ranked for epoch in each.rungs})

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, "Score at each rung", "Epochs", metric)
        _score_scale(axes, axis)
        told = set()
        for trial in reversed(ranked):
            is_best = trial.number == content.best
            state = "best" if is_best else "went to the end" if trial.state == "finished" else ""
            state = state or "stopped early"
            curve = _curve(trial, metric)
            axes.plot(
                [epoch for epoch, _ in curve],
                [axis.drawn(score) for _, score in curve],
                color={"best": RED, "went to the end": BLUE}.get(state, MUTED),
                linewidth=2.4 if is_best else 1.1,
                alpha=1.0 if is_best else 0.75,
                marker="o",
                markersize=4.5 if is_best else 2.5,
                label=None if state in told else state,
                zorder=4 if is_best else 3 if trial.state == "finished" else 2,
            )
            told.add(state)
        if epochs[-1] > 4 * epochs[0]:
            axes.set_xscale("log")
        step = math.ceil(len(epochs) / 10)
        axes.set_xticks(epochs[::step], [count(epoch) for epoch in epochs[::step]])
        axes.minorticks_off()
        fill_figure(figure, axes, 4)

    return draw("rungs", "Score of each trial by rung", WIDE, fill)


def key_scatter(content: SearchContent, key: KeyAxis, axis: ScoreAxis, number: int) -> str:
    """Each trial's score by its value of one key; `number` tells the figure from the others."""
    shown = [each for each in content.trials if key.place(each.values) is not None]

    def place(trial: TrialRow) -> float:
        found = key.place(trial.values) or 0.0
        # Equal categories would hide each other.
        return (
            found + 0.05 * _jitter(trial.number) / len(key.categories) if key.categories else found
        )

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, key.label, "", axis.metric)
        _score_scale(axes, axis)
        _dots(axes, content, axis, shown, place, size=4.2)
        if content.best_trial in shown:
            _ring(axes, content, axis, place)
        ticks = _spread([(where, shortened(text, 9)) for where, text in key.ticks])
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([where for where, _ in ticks], [text for _, text in ticks])
        fill_figure(figure, axes, 0)

    return draw(f"key-{number}", f"Score by {key.label}", SMALL, fill)


def front_plot(content: SearchContent, other: int) -> str:
    """The trials by the first goal and another one, and those that none is better than in all."""
    first, second = content.goals[0], content.goals[other]
    shown = [each for each in content.scored if math.isfinite(content.cost(each, other))]
    x_axis, y_axis = (
        score_axis(goal, [each.scores.get(goal.metric) for each in shown])
        for goal in (second, first)
    )
    on_front = set(content.front)

    def points(trials: Sequence[TrialRow]) -> tuple[list[float], list[float]]:
        ordered = sorted(trials, key=lambda each: (content.cost(each, other), content.cost(each)))
        return (
            [x_axis.drawn(each.scores[second.metric]) for each in ordered],
            [y_axis.drawn(each.scores[first.metric]) for each in ordered],
        )

    def fill(figure: Figure) -> None:
        axes = new_axes(figure, f"{first.metric} and {second.metric}", second.metric, first.metric)
        _score_scale(axes, y_axis)
        _score_scale(axes, x_axis, of="x")
        others = points([each for each in shown if each.number not in on_front])
        best = points([each for each in shown if each.number in on_front])
        dots: dict[str, Any] = {"linestyle": "none", "marker": "o"}
        axes.plot(*others, color=MUTED, markersize=4.5, label="other trials", **dots)
        line: dict[str, Any] = {"drawstyle": "steps-post"} if len(content.goals) == 2 else {}
        if line:
            axes.plot(*best, color=RED, linewidth=1.2, alpha=0.6, **line)
        axes.plot(*best, color=RED, markersize=6.5, label="Pareto front", **dots)
        fill_figure(figure, axes, 3)

    return draw(
        f"front-{other}", f"{first.metric} and {second.metric} of each trial", (480, 340), fill
    )


def _curve(trial: TrialRow, metric: str) -> list[tuple[int, float]]:
    found = [(epochs, scores.get(metric)) for epochs, scores in trial.rungs.items()]
    return [(epochs, score) for epochs, score in found if score is not None]


def _dots(
    axes: Axes,
    content: SearchContent,
    axis: ScoreAxis,
    trials: Sequence[TrialRow],
    place: Any,
    *,
    size: float = 5.0,
) -> None:
    """A mark for each trial, by what became of it; those beyond the axis lie at its edge."""
    metric = content.goals[0].metric
    groups: dict[str, list[TrialRow]] = {}
    for trial in trials:
        groups.setdefault(_group(content, axis, trial), []).append(trial)
    looks: dict[str, dict[str, Any]] = {
        "finished": {"marker": "o", "markersize": size + 1.5, "markeredgewidth": 0, "alpha": 0.85},
        "stopped": {"marker": "o", **HOLLOW},
        "not over": {"marker": "s", **HOLLOW},
        "far worse": {"marker": "^" if axis.is_min else "v", **HOLLOW},
        "no score": {"marker": "x", "markeredgewidth": 1.6, "color": RED},
    }
    for name, look in looks.items():
        found = groups.get(name, [])
        if found:
            scores = [
                axis.worst if name == "no score" else axis.drawn(each.scores.get(metric))
                for each in found
            ]
            axes.plot(
                [place(each) for each in found],
                scores,
                linestyle="none",
                label="failed, or no score" if name == "no score" else name,
                clip_on=False,
                zorder=3,
                **{"color": BLUE, "markersize": size, **look},
            )


def _group(content: SearchContent, axis: ScoreAxis, trial: TrialRow) -> str:
    if not math.isfinite(content.cost(trial)):
        return "no score"
    if axis.is_beyond(trial.scores.get(axis.metric)):
        return "far worse"
    return trial.state if trial.state in {"finished", "stopped"} else "not over"


def _ring(axes: Axes, content: SearchContent, axis: ScoreAxis, place: Any) -> None:
    best = content.best_trial
    if best is None:
        return
    x, y = place(best), axis.drawn(best.scores.get(axis.metric))
    ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
    label = f"best: trial {best.number}"
    axes.plot([x], [y], color=INK, linestyle="none", markeredgewidth=1.6, label=label, **ring)


def _spread(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """As many of the ticks as stand beside each other without touching."""
    step = math.ceil(sum(len(text) + 2 for _, text in ticks) / MOST_LETTERS)
    return ticks[:: max(1, step)]


def _jitter(number: int) -> float:
    """Some number from -1 to 1, the same each time (the golden ratio spreads them evenly)."""
    return 2 * math.modf(number * 0.618034)[0] - 1


def _score_scale(axes: Axes, axis: ScoreAxis, of: str = "y") -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter

    side = axes.yaxis if of == "y" else axes.xaxis
    if axis.is_log:
        axes.set(**{f"{of}scale": "log"})
        side.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    axes.set(**{f"{of}lim": (axis.low, axis.high)})
    side.set_major_locator(FixedLocator(axis.tick_values))
    side.set_major_formatter(lambda value, _: tick(value))


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
