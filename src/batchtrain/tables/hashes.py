"""The content of an input as hashes, so that equal rows are recognised whatever their dates."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import pyarrow as pa

from batchtrain.tables.samples import GENERATOR_VERSION
from batchtrain.tables.source import Source, SourceFile, opened

__all__ = ["HashCache", "content_hashes", "hash_file"]

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


HashFiles: TypeAlias = Callable[[Sequence[SourceFile]], Iterable[tuple[pa.Table, ...]]]
"""What gives `hash_file` of each file, in their order; other processes may do the work."""


def content_hashes(
    source: Source, cache: HashCache | None = None, *, hash_files: HashFiles | None = None
) -> tuple[tuple[str, str], ...]:
    """The name and sha256 of every file, in the order of the rows.

    A sample's hash is that of its name and the version of its generator.

    Args:
        source: The files.
        cache: Knows files that were hashed before.
        hash_files: Hashes the others; left out, this process does it.

    Raises:
        DataError: If a file has changed since the source was opened.
    """
    if source.hashes:
        return source.hashes
    if source.kind == "sample":
        text = f"sample:{source.sample} generator {GENERATOR_VERSION}"
        return ((source.sample, hashlib.sha256(text.encode()).hexdigest()),)
    keys = {file.name: _key(file) for file in source.files}
    known = {} if cache is None else {name: cache.get(key) for name, key in keys.items()}
    unknown = [file for file in source.files if not known.get(file.name)]
    found = hash_files(unknown) if hash_files else map(hash_file, unknown)
    for file, (table,) in zip(unknown, found, strict=True):
        sha256 = str(table["sha256"][0].as_py())
        known[file.name] = sha256
        if cache is not None and time.time_ns() - file.mtime_ns > SETTLED_NS:
            cache.put(keys[file.name], sha256)
    return tuple((file.name, known[file.name] or "") for file in source.files)


def hash_file(file: SourceFile) -> tuple[pa.Table]:
    """The sha256 of one file, as a table of one cell.

    Raises:
        DataError: If the file has changed since the source was opened.
    """
    with opened(file) as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return (pa.table({"sha256": [sha256]}),)


def _key(file: SourceFile) -> str:
    return f"{file.path.resolve()}|{file.size}|{file.mtime_ns}|{file.inode}"
