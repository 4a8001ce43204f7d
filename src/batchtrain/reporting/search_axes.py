"""The axes of a search's plots: one for each key that was tried, and one for the score."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchtrain.reporting.search_content import GoalRow, SearchContent
from batchtrain.reporting.search_words import short_keys, value_text
from batchtrain.reporting.wording import number, shortened, tick

__all__ = ["KeyAxis", "ScoreAxis", "key_axes", "score_axis"]

MOST_TICKS = 8
LARGEST = 1e100
"""Numbers near the limits of float64 overflow inside matplotlib."""

LOG_FACTOR = 20.0
"""Scores that span more than this factor are on a logarithmic axis."""


@dataclass(frozen=True)
class KeyAxis:
    """The values of one key, laid out from 0 to 1.

    Attributes:
        key: Dotted.
        label: A short name for it.
        low: The lowest number; not for categories.
        high: The highest.
        is_log: Whether the numbers are laid out by their logarithm.
        is_whole: Whether they are whole.
        categories: The values as JSON, where they are no range of numbers.
        texts: The same as people read them; two that differ may read alike.
    """

    key: str
    label: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_whole: bool = False
    categories: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def place(self, values: Mapping[str, Any]) -> float | None:
        """Where a trial's value lies, 0 to 1; None where the key was not set in it."""
        if self.key not in values:
            return None
        value = values[self.key]
        if self.categories:
            last = len(self.categories) - 1
            found = _as_json(value)
            return self.categories.index(found) / last if last and found in self.categories else 0.5
        return self._number_place(float(value))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Some places and what stands beside them."""
        if self.categories:
            last = len(self.categories) - 1
            step = math.ceil(len(self.categories) / MOST_TICKS)
            return [
                (place / last if last else 0.5, shortened(text, 14))
                for place, text in enumerate(self.texts)
                if place % step == 0
            ]
        return [(self._number_place(value), number(value)) for value in self._tick_values()]

    def _number_place(self, value: float) -> float:
        if not self.high > self.low:
            return 0.5
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def _tick_values(self) -> list[float]:
        if not self.high > self.low:
            return [self.low]
        if self.is_log:
            return _log_ticks(self.low, self.high)
        from matplotlib.ticker import MaxNLocator

        places = MaxNLocator(nbins=5, integer=self.is_whole).tick_values(self.low, self.high)
        margin = 1e-9 * (self.high - self.low)
        return [float(each) for each in places if self.low - margin <= each <= self.high + margin]


@dataclass(frozen=True)
class ScoreAxis:
    """The scores of one goal as they are drawn: what is far worse than the others lies at the edge.

    Attributes:
        metric: Its name.
        low: The lower end.
        high: The upper end.
        is_log: Whether the axis is logarithmic.
        is_min: Whether less is better.
    """

    metric: str
    low: float
    high: float
    is_log: bool
    is_min: bool

    @property
    def worst(self) -> float:
        """The end where the bad ones are."""
        return self.high if self.is_min else self.low

    def drawn(self, value: float | None) -> float:
        """A score within the axis; NaN, which leaves a gap, for none."""
        if value is None or not math.isfinite(value):
            return math.nan
        return min(max(value, self.low), self.high)

    def is_beyond(self, value: float | None) -> bool:
        """Whether a score lies outside of the axis."""
        return value is not None and not self.low <= value <= self.high

    def place(self, value: float) -> float:
        """Where a score lies, 0 to 1."""
        value = self.drawn(value)
        if not self.high > self.low:
            return 0.5
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Some places, 0 to 1, and what stands beside them."""
        return [(self.place(value), tick(value)) for value in self.tick_values]

    @property
    def tick_values(self) -> list[float]:
        """Some scores between both ends."""
        if self.is_log:
            return _log_ticks(self.low, self.high)
        from matplotlib.ticker import MaxNLocator

        places = MaxNLocator(nbins=5).tick_values(self.low, self.high)
        return [float(each) for each in places if self.low <= each <= self.high]


def key_axes(content: SearchContent) -> list[KeyAxis]:
    """An axis for each key that was set in a trial, in the order of the space."""
    names = short_keys(content.paths)
    axes = []
    for key in names:
        values = [each.values[key] for each in content.trials if key in each.values]
        if values:
            label = shortened(names[key], 22)
            axes.append(_key_axis(key, label, content.distributions.get(key) or {}, values))
    return axes


def score_axis(goal: GoalRow, scores: Sequence[float | None]) -> ScoreAxis:
    """An axis that shows the better nine tenths of the scores well."""
    finite = sorted(goal.cost(each) for each in scores if each is not None and abs(each) < LARGEST)
    finite = [each for each in finite if math.isfinite(each)] or [0.0]
    best, worst = finite[0], finite[-1]
    usual = finite[min(len(finite) - 1, math.ceil(0.9 * len(finite)) - 1)]
    is_min = goal.mode == "min"
    if is_min and best > 0 and usual > LOG_FACTOR * best:
        # Twice the decades of the usual ones at most.
        worst = min(worst, usual * (usual / best))
        return ScoreAxis(goal.metric, best / 1.15, worst * 1.15, is_log=True, is_min=True)
    span = usual - best
    if span > 0 and worst > usual + 2 * span:
        worst = usual + span
    margin = 0.06 * (worst - best) or 0.05 * abs(best) or 0.5
    low, high = best - margin, worst + margin
    return ScoreAxis(
        goal.metric,
        low if is_min else -high,
        high if is_min else -low,
        is_log=False,
        is_min=is_min,
    )


def _key_axis(
    key: str, label: str, distribution: Mapping[str, Any], values: Sequence[Any]
) -> KeyAxis:
    kinds = ("uniform", "log_uniform", "int", "log_int", "choice")
    kind = next((name for name in kinds if distribution.get(name) is not None), "")
    is_number = all(_is_number(each) for each in values)
    if not is_number or kind == "choice":
        listed = list(distribution.get("choice") or ()) or (sorted(values) if is_number else [])
        # What is no choice, as in the table of another version, comes after those that are.
        others = sorted((each for each in values if each not in listed), key=_as_json)
        known = {_as_json(each): value_text(each) for each in [*listed, *others]}
        return KeyAxis(key, label, categories=tuple(known), texts=tuple(known.values()))
    # Population-based training may leave the bounds.
    numbers = [*values, *(each for each in distribution.get(kind) or () if _is_number(each))]
    low, high = float(min(numbers)), float(max(numbers))
    is_log = kind.startswith("log_") and low > 0
    is_whole = kind in {"int", "log_int"} or all(isinstance(each, int) for each in values)
    return KeyAxis(key, label, low, high, is_log, is_whole)


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and multiples of them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    digits = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    step = max(1, math.ceil(decades / MOST_TICKS))
    found = [digit * 10.0**power for power in range(first, last + 1, step) for digit in digits]
    inside = [each for each in found if low * (1 - 1e-9) <= each <= high * (1 + 1e-9)]
    return inside or [low, high]
