"""Try again what may pass, within a limit, and know one's own commit whose reply was lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from batchtrain.errors import StorageUnavailableError
from batchtrain.storage.base import Storage
from batchtrain.storage.locking import OwnLock

__all__ = ["RetryingStorage"]

ATTEMPTS = 5
"""How often an operation is tried, the first time included."""
FIRST_PAUSE_S = 0.5
"""Seconds between the first attempt and the second; each later pause is three times as long."""
LONGEST_PAUSE_S = 10.0
"""Seconds; no pause is longer."""
LIMIT_S = 120.0
"""Seconds after its first attempt at which an operation is not tried again."""

GROWTH = 3.0

Result = TypeVar("Result")


class RetryingStorage:
    """Any storage, with `StorageUnavailableError` tried again; every other error comes at once.

    An operation ends, well or not, at the latest when the call that began within `limit`
    seconds returns.

    Attributes:
        inner: The storage itself.
        retried: How many calls were made again so far; a note at the end of a run says so.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        attempts: int = ATTEMPTS,
        pause: float = FIRST_PAUSE_S,
        limit: float = LIMIT_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inner = inner
        self.retried = 0
        self._attempts = attempts
        self._pause = pause
        self._limit = limit
        self._sleep = sleep
        self._clock = clock
        self._counting = OwnLock()

    def url(self, key: str = "") -> str:
        """See `Storage.url`."""
        return self.inner.url(key)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self._tried(lambda: self.inner.read(key))

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        return self._tried(lambda: self.inner.size(key))

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`."""
        return self._tried(lambda: self.inner.modified(key))

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self._tried(lambda: self.inner.write(key, data))

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`; what is there after a failure is compared with `data`.

        A call that failed may have done its work: then the next one finds the key taken, by
        this very caller.
        """
        failed = False

        def once() -> bool:
            nonlocal failed
            try:
                made = self.inner.create(key, data)
            except StorageUnavailableError:
                failed = True
                found = self._found(key)
                if found is None:
                    raise
                return found == data
            return made or (failed and self._found(key) == data)

        return self._tried(once)

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`."""
        return self._tried(self.inner.leftovers)

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        return self._tried(lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._tried(lambda: self.inner.delete(key))

    def count_retried(self, calls: int) -> None:
        """Add calls that were made again on the way here, such as by a probe."""
        with self._counting:
            self.retried += calls

    def _found(self, key: str) -> bytes | None:
        try:
            return self.inner.read(key)
        except FileNotFoundError:
            return None

    def _tried(self, call: Callable[[], Result]) -> Result:
        """Call until it succeeds, fails for good, or the limit is reached."""
        started, pause, tries = self._clock(), self._pause, 1
        while True:
            try:
                return call()
            except StorageUnavailableError as error:
                seconds = self._clock() - started
                if tries >= self._attempts or seconds + pause > self._limit:
                    raise StorageUnavailableError(
                        f"{error} (tried {tries} time{'' if tries == 1 else 's'} in "
                        f"{seconds:.0f} s). Check the storage, then run the command again: "
                        "it goes on where it stopped"
                    ) from error
            self.count_retried(1)
            self._sleep(pause)
            pause, tries = min(pause * GROWTH, LONGEST_PAUSE_S), tries + 1
