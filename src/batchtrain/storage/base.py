"""What batchtrain asks of a storage, whatever it is made of."""

from __future__ import annotations

import re
from typing import Protocol

from batchtrain.errors import StorageError

__all__ = ["Storage", "check_key"]

NOT_IN_KEY = re.compile(r"[\x00-\x1f\x7f\\]")


def check_key(key: str) -> None:
    """Refuse a key that is no plain relative path, and so could lead out of the storage.

    Raises:
        StorageError: If a part is empty, `.` or `..`, or holds a backslash or a control character.
    """
    if NOT_IN_KEY.search(key) or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise StorageError(
            "expected a relative key without backslashes, control characters, and empty, '.' or "
            f"'..' parts, found {key!r}"
        )


class Storage(Protocol):
    """A tree of named byte strings below one root.

    A key is a relative path with forward slashes, as `check_key` takes it. An implementer raises
    `StorageUnavailableError` for what may pass when it is tried again, `StorageError` for
    everything else that the underlying system refuses, and `FileNotFoundError` where a key that
    must exist does not. No message holds a secret.
    """

    def url(self, key: str = "") -> str:
        """Where a person finds `key`: a path or a URI."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes under `key`; raises `FileNotFoundError` where there are none."""
        ...

    def size(self, key: str) -> int | None:
        """The number of bytes under `key`, or None where there is nothing."""
        ...

    def modified(self, key: str) -> float | None:
        """When `key` was last written, or None where there is nothing.

        In seconds since the epoch by the storage's own clock, which may differ from this
        machine's: compare it with that of a key written just now.
        """
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put `data` under `key`, whole and durable when this returns.

        A reader of `key` meanwhile sees the old bytes or the new ones, never a part.
        """
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` under `key` only if nothing is there; False if something is.

        Of any number of callers at once exactly one gets True, and what a reader finds is
        that caller's data, whole. After an error it may be there all the same: the reply can
        have been lost. So `data` must be unique to the caller (hold an id of the attempt), and
        the caller then knows its own by reading it back.
        """
        ...

    def leftovers(self) -> list[str]:
        """What killed writers left and no key is, sorted; `delete` takes these names too.

        A writer that is at work this moment may own one of them: look at `modified` first.
        """
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys below `prefix`, sorted; empty where there are none."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens where it is not there."""
        ...
