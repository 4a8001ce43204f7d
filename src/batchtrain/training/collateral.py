"""Whether an error of one rank only says that another rank is gone."""

from __future__ import annotations

import torch.distributed as dist

from batchtrain.failures import text_of

__all__ = ["tells_of_another"]

GONE = (
    "gloo/transport",
    "Gloo connect",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Wait timeout",
    "Timed out waiting",
)
"""What gloo says when a rank is gone, or does not answer."""

OWN_FAULT = "enforce fail"
"""What it says when two ranks do not do the same, such as tensors of two sizes."""


def tells_of_another(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that another rank is gone."""
    seen: list[BaseException] = []
    while error is not None and not any(error is each for each in seen):
        seen.append(error)
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError):
            text = text_of(error)
            if any(words in text for words in GONE) and OWN_FAULT not in text:
                return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
