"""Ask a storage at the start whether it keeps the promises that a run is built on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from batchtrain.errors import StorageError
from batchtrain.storage.base import Storage
from batchtrain.storage.locking import OwnLock
from batchtrain.storage.retrying import RetryingStorage

__all__ = ["ProbedStorage", "probe_storage"]

PROBES = "_probe"
"""The folder of the probes; no run can have this name."""

PROBE_LIMIT_S = 4.0
"""Seconds after which a call of the probe is not tried again: a wrong address is told soon."""


def probe_storage(storage: Storage) -> None:
    """Write, create twice, read, list and delete under a name of its own.

    What it wrote it takes away, also where it fails.

    Raises:
        StorageError: If an operation is refused, or a promise of `Storage` is not kept; the
            message says which.
        StorageUnavailableError: If the storage does not answer.
    """
    folder = f"{PROBES}/{uuid.uuid4().hex}"
    key = f"{folder}/name"
    first, second = f"first {key}".encode(), f"second {key}".encode()
    # A storage that does not answer at all is known after one call, with nothing to take away.
    with _step(storage, "look for a file"):
        found_size = storage.size(key)
    _expect(storage, "size", found_size is None, "a file that was never written has one")
    try:
        with _step(storage, "create a new file"):
            made = storage.create(key, first)
        _expect(storage, "exclusive create", made, "the first create of a name was refused")
        with _step(storage, "create a file"):
            made = storage.create(key, second)
        _expect(storage, "exclusive create", not made, "a second create of the name was accepted")
        with _step(storage, "read a file"):
            found = storage.read(key)
        _expect(storage, "exclusive create", found == first, "the second create left its data")
        _check_finding(storage, folder, key, len(first))
        with _step(storage, "write a file"):
            storage.write(key, second)
            found = storage.read(key)
        _expect(storage, "overwrite", found == second, "the old data was read after a write")
        with _step(storage, "delete a file"):
            storage.delete(key)
            left = storage.size(key)
        _expect(storage, "delete", left is None, "the file was there after its deletion")
    except BaseException:
        with suppress(StorageError):
            storage.delete(key)
        raise


def _check_finding(storage: Storage, folder: str, key: str, size: int) -> None:
    with _step(storage, "ask for a file's size and time"):
        found, modified = storage.size(key), storage.modified(key)
    _expect(storage, "size", found == size, f"found {found} instead of {size} bytes")
    _expect(storage, "time", modified is not None, "a file that is there has no time")
    with _step(storage, "list a folder"):
        listed = storage.list(folder)
    _expect(storage, "list", listed == [key], f"found {len(listed)} names instead of its one file")


@contextmanager
def _step(storage: Storage, what: str) -> Iterator[None]:
    """Say in an error that it came from the probe, and what the probe wanted."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"storage {storage.url()}: expected to {what} at the start, found that what was "
            "written a moment ago is not there. Choose a storage that shows a write at once"
        ) from error
    except StorageError as error:
        kind = type(error)
        raise kind(
            f"storage {storage.url()}: expected to {what} at the start, found: {error}"
        ) from error


def _expect(storage: Storage, promise: str, kept: bool, found: str) -> None:
    if not kept:
        raise StorageError(
            f"storage {storage.url()}: expected that it keeps the promise {promise!r}, {found}. "
            "Results could be lost or mixed there: choose a POSIX folder, or an object store "
            "with conditional writes"
        )


class ProbedStorage:
    """A storage with retries that is probed once, right before its first write.

    A run that only reads pays nothing and needs no right to write.

    Attributes:
        inner: The storage with retries.
    """

    def __init__(self, storage: Storage) -> None:
        self.inner = RetryingStorage(storage)
        self._quick = RetryingStorage(storage, limit=PROBE_LIMIT_S)
        self._is_probed = False
        self._probing = OwnLock()

    def url(self, key: str = "") -> str:
        """See `Storage.url`."""
        return self.inner.url(key)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self.inner.read(key)

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        return self.inner.size(key)

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`."""
        return self.inner.modified(key)

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        self._probe_once()
        self.inner.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        self._probe_once()
        return self.inner.create(key, data)

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`; what a killed probe left is among them."""
        return sorted({*self.inner.leftovers(), *self.inner.list(PROBES)})

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self.inner.delete(key)

    def _probe_once(self) -> None:
        if self._is_probed:
            return
        with self._probing:
            if not self._is_probed:
                probe_storage(self._quick)
                self.inner.count_retried(self._quick.retried)
                self._is_probed = True
