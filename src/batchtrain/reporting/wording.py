"""Numbers, times and names as a person reads them, with nothing invisible left in them."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["count", "duration", "measure", "number", "shortened", "tick", "visible"]

JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian, Indic scripts and emoji are spelled."""


def visible(text: str) -> str:
    r"""Replace what cannot be seen, or would reorder its surroundings, by its Python escape.

    These are control characters (newline and tab too), bidirectional marks and overrides, line
    separators, lone surrogates and noncharacters. The result is one line, valid in XML.

    Example:
        >>> visible("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    category = unicodedata.category(char)
    if category == "Cn":
        # The other unassigned code points may be letters of a newer Unicode than Python's.
        return (ord(char) & 0xFFFE) == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF
    return category in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shortened(text: str, limit: int) -> str:
    """`visible(text)` in at most `limit` characters; the middle goes, since names end differently.

    Example:
        >>> shortened("a_very_long_name_1", 9)
        'a_ve\u2026me_1'
    """
    text = visible(text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}\u2026{text[len(text) - tail :]}"


def count(value: int | None) -> str:
    """A whole number, with commas.

    Example:
        >>> count(12345)
        '12,345'
    """
    return "n/a" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """A number with at most 4 significant digits and no needless zeros.

    Example:
        >>> [number(value) for value in (74.0, 0.70003, 123456.7, 0.0000123, None)]
        ['74', '0.7', '123,457', '1.23e-05', 'n/a']
    """
    text = measure(value)
    if "." not in text:
        return text
    digits, exponent, power = text.partition("e")
    return digits.rstrip("0").rstrip(".") + exponent + power


def measure(value: float | None) -> str:
    """A number with 4 significant digits, zeros kept, so that a column of them lines up.

    Digits before the decimal point are never dropped.

    Example:
        >>> [measure(value) for value in (0.925, 1.0, 12345.6, 0.0000123, None)]
        ['0.9250', '1.000', '12,346', '1.230e-05', 'n/a']
    """
    if value is None:
        return "n/a"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("-infinity" if value < 0 else "infinity")
    if value == 0:
        return "0.000"
    # Rounding first: 9.9999 has its first digit before the point only after it.
    exponent = int(f"{abs(value):.3e}".partition("e")[2])
    if not -4 <= exponent < 15:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 3 - exponent)}f}"


def tick(value: float) -> str:
    """A number on an axis, with all the digits that tell it from its neighbours.

    Example:
        >>> [tick(value) for value in (0.30000000000000004, 100.002, 250000.0, 1.5e6)]
        ['0.3', '100.002', '250,000', '1.5M']
    """
    if 1e6 <= abs(value) < 1e9:
        return f"{value / 1e6:,.10g}M"
    return f"{value + 0.0:,.10g}"


def duration(seconds: float | None) -> str:
    """A length of time.

    Example:
        >>> [duration(value) for value in (0.0312, 4.26, 75.0, 3725.0, None)]
        ['0.03 s', '4.3 s', '1 min 15 s', '1 h 02 min', 'n/a']
    """
    if seconds is None:
        return "n/a"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
