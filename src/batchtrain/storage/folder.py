"""A storage in a folder of a file system, local or shared."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchtrain.errors import StorageError

__all__ = ["FolderStorage"]


class FolderStorage:
    """Keys are files below `root`; a new key appears by a rename or a hard link, so whole.

    Exclusive creation is a hard link from a finished temporary file, which every POSIX file
    system and NFS give in one step.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, key: str = "") -> str:
        """The path of `key`."""
        return str(self._path(key) if key else self.root)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        with _explained(self.url(key)):
            return self._path(key).read_bytes()

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        with _explained(self.url(key)):
            try:
                return self._path(key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        path = self._path(key)
        with _explained(self.url(key)), _finished_beside(path, data) as temporary:
            temporary.replace(path)
            _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        path = self._path(key)
        with _explained(self.url(key)), _finished_beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS the reply to a link that was made can be lost and the link tried again.
                return path.samefile(temporary)
            _sync_folder(path.parent)
            return True

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        folder = self._path(prefix) if prefix else self.root
        with _explained(str(folder)):
            found = [path for path in folder.rglob("*") if path.is_file()]
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in found
            if not path.name.startswith(_TEMPORARY)
        )

    def delete(self, key: str) -> None:
        """See `Storage.delete`; folders that this leaves empty go too."""
        path = self._path(key)
        with _explained(self.url(key)):
            path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.root:
                break
            with suppress(OSError):
                folder.rmdir()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
            raise StorageError(
                f"expected a relative key without empty, '.' or '..' parts, found {key!r}"
            )
        return self.root.joinpath(*parts)


_TEMPORARY = ".writing-"


@contextmanager
def _finished_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file in the folder of `path` that holds `data` on disk already."""
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with _opened_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _opened_new(path: Path) -> BinaryIO:
    """Make a file, and its folder anew should another process delete it in between as empty."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open("xb")
    raise StorageError(
        f"expected the folder {path.parent} to stay, found it deleted again and again. "
        "Let no one clean this storage while a run writes to it"
    )


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file system that cannot is left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what the operating system refuses into a `StorageError` that names the place."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"storage refused {where}: {error.strerror or error}. "
            "Check that the folder exists, has space, and may be written by this user"
        ) from error
