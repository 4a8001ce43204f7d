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


class _Asking:
    """A signal's handler that turns it into a request."""

    def __init__(self, request: StopRequest, *, only_first: bool) -> None:
        self._request = request
        self._only_first = only_first
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self)

    def remove(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._request.requested = True
        if self._only_first:
            self.remove()
        # A training of a search is over soon; whoever waits for the search must hear of it too.
        outer = self._before.get(signal.Signals(number))
        if isinstance(outer, _Asking):
            outer(number, frame)


@contextmanager
def stop_on_signals(*, only_first: bool = True) -> Iterator[StopRequest]:
    """Turn Ctrl-C or SIGTERM into a request.

    Outside the main thread signals cannot be caught, and nothing is. Within another call of it both
    hear of the request, since the inner one may be over before it has answered.

    Args:
        only_first: Whether a second one acts as it did before. A rank may hear of one request
            twice: from whoever signals its whole process group, and from its parent.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    asking = _Asking(request, only_first=only_first)
    asking.install()
    try:
        yield request
    finally:
        asking.remove()
