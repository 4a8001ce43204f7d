"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "stop_on_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked for a stop."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self.requested


@contextmanager
def stop_on_signals(*, only_first: bool = True) -> Iterator[StopRequest]:
    """Turn Ctrl-C or SIGTERM into a request.

    Outside the main thread signals cannot be caught, and nothing is.

    Args:
        only_first: Whether a second one acts as it did before. A rank may hear of one request
            twice: from whoever signals its whole process group, and from its parent.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(_number: int, _frame: FrameType | None) -> None:
        request.requested = True
        if not only_first:
            return
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
