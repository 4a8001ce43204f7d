"""The page of a search as one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from batchtrain.reporting import search_plots
from batchtrain.reporting.importance import Importance, importance
from batchtrain.reporting.page import stylesheet, template
from batchtrain.reporting.parallel import MOST_AXES, MOST_LINES, parallel_coordinates
from batchtrain.reporting.search_axes import KeyAxis, ScoreAxis, key_axes, score_axis
from batchtrain.reporting.search_content import SearchContent, TrialRow
from batchtrain.reporting.search_words import score_text, short_keys, value_text, values_text
from batchtrain.reporting.wording import count, shortened
from batchtrain.version import __version__

__all__ = ["render_search"]

MOST_ROWS = 300
MOST_SCATTERS = 12
MOST_ERRORS = 20
STATES = ("finished", "stopped", "failed", "skipped", "running", "paused", "waiting")

RELATIVE = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._/-]*")
"""A path from the page, and nothing that a browser takes for an address."""


@dataclass(frozen=True)
class _Rung:
    """What the trials had after so many epochs, by the first goal."""

    epochs: int
    trials: int
    ended: int
    best: float | None
    median: float | None


@dataclass(frozen=True)
class _Row:
    """One trial in a table, as text."""

    number: int
    state: str
    epochs: int
    scores: list[str]
    cells: list[str]
    values: str
    pack: str
    note: str
    is_best: bool


def render_search(document: Mapping[str, Any]) -> str:
    """Render the page; the same document gives the same bytes.

    Whatever the names and texts of the document hold, they add no element and no attribute to the
    page.

    Args:
        document: The table of a search, as `SearchContent.from_json` takes it.
    """
    content = SearchContent.from_json(document)
    axes = key_axes(content)
    score = score_axis(content.goals[0], [_score(content, each) for each in content.scored])
    found = importance(content, axes)
    ordered = _ordered(axes, found)
    return template("search.html").render(
        content=content,
        css=stylesheet(),
        version=__version__,
        goal=content.goals[0],
        states=[(state, content.counts[state]) for state in STATES if content.counts[state]],
        summary=_summary(content),
        warnings=list(_warnings(content)),
        figures=_figures(content, ordered, score),
        beyond=sum(score.is_beyond(_score(content, each)) for each in content.scored),
        rungs=_rungs(content),
        importance=found,
        shares=[(key, round(100 * share, 1)) for key, share in found.shares.items()],
        max_lines=MOST_LINES,
        unseen_lines=len(content.scored) > MOST_LINES,
        unseen_keys=max(0, len(axes) - MOST_AXES),
        explained=f"{max(0, round(100 * found.explained))} %",
        packed=_packed(content),
        errors=content.errors[:MOST_ERRORS],
        **_best_view(content),
        **_table_view(content),
    )


def _figures(content: SearchContent, keys: Sequence[KeyAxis], score: ScoreAxis) -> dict[str, Any]:
    """Every plot that the content has data for; None for the others."""
    found: dict[str, Any] = dict.fromkeys(("history", "rungs", "parallel"))
    found |= {"scatters": [], "fronts": []}
    if not content.scored:
        return found
    found["history"] = _svg(search_plots.best_history(content, score))
    if any(len(each.rungs) > 1 for each in content.trials):
        found["rungs"] = _svg(search_plots.rung_curves(content, _rung_axis(content)))
    if keys:
        found["parallel"] = _svg(parallel_coordinates(content, keys[:MOST_AXES], score))
    found["scatters"] = [
        _svg(search_plots.key_scatter(content, key, score, place))
        for place, key in enumerate(keys[:MOST_SCATTERS])
    ]
    found["fronts"] = [
        _svg(search_plots.front_plot(content, place)) for place in range(1, len(content.goals))
    ]
    return found


def _svg(figure: str) -> Markup:
    return Markup(figure)  # noqa: S704  # drawn by us


def _rung_axis(content: SearchContent) -> ScoreAxis:
    goal = content.goals[0]
    scores = [found.get(goal.metric) for each in content.trials for found in each.rungs.values()]
    return score_axis(goal, scores)


def _ordered(axes: Sequence[KeyAxis], found: Importance) -> list[KeyAxis]:
    """The keys in the order of the space; with too many to show, those that matter most first."""
    if len(axes) <= MOST_AXES:
        return list(axes)
    return sorted(axes, key=lambda each: -found.shares.get(each.key, 0.0))


def _rungs(content: SearchContent) -> list[_Rung]:
    goal = content.goals[0]
    rows = []
    for epochs in sorted({epochs for each in content.trials for epochs in each.rungs}):
        here = [each for each in content.trials if epochs in each.rungs]
        costs = [goal.cost(each.rungs[epochs].get(goal.metric)) for each in here]
        finite = [cost for cost in costs if math.isfinite(cost)]
        sign = 1 if goal.mode == "min" else -1
        rows.append(
            _Rung(
                epochs,
                trials=len(here),
                ended=sum(each.state == "stopped" and max(each.rungs) == epochs for each in here),
                best=sign * min(finite) if finite else None,
                median=sign * statistics.median(finite) if finite else None,
            )
        )
    return rows


def _best_view(content: SearchContent) -> dict[str, Any]:
    best = content.best_trial
    links = [
        (name, target, RELATIVE.fullmatch(target) is not None)
        for name, target in content.links.items()
    ]
    if best is None:
        return {"best": None, "best_scores": [], "best_values": [], "links": links}
    values = [(key, value_text(value)) for key, value in best.values.items()]
    metrics = [goal.metric for goal in content.goals]
    return {
        "best": best,
        "best_scores": [(name, score_text(name, best.scores.get(name))) for name in metrics],
        "best_values": values,
        "links": links,
    }


def _table_view(content: SearchContent) -> dict[str, Any]:
    names = short_keys(content.paths)
    by_number = {each.number: each for each in content.trials}
    front = [by_number[number] for number in content.front if number in by_number]
    front.sort(key=content.cost)
    return {
        "keys": list(names.values()),
        "rows": [_row(content, each, names) for each in content.ranked[:MOST_ROWS]],
        "unseen_rows": len(content.trials) > MOST_ROWS,
        "front": [_row(content, each, names) for each in front] if len(content.goals) > 1 else [],
    }


def _row(content: SearchContent, trial: TrialRow, names: Mapping[str, str]) -> _Row:
    note = shortened(trial.error, 60) if trial.error else ""
    if not note and trial.parent not in {None, trial.number}:
        note = f"went on as a copy of trial {trial.parent}"
    elif not note and trial.ended_by not in {"", "epochs", "scheduler"}:
        note = f"ended by {trial.ended_by}"
    return _Row(
        number=trial.number,
        state=trial.state,
        epochs=trial.epochs,
        scores=[score_text(each.metric, trial.scores.get(each.metric)) for each in content.goals],
        cells=[value_text(trial.values[key]) if key in trial.values else "\u2013" for key in names],
        values=values_text(trial.values, names),
        pack=trial.pack,
        note=note,
        is_best=trial.number == content.best,
    )


def _summary(content: SearchContent) -> str:
    goals = " and ".join(
        f"{'least' if each.mode == 'min' else 'most'} {each.metric}" for each in content.goals
    )
    parts = [f"The {goals}", f"{_some(len(content.paths), 'key')} of the spec"]
    parts += [each for each in (content.algorithm, content.scheduler) if each]
    return "; ".join(parts)


def _packed(content: SearchContent) -> str:
    packed = content.packed
    if not packed.packs:
        return "Every trial was trained by itself." if content.trials else "Nothing was trained."
    together = (
        f"{_some(packed.trials, 'trial')} in {_some(packed.packs, 'pack')}: the models of a pack "
        "have one shape and are trained in one program, which agrees with training each by itself "
        "up to rounding"
    )
    alone = f" {_some(packed.alone, 'trial')} alone." if packed.alone else ""
    return f"{together}.{alone}"


def _warnings(content: SearchContent) -> Iterator[str]:
    failed = content.counts["failed"]
    if failed:
        yield f"{_some(failed, 'trial')} failed; see below why"
    best = content.best_trial
    if best is not None and best.state == "stopped":
        yield (
            f"the best trial was stopped after {_some(best.epochs, 'epoch')}; its model may become "
            "better with more"
        )


def _score(content: SearchContent, trial: TrialRow) -> float | None:
    return trial.scores.get(content.goals[0].metric)


def _some(how_many: int, what: str) -> str:
    return f"{count(how_many)} {what}{'' if how_many == 1 else 's'}"
