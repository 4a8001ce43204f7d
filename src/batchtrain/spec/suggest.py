"""The "did you mean" of keys, kinds, files and column names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """Name the choice that was probably meant, or None where none is close.

    A choice that differs in case alone wins over one that differs in letters.

    Example:
        >>> did_you_mean("mpl", ["linear", "mlp", "custom"])
        'mlp'
        >>> did_you_mean("TARGET", ["targets", "target"])
        'target'
        >>> did_you_mean("entirely other", ["mlp"]) is None
        True
    """
    by_lower: dict[str, str] = {}
    for choice in choices:
        by_lower.setdefault(choice.lower(), choice)
    if word.lower() in by_lower:
        return by_lower[word.lower()]
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None
