"""The base of every spec section: frozen, strict, and closed to unknown keys."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NAME_PATTERN", "Name", "SpecModel", "fingerprint_of"]

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""What a run may be called: safe as a folder, an object key and a job id."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class SpecModel(BaseModel):
    """A section of the spec: a value that cannot change and knows no unknown keys.

    A default lives in its field and nowhere else.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def fingerprint_of(value: Any) -> str:
    """Hash any JSON value: the same value gives the same 64 hex digits on every machine.

    Example:
        >>> fingerprint_of({"b": 1, "a": 2}) == fingerprint_of({"a": 2, "b": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
