"""A lock that objects may hold which are sent to other processes."""

from __future__ import annotations

import threading

__all__ = ["OwnLock"]


class OwnLock:
    """A lock between the threads of one process; a copy in another process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Wait until no other thread holds it."""
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        """Let the next one hold it."""
        self._lock.release()

    def __reduce__(self) -> tuple[type[OwnLock], tuple[()]]:
        """Begin anew, held by nobody."""
        return type(self), ()
