"""How values and keys of a spec appear in a message: short, on one line, without credentials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["either", "redacted", "shown", "shown_key"]

MAX_SHOWN = 60
MAX_KEY = 120

# To the last @, since a pasted secret may hold any character, a slash or another @ included.
CREDENTIALS = re.compile(r"://.*@", re.DOTALL)
# Signed addresses carry their signature in the query.
QUERY = re.compile(r"(://[^?#]*)[?#].*", re.DOTALL)


def redacted(text: str) -> str:
    """Take what may be a secret out of an address; other text stays as it is.

    Example:
        >>> redacted("s3://key:secret@bucket/rows.csv")
        's3://***@bucket/rows.csv'
        >>> redacted("https://host/rows.csv?token=secret")
        'https://host/rows.csv?***'
    """
    return QUERY.sub(r"\1?***", CREDENTIALS.sub("://***@", text))


def shown(value: Any) -> str:
    """Describe a value that was found, as a spec would write it.

    Example:
        >>> shown("12"), shown(None), shown(True), shown([1, 2])
        ("'12'", 'nothing', 'true', 'a list of 2')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(redacted(value)) if isinstance(value, str) else repr(value)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}... ({len(str(value))} characters)"


def shown_key(key: str) -> str:
    """Give a dotted key as one line that no terminal can misread."""
    text = redacted(key)
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return line if len(line) <= MAX_KEY else f"{line[:MAX_KEY]}..."


def either(words: Sequence[str]) -> str:
    """Join alternatives for a sentence.

    Example:
        >>> either(["auto", "full", "a whole number"])
        'auto, full or a whole number'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"
