"""Publishing, finding and reading artifacts: whole or absent, verified at every read."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from batchtrain.artifacts.manifest import FileEntry, Manifest, canonical_json
from batchtrain.errors import (
    ArtifactDamagedError,
    ArtifactError,
    ArtifactMissingError,
    StorageError,
)
from batchtrain.points import passed
from batchtrain.spec.base import fingerprint_of
from batchtrain.storage import Storage

__all__ = [
    "Artifact",
    "ArtifactKind",
    "BuildStatus",
    "Draft",
    "find_artifact",
    "open_artifact",
    "remove_artifacts",
    "reuse_or_build",
]

MANIFEST = "manifest.json"

BuildStatus = Literal["built", "reused", "resumed"]


@dataclass(frozen=True)
class ArtifactKind:
    """A kind of artifact and the version of its format."""

    name: str
    format: int


@dataclass(frozen=True)
class Artifact:
    """A published artifact: the manifest, and the files that it names.

    Attributes:
        storage: Where it lies.
        key: The folder of its manifest, below the storage's root.
        manifest: What it is.
    """

    storage: Storage
    key: str
    manifest: Manifest

    @property
    def url(self) -> str:
        """Where a person finds the artifact."""
        return self.storage.url(self.key)

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against the manifest.

        Raises:
            ArtifactDamagedError: If the file is not listed, is gone, or has other bytes.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise ArtifactDamagedError(
                f"expected a file {name!r} in {self.url}, found {sorted(self.manifest.files)}"
            )
        try:
            data = self.storage.read(f"{self.key}/{entry.path}")
        except FileNotFoundError as error:
            raise self._damaged(name, "found no such file") from error
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise self._damaged(name, f"found other bytes ({len(data)} of {entry.size})")
        return data

    def read_json(self, name: str) -> Any:
        """One JSON file, checked against the manifest."""
        return json.loads(self.read(name))

    def file_url(self, name: str) -> str:
        """Where a person finds one file."""
        return self.storage.url(f"{self.key}/{self.manifest.files[name].path}")

    def verify(self) -> int:
        """Read every file against the manifest and return how many there are."""
        for name in self.manifest.files:
            self.read(name)
        return len(self.manifest.files)

    def _damaged(self, name: str, found: str) -> ArtifactDamagedError:
        return ArtifactDamagedError(
            f"expected {name!r} as listed in {self.url}/{MANIFEST}, {found}. "
            "The artifact is damaged: delete its folder and run the command again, "
            "or copy it anew from where it was made"
        )


class Draft:
    """An artifact in the making; its files are on storage, but nobody can see them yet."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self.key = key
        # Two writers of one name must never share a file, so each writes below its own id.
        self._attempt = uuid.uuid4().hex[:12]
        self.files: dict[str, FileEntry] = {}

    def add(self, name: str, data: bytes) -> None:
        """Write one file."""
        entry = FileEntry.of(f"files/{self._attempt}/{name}", data)
        # Listed first: what an interrupted write may have left is then discarded with the rest.
        self.files[name] = entry
        self._storage.write(f"{self.key}/{entry.path}", data)

    def add_json(self, name: str, value: Any) -> None:
        """Write one JSON file in the canonical spelling."""
        self.add(name, canonical_json(value))

    def discard(self) -> None:
        """Remove what was written, as far as storage lets us."""
        for entry in self.files.values():
            with suppress(Exception):
                self._storage.delete(f"{self.key}/{entry.path}")


def open_artifact(storage: Storage, key: str, kind: ArtifactKind) -> Artifact:
    """Open a published artifact.

    Raises:
        ArtifactMissingError: If nothing is published under `key`.
        ArtifactError: If what is there is of another kind or format, or damaged.
    """
    where = f"{storage.url(key)}/{MANIFEST}"
    try:
        data = storage.read(f"{key}/{MANIFEST}")
    except FileNotFoundError as error:
        raise ArtifactMissingError(
            f"expected an artifact of kind {kind.name!r}, found no {where}. "
            "Check the path, or run the command that makes it"
        ) from error
    manifest = Manifest.from_bytes(data, kind=kind.name, format=kind.format, where=where)
    return Artifact(storage=storage, key=key, manifest=manifest)


