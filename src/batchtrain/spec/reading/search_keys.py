"""Whether the keys of `search.space` are keys of the spec, and such as a search may try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchtrain.spec.reading.outline import ANY_NAME, Outline
from batchtrain.spec.reading.places import Fault, Places, join_key
from batchtrain.spec.reading.shown import either, shown_key
from batchtrain.spec.suggest import did_you_mean

__all__ = ["SPACE", "search_key_faults"]

SPACE = "search.space"

SEARCHED = ("seed", "data", "model", "training", "determinism")
"""What the trials of a search may differ in."""

FEATURES = ("data.columns", "data.exclude")
"""Of the data, what says which features there are and how they are made."""

OTHER_ROWS = "it decides which rows are trained or measured, so that trials could not be compared"
NO_RESULT = "it is the same for all trials of a search"

NOT_SEARCHED = {
    "training.early_stopping.metric": "trials are compared by one metric",
    "training.checkpoint.every_steps": "it never changes the result",
    "training.checkpoint.every_seconds": "it never changes the result",
    "training.checkpoint.keep": "it never changes the result",
}

MAX_LISTED = 3


def search_key_faults(document: Any, places: Places, outline: Outline) -> Iterator[Fault]:
    """Find keys of `search.space` that a spec does not have or that cannot be searched.

    Args:
        document: The spec as plain values, which need not be right.
        places: Where its keys are.
        outline: The keys of a spec.
    """
    search = document.get("search") if isinstance(document, dict) else None
    space = search.get("space") if isinstance(search, dict) else None
    for key in space if isinstance(space, dict) else ():
        whole = join_key(SPACE, key)
        if not outline.has(key):
            message = f"there is no key {shown_key(key)!r} in a spec"
            yield Fault(places.of_key(whole), whole, message, _meant(key, outline))
        elif reason := _refused(key):
            keys = FEATURES if key.partition(".")[0] == "data" else SEARCHED
            hint = f"Keys of {either([f'`{each}`' for each in keys])} can be searched"
            message = f"`{shown_key(key)}` cannot be searched: {reason}"
            yield Fault(places.of_key(whole), whole, message, hint)


def _refused(key: str) -> str:
    """Why a key of the spec cannot be searched; empty where it can."""
    if key.partition(".")[0] not in SEARCHED:
        return NO_RESULT
    is_of_features = any(key == each or key.startswith(f"{each}.") for each in FEATURES)
    if key.partition(".")[0] == "data" and not is_of_features:
        return OTHER_ROWS
    return NOT_SEARCHED.get(key, "")


def _meant(key: str, outline: Outline) -> str:
    """Which key was probably meant, as a sentence."""
    patterns = list(dict.fromkeys(pattern for _, pattern, _ in outline.places_of_keys()))
    able = [each for each in patterns if ANY_NAME not in each.split(".") and not _refused(each)]
    ending = [each for each in able if each.endswith(f".{key}")]
    if ending:
        return _did_you_mean(ending)
    close = did_you_mean(key, able)
    if close:
        return _did_you_mean([close])
    last = key.rpartition(".")[2]
    close = did_you_mean(last, [each.rpartition(".")[2] for each in able])
    if close:
        return _did_you_mean([each for each in able if each.rpartition(".")[2] == close])
    return "Write dotted keys as `batchtrain check --resolved` has them"


def _did_you_mean(keys: Sequence[str]) -> str:
    return f"Did you mean {either([f'`{key}`' for key in keys[:MAX_LISTED]])}?"
