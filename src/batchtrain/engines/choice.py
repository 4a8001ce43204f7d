"""Which engine a run uses, from what was asked and how large the work is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchtrain.engines.engine import EngineName

__all__ = ["SMALL_INPUT_BYTES", "EngineChoice", "choose_engine"]

SMALL_INPUT_BYTES = 256 * 10**6
"""Below this the start of Ray takes longer than the work."""

SMALL_SHARED_BYTES = 64 * 10**6
"""The same where Ray is started for the workers of a training anyway: a pass over a small input
takes seconds with Ray Data and fractions of one without."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and why.

    Attributes:
        name: Which.
        why: One sentence for people.
    """

    name: EngineName
    why: str


def choose_engine(
    asked: Literal["auto", "embedded", "ray"],
    *,
    input_bytes: int,
    workers: int | Literal["auto"],
) -> EngineChoice:
    """Choose; `auto` takes Ray for an input of 256 MB and more, or 64 MB with several workers.

    Args:
        asked: `engine` of the spec.
        input_bytes: The size of all files of the input.
        workers: `resources.workers` of the spec.
    """
    if asked != "auto":
        return EngineChoice(asked, f"engine {asked}, as the spec says")
    several = workers != "auto" and workers > 1
    limit = SMALL_SHARED_BYTES if several else SMALL_INPUT_BYTES
    has = f"the input has {_size(input_bytes)}"
    with_workers = f" with {workers} workers" if several else ""
    if input_bytes >= limit:
        return EngineChoice(
            "ray", f"engine ray, since {has} ({_size(limit)} and more{with_workers})"
        )
    return EngineChoice(
        "embedded", f"engine embedded, since {has} (less than {_size(limit)}{with_workers})"
    )


def _size(num_bytes: int) -> str:
    """A size in the unit that suits it, such as 1.3 MB; never more than there is."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{math.floor(size * 10) / 10:g} {unit}"
