"""What a value may be, and what to do about one that is not, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchtrain.spec.base import NAME_PATTERN
from batchtrain.spec.reading.outline import Node, Outline
from batchtrain.spec.reading.scalars import scalar_of
from batchtrain.spec.reading.shown import either, shown
from batchtrain.spec.suggest import did_you_mean

__all__ = ["advice", "expected", "types_of"]

BOOLEAN_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}

# A pattern is recognised by how it starts; its words are for people.
PATTERNS = (
    (NAME_PATTERN, "lower-case letters, digits and hyphens, at most 63, the first no hyphen"),
    ("^(>=|<=|>|<)", 'a comparison with a number, such as ">= 0.9"'),
    ("^[A-Za-z]", "`package.module:Class`"),
    ("^[A-Za-z_]", "the name of a variable, such as HTTPS_PROXY"),
    ("^[a-z0-9](", "a name as Kubernetes has it: lower-case letters, digits and hyphens"),
    ("^[1-9][0-9]*(Mi", "a size such as 512Mi or 16Gi"),
)


def expected(outline: Outline, node: Node) -> str:
    """Say what a value may be, as the part of a sentence after "expected".

    Example:
        >>> expected(Outline({"$defs": {}}), {"type": "integer", "minimum": 1})
        'a whole number, at least 1'
    """
    choices = [str(choice) for choice in _all_choices(outline, node)]
    open_ended = [
        _one_branch(outline, option) for option in outline.branches(node) if not _choices(option)
    ]
    if not open_ended and len(choices) > 2:
        return f"one of {either(choices)}"
    return either([*choices, *open_ended])


def advice(outline: Outline, node: Node, value: Any) -> str:
    """Say how a value of the wrong sort is put right; empty where it cannot be guessed."""
    types = types_of(outline, node)
    if value is None:
        return "Fill in a value, or remove the key"
    if _is_nullable(node) and (value is False or str(value).lower() in {"no", "off", "none"}):
        return "Remove the key, or write null"
    if isinstance(value, str):
        return _advice_on_text(outline, node, value, types)
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return f"Write {int(value)}" if abs(value) < 2**53 else "Write it out in digits"
    is_scalar = isinstance(value, bool | int | float)
    if is_scalar and types == {"string"} and not _all_choices(outline, node):
        return "Put it in quotes if it is text"
    if is_scalar and types == {"array"}:
        return "Write a list in brackets"
    return ""


def types_of(outline: Outline, node: Node) -> set[str]:
    """The JSON types that a value may have; sections with a `kind` are objects."""
    named = {bool: "boolean", int: "integer", str: "string"}
    types = {named[type(choice)] for choice in _all_choices(outline, node)}
    open_ended = [option for option in outline.branches(node) if not _choices(option)]
    return types | {option.get("type", "object") for option in open_ended}


def _advice_on_text(outline: Outline, node: Node, value: str, types: set[str]) -> str:
    meant = _number_in(value)
    if types & {"integer", "number"} and meant is not None:
        is_quoted = "_" not in value
        return "Remove the quotes" if is_quoted else f"Write {shown(meant)}"
    if "boolean" in types and value.lower() in BOOLEAN_WORDS:
        return f"Write {shown(BOOLEAN_WORDS[value.lower()])}"
    if "boolean" in types and value.lower() in {"true", "false"}:
        return "Remove the quotes"
    kinds = [kind for option in outline.branches(node) for kind in outline.kinds(option)]
    choices = [str(choice) for choice in _all_choices(outline, node)]
    close = did_you_mean(value, [*choices, *kinds])
    if close:
        is_kind_only = close in kinds and close not in choices
        return f"Write {{kind: {close}}}" if is_kind_only else f"Did you mean {close!r}?"
    return "Write a list in brackets" if "array" in types else ""


def _number_in(text: str) -> int | float | None:
    try:
        value = scalar_of(text.replace("_", ""))
    except ValueError:
        return None
    return None if isinstance(value, str | bool) else value


def _all_choices(outline: Outline, node: Node) -> list[Any]:
    return [choice for option in outline.branches(node) for choice in _choices(option)]


def _choices(node: Node) -> Sequence[Any]:
    return [node["const"]] if "const" in node else node.get("enum", [])


def _one_branch(outline: Outline, node: Node) -> str:
    kinds = list(outline.kinds(node))
    if kinds:
        return f"a section with the kind {either(kinds)}"
    match node.get("type"):
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number{_limits(node)}"
        case "number":
            return f"a number{_limits(node)}"
        case "string":
            return _text(node)
        case "array":
            return _list(outline, node)
    return "a section"


def _is_nullable(node: Node) -> bool:
    return {"type": "null"} in node.get("anyOf", [])


def _limits(node: Node) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    named = (("at least", low), ("above", above), ("at most", high), ("below", below))
    words = [f"{word} {_number(limit)}" for word, limit in named if limit is not None]
    return f", {' and '.join(words)}" if words else ""


def _number(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _text(node: Node) -> str:
    for start, words in PATTERNS:
        if node.get("pattern", "").startswith(start):
            return words
    if "maxLength" in node:
        return f"text of {node.get('minLength', 0)} to {node['maxLength']} characters"
    return "text that is not empty" if "minLength" in node else "text"


def _list(outline: Outline, node: Node) -> str:
    if "prefixItems" in node:
        each = expected(outline, node["prefixItems"][0])
        return f"a list of {len(node['prefixItems'])}, each {each}"
    items = node.get("items", {})
    each = f", each {expected(outline, items)}" if items else ""
    low, high = node.get("minItems"), node.get("maxItems")
    size = f" of at least {low}" if low else f" of at most {high}" if high else ""
    return f"a list{size}{each}"
