"""A storage in a folder of a file system, local or shared."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.points import passed
from batchtrain.storage.base import check_key

__all__ = ["FolderStorage"]

TEMPORARY = ".writing-"
TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{32}")

MAY_PASS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR),
        *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN),
        *(errno.EHOSTUNREACH, errno.ENOTCONN, errno.ESHUTDOWN, errno.ENOLINK, errno.ENOBUFS),
        # Linux has one more; nothing else does.
        getattr(errno, "EREMOTEIO", errno.EIO),
    }
)
"""Errors that a disk or a file server gives for a while, such as during its restart."""

NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
)
"""What a file system answers that cannot make the names of a folder durable one by one."""

ADVICE = {
    errno.ENOSPC: "Free some space, or choose another `storage`; nothing was deleted to make room",
    errno.EDQUOT: "Free some space, or raise the quota; nothing was deleted to make room",
    errno.EROFS: "Mount it for writing, or choose another `storage`",
    errno.EACCES: "Check that this user may read and write there",
    errno.EPERM: "Check that this user may read and write there, and that it allows hard links",
    errno.ENAMETOOLONG: "Choose a shorter `name` or a `storage` with a shorter path",
    errno.ENOTDIR: "Check that no file lies where a folder must be",
    errno.EISDIR: "Check that no folder lies where a file must be",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}
ADVICE_IN_GENERAL = "Check that the folder exists, has space, and may be written by this user"


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
        path = self._path(key)
        with _explained(str(path)):
            passed("storage.read")
            try:
                return path.read_bytes()
            except (IsADirectoryError, NotADirectoryError) as error:
                # A folder has no bytes, and nothing lies below a file: as on an object store.
                raise FileNotFoundError(*error.args, str(path)) from error

    def size(self, key: str) -> int | None:
        """See `Storage.size`."""
        found = self._status(key)
        return None if found is None else found.st_size

    def modified(self, key: str) -> float | None:
        """See `Storage.modified`."""
        found = self._status(key)
        return None if found is None else found.st_mtime

    def write(self, key: str, data: bytes) -> None:
        """See `Storage.write`."""
        path = self._path(key)
        with self._writing(path, data) as temporary:
            temporary.replace(path)
            passed("storage.renamed")
            _sync_folder(path.parent)
        passed("storage.done")

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        path = self._path(key)
        with self._writing(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS the reply to a link that was made can be lost and the link tried again.
                if not path.samefile(temporary):
                    return False
            passed("storage.linked")
            _sync_folder(path.parent)
        passed("storage.done")
        return True

    def leftovers(self) -> list[str]:
        """See `Storage.leftovers`: the temporary files."""
        return _names_below(self.root, self.root, temporary=True)

    def list(self, prefix: str) -> list[str]:
        """See `Storage.list`."""
        folder = self._path(prefix) if prefix else self.root
        return _names_below(folder, self.root, temporary=False)

    def delete(self, key: str) -> None:
        """See `Storage.delete`; folders that this leaves empty go too."""
        path = self._path(key)
        with _explained(str(path)), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        self._prune(path)

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root.joinpath(*key.split("/"))

    def _status(self, key: str) -> os.stat_result | None:
        """What the file system says of a file; None where there is none."""
        path = self._path(key)
        with _explained(str(path)), suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat()
            if stat.S_ISREG(found.st_mode):
                return found
        return None

    @contextmanager
    def _writing(self, path: Path, data: bytes) -> Iterator[Path]:
        """A temporary file beside `path` that holds `data` on disk already; it goes at the end.

        A write that fails takes away what it made, folders too, and nothing else.
        """
        try:
            with _explained(str(path), must_exist=False), _finished_beside(path, data) as temporary:
                yield temporary
        except BaseException:
            self._prune(path)
            raise

    def _prune(self, path: Path) -> None:
        """Remove the folders of `path` that are empty, up to the root; that is no error ever."""
        for folder in path.parents:
            if folder == self.root or self.root not in folder.parents:
                break
            with suppress(OSError):
                folder.rmdir()


def _names_below(folder: Path, root: Path, *, temporary: bool) -> list[str]:
    """The temporary files below a folder, or all others, as keys below the root."""
    with _explained(str(folder)):
        found = [
            entry.path
            for entry in _files_below(folder)
            if bool(TEMPORARY_NAME.fullmatch(entry.name)) == temporary
        ]
    return sorted(Path(path).relative_to(root).as_posix() for path in found)


def _files_below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Every file at any depth; a folder that goes away meanwhile has none."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        elif entry.is_file():
            yield entry


@contextmanager
def _finished_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file in the folder of `path` that holds `data` on disk already."""
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with _opened_new(temporary) as file:
            passed("storage.opened")
            view, half = memoryview(data), len(data) // 2
            _write_all(file, view[:half])
            passed("storage.half")
            _write_all(file, view[half:])
            passed("storage.written")
            os.fsync(file.fileno())
        passed("storage.synced")
        yield temporary
    finally:
        # What stays is found by `leftovers`; the error that led here says more than a second one.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_all(file: BinaryIO, view: memoryview) -> None:
    """Write every byte; one call of the operating system may take fewer."""
    while view:
        view = view[file.write(view) :]


def _opened_new(path: Path) -> BinaryIO:
    """Make a file, and its folder anew should another process delete it in between as empty."""
    for _ in range(100):
        _make_folder(path.parent)
        with suppress(FileNotFoundError):
            # Without a buffer: what a write did not say, a close cannot say either.
            return path.open("xb", buffering=0)
    raise StorageError(
        f"expected the folder {path.parent} to stay, found it deleted again and again. "
        "Let no one clean this storage while a run writes to it"
    )


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each with a durable name."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileNotFoundError):  # the one above was pruned meanwhile: the caller goes again
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file system that cannot is left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


@contextmanager
def _explained(where: str, *, must_exist: bool = True) -> Iterator[None]:
    """Turn what the operating system refuses into a `StorageError` that names the place.

    Args:
        where: The path that the operation is about.
        must_exist: Whether a missing file is the caller's affair; else it is an error like others.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and must_exist:
            raise
        kind = StorageUnavailableError if error.errno in MAY_PASS else StorageError
        advice = ADVICE.get(error.errno or 0, ADVICE_IN_GENERAL)
        raise kind(f"storage refused {where}: {error.strerror or error}. {advice}") from error
