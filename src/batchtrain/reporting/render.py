"""The report of a run as one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from batchtrain.reporting import plots
from batchtrain.reporting.confusion import class_scores, most_confused
from batchtrain.reporting.content import ReportContent
from batchtrain.reporting.heat_map import MAX_CLASSES, confusion_matrix, has_short_names
from batchtrain.reporting.page import stylesheet, template

__all__ = ["render_report"]

MAX_CATEGORIES = 12
MAX_PAIRS = 20
MAX_WHOLE = 40
"""A table with more rows than this scrolls in a box of its own."""

VERDICT_CLASSES = {"accepted": "good", "rejected": "bad", "no requirement": "neutral"}


@dataclass(frozen=True)
class _Share:
    """A name, how many rows it has, and which percentage of all; a class also by split."""

    name: str
    rows: int
    percent: float
    by_split: tuple[int, ...] = ()


def render_report(content: ReportContent) -> str:
    """Render the page; the same content gives the same bytes.

    Whatever the names and texts of the content hold, they add no element and no attribute to the
    page, and what is invisible in them is written as an escape. The page asks for nothing over
    the network, and its content security policy says so.
    """
    return template("report.html").render(
        content=content,
        css=stylesheet(),
        figures={name: svg and Markup(svg) for name, svg in _figures(content).items()},  # noqa: S704
        verdict_class=VERDICT_CLASSES[content.verdict],
        max_categories=MAX_CATEGORIES,
        max_pairs=MAX_PAIRS,
        max_whole=MAX_WHOLE,
        has_values=any(row.values is not None for row in content.parameters),
        **_data_view(content),
        **_learning_view(content),
        **_metrics_view(content),
        **_confusion_view(content),
    )


def _figures(content: ReportContent) -> dict[str, str | None]:
    """Every plot that the content has data for, by name; None for the others."""
    history, confusion, regression = content.history, content.confusion, content.regression
    figures: dict[str, str | None] = dict.fromkeys(
        ("losses", "monitored", "confusion", "predictions", "line")
    )
    if history:
        figures["losses"] = plots.learning_curves(history, best=content.best)
    if any(row.monitored for row in history):
        figures["monitored"] = plots.monitored_curves(history, best=content.best)
    if confusion and 2 <= len(confusion.class_names) <= MAX_CLASSES:
        figures["confusion"] = confusion_matrix(confusion)
    if regression:
        figures["predictions"] = plots.predicted_against_actual(regression)
    if regression and regression.line:
        figures["line"] = plots.regression_line(regression.line, target=content.target)
    return figures


def _data_view(content: ReportContent) -> dict[str, Any]:
    """Rows per split and per class, with their shares."""
    all_rows = sum(split.rows for split in content.splits)
    with_classes = [split for split in content.splits if split.by_class is not None]
    counts = [split.by_class or {} for split in with_classes]
    classes = []
    for name in dict.fromkeys(name for by_class in counts for name in by_class):
        by_split = tuple(by_class.get(name, 0) for by_class in counts)
        rows = sum(by_split)
        classes.append(
            _Share(name, rows, _percent(rows, sum(s.rows for s in with_classes)), by_split)
        )
    return {
        "splits": [_Share(s.name, s.rows, _percent(s.rows, all_rows)) for s in content.splits],
        "class_splits": [split.name for split in with_classes],
        "classes": classes,
    }


def _learning_view(content: ReportContent) -> dict[str, Any]:
    """The epochs that the table below the curves shows."""
    history, best = content.history, content.best
    labels: dict[int, list[str]] = {}
    if history:
        labels.setdefault(history[0].epoch, []).append("first")
        if best is not None:
            labels.setdefault(best.epoch, []).append("kept")
        labels.setdefault(history[-1].epoch, []).append("last")
    by_epoch = {row.epoch: row for row in history}
    return {
        "milestones": [(", ".join(names), by_epoch[epoch]) for epoch, names in labels.items()],
        "has_valid": any(row.valid_loss is not None for row in content.history),
    }


def _confusion_view(content: ReportContent) -> dict[str, Any]:
    if content.confusion is None:
        return {
            "class_scores": [],
            "undefined_scores": False,
            "has_short_names": False,
            "pairs": [],
        }
    scores = class_scores(content.confusion)
    return {
        "class_scores": scores,
        "undefined_scores": any(None in (score.precision, score.recall) for score in scores),
        "has_short_names": has_short_names(content.confusion),
        "pairs": most_confused(content.confusion, limit=MAX_PAIRS),
    }


def _metrics_view(content: ReportContent) -> dict[str, Any]:
    """The rows of the table of metrics, and why some of its cells have no value."""
    missing = [
        (name, split, content.metric_notes.get(split, {}).get(name, "not computed"))
        for split, values in content.metrics.items()
        for name, value in values.items()
        if value is None
    ]
    names = dict.fromkeys(name for values in content.metrics.values() for name in values)
    return {"metric_names": list(names), "missing_metrics": missing}


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0
