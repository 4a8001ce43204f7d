"""What killed attempts left on a storage and nobody will ever read."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.layout import ARTIFACT_FOLDER
from batchtrain.artifacts.manifest import Manifest
from batchtrain.errors import ArtifactDamagedError, ArtifactError, StorageError
from batchtrain.storage import Storage

__all__ = ["Garbage", "delete_garbage", "find_garbage", "storage_time"]

# Nothing else is touched: somebody may point at a folder that holds more than runs.
ATTEMPT_FILE = re.compile(rf"(?P<artifact>{ARTIFACT_FOLDER})/files/(?P<attempt>[0-9a-f]{{12}})/.+")
PROBES = "_probe"


@dataclass(frozen=True)
class Garbage:
    """One file that nobody will read.

    Attributes:
        key: Where it lies.
        size: Its bytes.
        why: What it is, as half a sentence.
        artifact: The folder of the artifact that it was written for; empty for other files.
        is_kept: Whether it stays all the same, since the manifest that could name it cannot be
            read.
    """

    key: str
    size: int
    why: str
    artifact: str = ""
    is_kept: bool = False


def find_garbage(storage: Storage, *, older_than_seconds: float, now: float) -> list[Garbage]:
    """What may be deleted, and what looks like it but is kept; sorted by key.

    It is: a file below `files/<attempt id>/` that the manifest beside `files` does not name, a
    temporary file of a writer that was killed, and what a killed probe left. Nothing else is
    ever given. An attempt in progress has no manifest yet, so it is as old as its newest file.

    Args:
        storage: Where to look.
        older_than_seconds: What was written since then stays.
        now: The time in seconds since 1970, by the storage's clock; see `storage_time`.

    Raises:
        StorageError: If the storage refuses to be read.
    """
    limit = now - older_than_seconds
    found: list[Garbage] = []
    for artifact, keys in _attempts(storage.list("")):
        found += _of_attempt(storage, artifact, keys, limit)
    others = dict.fromkeys(storage.leftovers(), "a temporary file of a writer that was killed")
    others |= dict.fromkeys(storage.list(PROBES), "left by a probe that was killed")
    for key, why in others.items():
        modified = storage.modified(key)
        if modified is not None and modified <= limit:
            found.append(Garbage(key, storage.size(key) or 0, why))
    return sorted(found, key=lambda each: each.key)


def delete_garbage(storage: Storage, found: Iterable[Garbage]) -> list[Garbage]:
    """Delete what was found, but for what is kept, and return what was deleted.

    The manifest of each artifact is read again right before: what it names by now stays.

    Raises:
        StorageError: If the storage refuses; what was deleted before stays deleted.
    """
    deleted = []
    for artifact, group in groupby(found, key=lambda each: each.artifact):
        try:
            named = _named(storage, artifact) if artifact else set()
        except (ArtifactError, StorageError):
            continue
        for each in group:
            if not each.is_kept and each.key not in named:
                storage.delete(each.key)
                deleted.append(each)
    return deleted


def storage_time(storage: Storage) -> float | None:
    """The time by the storage's own clock, in seconds since 1970; writes and deletes a file.

    Raises:
        StorageError: If the storage may not be written.
    """
    key = f"{PROBES}/{uuid.uuid4().hex}"
    try:
        storage.write(key, b"")
        return storage.modified(key)
    finally:
        with suppress(StorageError):
            storage.delete(key)


def _attempts(keys: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The files of each attempt, and the artifact that it was for."""
    attempts: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        if match := ATTEMPT_FILE.fullmatch(key):
            attempts.setdefault((match["artifact"], match["attempt"]), []).append(key)
    return [(artifact, files) for (artifact, _attempt), files in attempts.items()]


def _of_attempt(
    storage: Storage, artifact: str, keys: Sequence[str], limit: float
) -> list[Garbage]:
    """Those of an attempt's files that are garbage."""
    is_kept, why = False, "its attempt was never published"
    try:
        named = _named(storage, artifact)
        if named:
            why = "the published artifact does not name it"
    except (ArtifactError, StorageError) as error:
        named, is_kept = set(), True
        why = f"kept, since the manifest that could name it cannot be read: {error}"
    unnamed = [key for key in keys if key not in named]
    modified = [storage.modified(key) for key in unnamed]
    if max((each for each in modified if each is not None), default=limit) > limit:
        return []
    return [
        Garbage(key, storage.size(key) or 0, why, artifact, is_kept)
        for key, each in zip(unnamed, modified, strict=True)
        if each is not None
    ]


def _named(storage: Storage, artifact: str) -> set[str]:
    """The keys that an artifact's manifest names; none where it is not published.

    Raises:
        ArtifactError: If it is not a whole manifest of a format that is known here.
        StorageError: If it cannot be read.
    """
    key = f"{artifact}/{MANIFEST}"
    where = storage.url(key)
    try:
        data = storage.read(key)
        document = json.loads(data)
        kind, format = str(document["kind"]), int(document["format"])
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactDamagedError(
            f"expected a manifest, found something else in {where} ({error!r}). Delete the folder "
            f"{storage.url(artifact)} and run the command that makes it again"
        ) from error
    manifest = Manifest.from_bytes(data, kind=kind, format=format, where=where)
    return {f"{artifact}/{entry.path}" for entry in manifest.files.values()}
