"""Named points that a run passes; nobody listens, except where a test kills a run on purpose."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["listen", "passed"]

_listener: Callable[[str], None] | None = None


def passed(name: str) -> None:
    """Say that this process has come to a point, such as `step.backward`.

    It costs a few dozen nanoseconds while nobody listens.
    """
    if _listener is not None:
        _listener(name)


def listen(listener: Callable[[str], None] | None) -> None:
    """Call `listener` with the name of every point from now on; None ends it.

    The listener runs in the thread that passes the point. It may raise, wait, or end the process.
    """
    global _listener
    _listener = listener
