"""Which engine a run uses, from what was asked and how large the work is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchtrain.engines.engine import EngineName

__all__ = ["SMALL_INPUT_BYTES", "EngineChoice", "choose_engine"]

SMALL_INPUT_BYTES = 256 * 10**6
"""Below this the start of Ray takes longer than the work."""


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
    cluster_gpus: int = 0,
) -> EngineChoice:
    """Choose; `auto` takes Ray for an input of 256 MB and more, several workers, or a GPU cluster.

    Args:
        asked: `engine` of the spec.
        input_bytes: The size of all files of the input.
        workers: `resources.workers` of the spec.
        cluster_gpus: The GPUs of the cluster that the process is attached to.
    """
    if asked != "auto":
        return EngineChoice(asked, f"engine {asked}, as the spec says")
    size = _size(input_bytes)
    if input_bytes >= SMALL_INPUT_BYTES:
        return EngineChoice("ray", f"engine ray, since the input has {size} (256 MB and more)")
    if workers == "auto":
        if cluster_gpus:
            gpus = f"{cluster_gpus} GPU{'' if cluster_gpus == 1 else 's'}"
            return EngineChoice("ray", f"engine ray, since the cluster has {gpus}")
    elif workers > 1:
        return EngineChoice("ray", f"engine ray, since {workers} workers were asked for")
    reason = f"the input has {size} (less than 256 MB) and one worker is enough"
    return EngineChoice("embedded", f"engine embedded, since {reason}")


def _size(num_bytes: int) -> str:
    """A size in the unit that suits it, such as 1.3 MB; never more than there is."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{math.floor(size * 10) / 10:g} {unit}"
