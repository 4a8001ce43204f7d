"""The content of an input as hashes, so that equal rows are recognised whatever their dates."""

from __future__ import annotations

import hashlib
import time
from typing import Protocol

from batchtrain.tables.samples import GENERATOR_VERSION
from batchtrain.tables.source import Source, SourceFile, opened

__all__ = ["HashCache", "content_hashes"]

SETTLED_NS = 2_000_000_000
"""A file younger than this may change again within one tick of its time stamp."""


class HashCache(Protocol):
    """Remembers hashes of files that have not changed. It may forget, but must not invent."""

    def get(self, key: str) -> str | None:
        """The hash that was put under `key`, or None."""
        ...

    def put(self, key: str, sha256: str) -> None:
        """Remember a hash; the key holds path, size, time and inode."""
        ...


def content_hashes(source: Source, cache: HashCache | None = None) -> tuple[tuple[str, str], ...]:
    """The name and sha256 of every file, in the order of the rows.

    A sample's hash is that of its name and the version of its generator.

    Raises:
        DataError: If a file has changed since the source was opened.
    """
    if source.kind == "sample":
        text = f"sample:{source.sample} generator {GENERATOR_VERSION}"
        return ((source.sample, hashlib.sha256(text.encode()).hexdigest()),)
    return tuple((file.name, _file_hash(file, cache)) for file in source.files)


def _file_hash(file: SourceFile, cache: HashCache | None) -> str:
    key = f"{file.path.resolve()}|{file.size}|{file.mtime_ns}|{file.inode}"
    known = None if cache is None else cache.get(key)
    if known:
        return known
    with opened(file) as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    if cache is not None and time.time_ns() - file.mtime_ns > SETTLED_NS:
        cache.put(key, sha256)
    return sha256
