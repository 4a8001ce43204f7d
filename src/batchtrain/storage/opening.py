"""Open the storage that a spec names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batchtrain.errors import StorageError
from batchtrain.storage.base import Storage
from batchtrain.storage.folder import FolderStorage
from batchtrain.storage.probe import ProbedStorage
from batchtrain.storage.retrying import RetryingStorage

__all__ = ["is_address", "local_folder", "locate", "open_storage", "retried_calls"]

BEFORE_FOLDER = 2
"""The slashes before the last folder of an address, at the least: s3://bucket."""


def open_storage(text: str, base: Path) -> Storage:
    """Open a folder or an object store, with retries and a probe before the first write.

    Nothing is touched before the first operation, so that a run which only reuses works on a
    storage that it may not write to.

    Args:
        text: As `storage` of a spec: a folder, or an address such as `s3://bucket/runs`.
        base: The folder that a relative one starts from.

    Raises:
        StorageError: If it can be no storage.
    """
    return ProbedStorage(_plain(text, base))


def locate(place: str | Path) -> tuple[Storage, str]:
    """The storage, for reading, and the key of a folder that lies anywhere.

    Args:
        place: A path, or an address such as `s3://bucket/models/drug200`.

    Raises:
        StorageError: If the address has no folder in it, or is wrong.
    """
    if isinstance(place, str) and is_address(place):
        parent, _, name = place.rstrip("/").rpartition("/")
        if parent.count("/") < BEFORE_FOLDER:
            raise StorageError(
                "expected the address of a folder in a bucket, such as s3://bucket/folder, found "
                "one without a folder. Add the folder's name"
            )
        return RetryingStorage(_plain(parent, Path())), name
    folder = Path(place).absolute()
    return RetryingStorage(FolderStorage(folder.parent)), folder.name


def is_address(text: str) -> bool:
    """Whether a text is meant as the address of an object store, not as a path."""
    return "://" in text


def local_folder(storage: Storage) -> Path | None:
    """The folder that a storage keeps its keys in as files; None where it has none."""
    for layer in _layers(storage):
        if isinstance(layer, FolderStorage):
            return layer.root
    return None


def retried_calls(storage: Storage) -> int:
    """How many calls to a storage were made again so far, because they had failed."""
    return sum(layer.retried for layer in _layers(storage) if isinstance(layer, RetryingStorage))


def _layers(storage: Storage) -> Iterator[Storage]:
    """A storage, the one that it wraps, and so on."""
    layer: Storage | None = storage
    while layer is not None:
        yield layer
        layer = getattr(layer, "inner", None)


def _plain(text: str, base: Path) -> Storage:
    """A folder or an object store, as it is."""
    if is_address(text):
        # Late, since most runs use a folder and never need the library of object stores.
        from batchtrain.storage.objects import ObjectStorage

        return ObjectStorage(text)
    root = base / Path(text).expanduser()
    if root.exists() and not root.is_dir():
        raise StorageError(
            f"storage: expected a folder, found the file {root}. Choose another `storage`"
        )
    return FolderStorage(root.resolve())
