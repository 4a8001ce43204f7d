"""A thread that talks to a server, so that whoever has something to say need not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Sender"]


class Sender:
    """A thread that does one thing after the other; the first error ends it and is told."""

    def __init__(self, *, most_waiting: int) -> None:
        """Begin to wait for something to do.

        Args:
            most_waiting: With more unsent numbers nothing more is taken.
        """
        self._most_waiting = most_waiting
        self._jobs: queue.Queue[tuple[Callable[[], None], int] | None] = queue.Queue()
        self._error: Exception | None = None
        self._unsent = 0
        self._idle = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None], *, numbers: int = 1) -> None:
        """Do this after all that was put before.

        Raises what an earlier job raised, or `TimeoutError` if too much waits.
        """
        if self._error is not None:
            raise self._error
        with self._idle:
            if self._unsent > self._most_waiting:
                raise TimeoutError(f"it has not taken the last {self._unsent:,} numbers")
            self._unsent += numbers
        self._jobs.put((job, numbers))

    def wait(self, seconds: float) -> bool:
        """Wait until all is done, or for so many seconds; raises what a job raised.

        Returns:
            Whether all is done.
        """
        with self._idle:
            self._idle.wait_for(lambda: not self._unsent or self._error is not None, seconds)
            is_done = not self._unsent
        if self._error is not None:
            raise self._error
        return is_done

    def close(self, seconds: float) -> None:
        """Let the thread end; raises as `wait`, or `TimeoutError` where it does not."""
        self._jobs.put(None)
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise TimeoutError(f"it has not answered for {seconds:.0f} s")

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, numbers = entry
            try:
                job()
            except Exception as error:  # noqa: BLE001 - whoever puts the next job hears of it
                self._error = error
            with self._idle:
                self._unsent -= numbers
                self._idle.notify_all()
            if self._error is not None:
                return
