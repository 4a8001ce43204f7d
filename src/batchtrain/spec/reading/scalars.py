"""What a plain word of YAML means: the core schema of YAML 1.2, and nothing by surprise."""

from __future__ import annotations

import math
import re

__all__ = ["scalar_of"]

MAX_DIGITS = 100

WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]+")
LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
OTHER_BASES = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def scalar_of(text: str) -> str | int | float | bool | None:
    """Read a scalar that was written without quotes.

    `1e-3` is a number; `no`, `on`, `12:30:45`, `1_000` and dates are text, as YAML 1.2 has it.

    Raises:
        ValueError: For what would be read differently elsewhere or cannot be kept exactly: a
            leading zero (`010`), infinity and NaN, and numbers out of range.

    Example:
        >>> scalar_of("1e-3"), scalar_of("no"), scalar_of("0x1F"), scalar_of("~")
        (0.001, 'no', 31, None)
    """
    if text in WORDS:
        return WORDS[text]
    if LEADING_ZERO.fullmatch(text):
        raise ValueError("expected no zero before a whole number, since some read it as octal")
    if INTEGER.fullmatch(text) or OTHER_BASES.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"expected at most {MAX_DIGITS} digits")
        return int(text, 10 if INTEGER.fullmatch(text) else 0)
    if FLOAT.fullmatch(text):
        return _finite_float(text)
    if NOT_FINITE.fullmatch(text):
        raise ValueError("expected a finite number")
    return text


def _finite_float(text: str) -> float:
    value = float(text)
    mantissa = re.split("[eE]", text)[0]
    became_zero = value == 0 and re.search("[1-9]", mantissa)
    if math.isinf(value) or became_zero:
        raise ValueError("expected a number that a 64-bit float can hold")
    return value
