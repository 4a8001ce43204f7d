"""Keys and values of a search as a person reads them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.reporting.wording import measure, number, visible

__all__ = ["score_text", "short_keys", "value_text", "values_text"]


VAGUE = ("kind",)
"""Says nothing without what stands before it."""


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key to its shortest ending that no other key has.

    Example:
        >>> short_keys(["training.optimizer.lr", "model.dropout", "model.kind"])
        {'training.optimizer.lr': 'lr', 'model.dropout': 'dropout', 'model.kind': 'model.kind'}
    """
    unique = list(dict.fromkeys(keys))
    uses = Counter(ending for key in unique for ending in _endings(key))
    uses.update(VAGUE)
    return {key: next((each for each in _endings(key) if uses[each] == 1), key) for key in unique}


def _endings(key: str) -> list[str]:
    """All endings of a dotted key, the shortest first."""
    parts = key.split(".")
    return [".".join(parts[place:]) for place in range(len(parts) - 1, -1, -1)]


def score_text(metric: str, value: float | None) -> str:
    """A score with four digits that mean something; `parameters` are whole.

    Example:
        >>> score_text("valid_loss", 0.25), score_text("parameters", 9221.0), score_text("r2", None)
        ('0.2500', '9,221', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    is_count = metric == "parameters" and math.isfinite(value)
    return f"{value:,.0f}" if is_count else measure(value)


def value_text(value: Any) -> str:
    """One value on one line, with nothing invisible in it.

    Example:
        >>> [value_text(value) for value in (0.00312345, 128, True, None, [128, 64], "relu")]
        ['0.003123', '128', 'true', 'null', '128-64', 'relu']
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, int | str) and not isinstance(item, bool) for item in value)
        if value and plain:
            return visible("-".join(str(item) for item in value))
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def values_text(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """All values of a trial on one line.

    Args:
        values: By dotted key.
        names: What each key is called; left out, its shortest ending among these keys.

    Example:
        >>> values_text({"training.optimizer.lr": 0.01, "model.hidden": [8, 4]})
        'lr 0.01, hidden 8-4'
    """
    names = names or short_keys(list(values))
    return ", ".join(
        f"{visible(names.get(key, key))} {value_text(value)}" for key, value in values.items()
    )