def find_artifact(storage: Storage, key: str, kind: ArtifactKind) -> Artifact | None:
    """Open a published artifact, or None where there is none.

    The files' sizes are checked, so that an artifact with a missing or cut file is not reused;
    their bytes are checked when they are read.
    """
    try:
        artifact = open_artifact(storage, key, kind)
    except ArtifactMissingError:
        return None
    for name, entry in artifact.manifest.files.items():
        found = storage.size(f"{key}/{entry.path}")
        if found != entry.size:
            raise ArtifactDamagedError(
                f"expected {entry.size} bytes of {name!r} in {artifact.url}, found "
                f"{'no file' if found is None else f'{found} bytes'}. "
                "Delete that folder and run the command again"
            )
    return artifact


def reuse_or_build(
    storage: Storage,
    key: str,
    kind: ArtifactKind,
    *,
    inputs: Mapping[str, Any],
    build: Callable[[Draft], Mapping[str, Any]],
    check: Callable[[], None] = lambda: None,
) -> tuple[Artifact, BuildStatus]:
    """Return the artifact for `inputs`, making it only if nobody has published it yet.

    The manifest is created last and exclusively: a reader that finds it finds everything, and
    of two writers at once one wins and the other returns the winner's artifact. What a build
    wrote before it failed is removed.

    Args:
        storage: Where to publish.
        key: The artifact's folder.
        kind: Its kind and format.
        inputs: What it depends on, as JSON; the fingerprint is the hash of this.
        build: Writes the files into the draft and returns the manifest's `content`.
        check: Called right before publishing; what it raises is raised, and nothing is published.
    """
    fingerprint = fingerprint_of(inputs)
    found = find_artifact(storage, key, kind)
    if found is not None:
        return _checked(found, fingerprint), "reused"
    draft = Draft(storage, key)
    manifest = b""
    try:
        content = build(draft)
        manifest = Manifest(
            kind=kind.name,
            format=kind.format,
            fingerprint=fingerprint,
            inputs=inputs,
            content=content,
            files=draft.files,
        ).to_bytes()
        check()
        passed("artifact.files")
        storage.create(f"{key}/{MANIFEST}", manifest)
        passed("artifact.published")
    except BaseException:
        # It may have come after the manifest was there. In doubt the files stay: an orphan costs
        # space, a published artifact without its files costs the artifact.
        with suppress(StorageError):
            if not _is_published(storage, key, manifest):
                draft.discard()
        raise
    # Who won is read back, not taken from the call: a reply can be lost on the way.
    won = _is_published(storage, key, manifest)
    if not won:
        draft.discard()
    artifact = _checked(open_artifact(storage, key, kind), fingerprint)
    return artifact, "built" if won else "reused"


def remove_artifacts(storage: Storage, folder: str) -> None:
    """Delete all artifacts below a folder.

    The manifests go first, so that no reader ever takes a part for a whole.
    """
    keys = storage.list(folder)
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        passed("artifact.deleting")
        storage.delete(key)


def _is_published(storage: Storage, key: str, manifest: bytes) -> bool:
    """Whether the manifest under `key` is this one; its paths hold the attempt's own id."""
    try:
        return storage.read(f"{key}/{MANIFEST}") == manifest
    except FileNotFoundError:
        return False


def _checked(artifact: Artifact, fingerprint: str) -> Artifact:
    if artifact.manifest.fingerprint != fingerprint:
        raise ArtifactError(
            f"expected fingerprint {fingerprint} in {artifact.url}, "
            f"found {artifact.manifest.fingerprint}. Use another storage or name"
        )
    return artifact
