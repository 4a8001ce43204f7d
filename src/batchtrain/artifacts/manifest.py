"""The manifest of an artifact: what it is, what it was made from, and every file with its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from batchtrain.errors import ArtifactDamagedError, ArtifactError
from batchtrain.spec.base import fingerprint_of

__all__ = ["FileEntry", "Manifest", "canonical_json"]


def canonical_json(value: Any) -> bytes:
    """JSON in one spelling: keys as given, two spaces, UTF-8, a final newline; no NaN.

    The order of keys is kept, since columns and metrics have one that people chose.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact.

    Attributes:
        path: The key below the artifact's folder where the bytes lie.
        size: Bytes.
        sha256: 64 hex digits.
    """

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, data: bytes) -> FileEntry:
        """Describe `data`, to be written to `path`."""
        return cls(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What a published artifact is. It holds nothing of the moment: no time, no host.

    Attributes:
        kind: Such as `prepared_data`.
        format: The version of the kind's format.
        fingerprint: The hash of `inputs`; equal inputs make an equal artifact.
        inputs: What the artifact was made from, as JSON.
        content: What a reader needs to know before it opens a file, as JSON.
        files: Name to entry.
    """

    kind: str
    format: int
    fingerprint: str
    inputs: Mapping[str, Any]
    content: Mapping[str, Any]
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The hash of what the artifact holds, wherever its files happen to lie."""
        return fingerprint_of(
            {
                "kind": self.kind,
                "format": self.format,
                "content": self.content,
                "files": {name: entry.sha256 for name, entry in self.files.items()},
            }
        )

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.json`, with a hash of all the rest of it."""
        document = {
            "kind": self.kind,
            "format": self.format,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "content": self.content,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }
        return canonical_json({**document, "sha256": _seal(document)})

    @classmethod
    def from_bytes(cls, data: bytes, *, kind: str, format: int, where: str) -> Manifest:
        """Read `manifest.json`.

        Raises:
            ArtifactDamagedError: If it is not a whole manifest.
            ArtifactError: If it is of another kind or another format version.
        """
        try:
            document = _unsealed(json.loads(data))
            manifest = cls(
                kind=str(document["kind"]),
                format=int(document["format"]),
                fingerprint=str(document["fingerprint"]),
                inputs=dict(document["inputs"]),
                content=dict(document["content"]),
                files={
                    str(name): FileEntry(
                        path=str(entry["path"]),
                        size=int(entry["size"]),
                        sha256=str(entry["sha256"]),
                    )
                    for name, entry in document["files"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactDamagedError(
                f"expected a manifest, found something else in {where} ({error!r}). "
                "Delete that folder and run the command again"
            ) from error
        if manifest.kind != kind:
            raise ArtifactError(
                f"expected an artifact of kind {kind!r}, found {manifest.kind!r} in {where}. "
                "Pass the folder of the other artifact"
            )
        if manifest.format != format:
            raise ArtifactError(
                f"expected format {format} of {kind!r}, found {manifest.format} in {where}. "
                "Use the batchtrain version that wrote it, or make it anew"
            )
        return manifest


def _unsealed(sealed: dict[str, Any]) -> dict[str, Any]:
    """The document without its hash; raises `ValueError` if the hash is another's."""
    document = dict(sealed)
    if document.pop("sha256") != _seal(document):
        raise ValueError("its own hash is another")
    return document


def _seal(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
