"""What batchtrain asks of a storage, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Storage"]


class Storage(Protocol):
    """A tree of named byte strings below one root.

    A key is a relative path with forward slashes, without empty, `.` or `..` parts. An
    implementer raises `StorageError` for everything that the underlying system refuses,
    and `FileNotFoundError` where a key that must exist does not.
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

    def write(self, key: str, data: bytes) -> None:
        """Put `data` under `key`, whole and durable when this returns.

        A reader of `key` meanwhile sees the old bytes or the new ones, never a part.
        """
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` under `key` only if nothing is there; False if something is.

        Of any number of callers at once exactly one gets True, and what a reader finds is
        that caller's data, whole.
        """
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys below `prefix`, sorted; empty where there are none."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens where it is not there."""
        ...
