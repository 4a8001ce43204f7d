"""The input of a run as a value: which files it is, in which order, as they were when it opened."""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from io import BufferedReader
from pathlib import Path

from batchtrain.errors import DataError, NoRowsError
from batchtrain.tables.discovery import LOCAL, Discovery, discover
from batchtrain.tables.formats import FORMATS, SourceKind, format_of
from batchtrain.tables.hugging_face import discover_hugging_face, is_hugging_face
from batchtrain.tables.samples import canonical_sample_name

__all__ = [
    "Source",
    "SourceFile",
    "SourceKind",
    "no_rows",
    "num_files",
    "open_source",
    "opened",
    "require_unchanged",
    "where_of",
]

SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class SourceFile:
    """One file, and what tells whether it is still the same.

    Attributes:
        path: Where it is.
        name: Its URI relative to the folder of the source; with it the file's place in the order.
        size: In bytes.
        mtime_ns: Time of its last change, nanoseconds.
        inode: Number of the file in its file system.
        machine: Where it was seen so; elsewhere a file of this path is its copy.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int
    inode: int
    machine: str = ""


@dataclass(frozen=True)
class Source:
    """The rows of a table: files in the order of their names, or a built-in sample.

    The concatenation of the files in this order numbers the rows: `row_id` counts from 0.

    Attributes:
        text: As it was written in the spec.
        kind: The format of all files.
        files: Sorted by the UTF-8 bytes of their names, or in the order that their folder gives,
            or split after split; empty for a sample.
        null_values: The CSV cells and JSON values that mean "missing".
        skipped: Entries of a folder or glob that a rule leaves out.
        sample: The sample's name; empty for files.
        splits: The split of each file, where the source has splits of its own; else empty.
        hashes: What stands for its content, where that is known: name and sha256 of the rows of a
            class of the user's, which are in these files for a while; else empty.
        for_bundle: Whether a bundle predicts on the rows, whose types nobody can change any more.
    """

    text: str
    kind: SourceKind
    files: tuple[SourceFile, ...]
    null_values: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    sample: str = ""
    splits: tuple[str, ...] = ()
    hashes: tuple[tuple[str, str], ...] = ()
    for_bundle: bool = False


def open_source(source: str, *, base: Path, null_values: Sequence[str]) -> Source:
    """Find the files of a source and note what they are now; nothing is read yet.

    Args:
        source: A file (see `formats.FORMATS`), a glob, a folder, `hf:./FOLDER`,
            `hf:NAME@REVISION`, or `sample:NAME`.
        base: The folder that a relative source starts from.
        null_values: The CSV cells and JSON values that mean "missing", without spaces around.

    Raises:
        DataError: If nothing is found, formats are mixed, or the sample is unknown.
        UnsafeInputError: If a link or special file makes the input unsafe.
    """
    nulls = tuple(null_values)
    if source.startswith("sample:"):
        name = canonical_sample_name(source.removeprefix("sample:"))
        return Source(source, "sample", (), null_values=nulls, sample=name)
    if source.startswith("custom:"):
        raise DataError(
            f"source {source!r}: expected files here, found a class of yours, which only the "
            "`data` section of a run may name. Write its rows to a Parquet file and name that"
        )
    if REMOTE.match(source):
        raise DataError(
            f"source {source!r}: expected a local file, glob or folder, `hf:NAME@REVISION` or "
            "`sample:NAME`; reading from other places is not built yet. Copy the files to this "
            "machine first"
        )
    find = discover_hugging_face if is_hugging_face(source) else discover
    found = find(source, base)
    return Source(
        text=source,
        kind=_format(source, found),
        files=tuple(_described(name, path) for name, path in found.files.items()),
        null_values=nulls,
        skipped=found.skipped,
        splits=found.splits,
    )


@contextmanager
def opened(file: SourceFile) -> Iterator[BufferedReader]:
    """Open a file for reading, and hold it against what it was when the source was opened.

    The check runs before the first byte is used and again after the last, so that rows of two
    versions of a file are never mixed without an error. On another machine than the one that
    opened the source the file may be a copy: it must have the same size, and not change meanwhile.

    Raises:
        DataError: If the file has changed, is gone, or may not be read.
    """
    try:
        # Should a FIFO have taken its place, opening must not wait for a writer.
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"{file.path}: expected the file of {file.size} bytes that was there when the run "
            f"looked first, found: {error.strerror}. Put it back and make it readable, then "
            "start again"
        ) from error
    with os.fdopen(descriptor, "rb") as handle:
        file = _as_seen_here(file, os.fstat(descriptor))
        _require_unchanged(file, os.fstat(descriptor))
        try:
            yield handle
        except DataError:
            # A file that changed while it was read looks damaged; say what really happened.
            _require_unchanged(file, os.fstat(descriptor))
            raise
        _require_unchanged(file, os.fstat(descriptor))
        _require_unchanged(file, _stat(file.path))


def num_files(source: Source) -> int:
    """How many places rows come from; a sample is one."""
    return 1 if source.kind == "sample" else len(source.files)


def where_of(source: Source, place: int) -> str:
    """One of these places, for messages."""
    if source.hashes:
        return f"source {source.text!r}"
    return f"sample:{source.sample}" if source.kind == "sample" else str(source.files[place].path)


def no_rows(source: Source) -> NoRowsError:
    """The error for a source without any row."""
    return NoRowsError(f"source {source.text!r}: expected rows, found none. Use other files")


def require_unchanged(file: SourceFile) -> None:
    """Hold a file against what it was when the source was opened; nothing is read.

    Raises:
        DataError: If it has changed or is gone.
    """
    now = _stat(file.path)
    _require_unchanged(_as_seen_here(file, now), now)


@cache
def this_machine() -> str:
    """What tells apart the places from which a path may lead to another file."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/mnt').readlink()}"
    return platform.node()


def _as_seen_here(file: SourceFile, now: os.stat_result | None) -> SourceFile:
    """What a file must be on this machine: a copy has a time and a number of its own."""
    if now is None or file.machine == this_machine():
        return file
    return replace(file, mtime_ns=now.st_mtime_ns, inode=now.st_ino)


def _require_unchanged(file: SourceFile, now: os.stat_result | None) -> None:
    found = (now.st_size, now.st_mtime_ns, now.st_ino) if now else None
    if found == (file.size, file.mtime_ns, file.inode) and now and stat.S_ISREG(now.st_mode):
        return
    what = f"{now.st_size} bytes or another time or inode" if now else "no file"
    raise DataError(
        f"{file.path}: expected the file as the run saw it first ({file.size} bytes), found "
        f"{what}: it changed in between. Let no one write to the input during a run, then "
        "start again"
    )


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _described(name: str, path: Path) -> SourceFile:
    now = path.stat()
    return SourceFile(path, name, now.st_size, now.st_mtime_ns, now.st_ino, this_machine())


def _explicit(path: str) -> str:
    """A path that begins as one after `hf:` must."""
    return path if path.startswith(LOCAL) else f"./{path}"


def _format(source: str, found: Discovery) -> SourceKind:
    """The one format of all files, by the ends of their names."""
    formats: dict[SourceKind, str] = {}
    for name in found.files:
        kind = format_of(name)
        if kind is None:
            hint = "Rename it, remove it, or name the files by a glob such as '*.csv'"
            if name.lower().endswith(SPREADSHEETS):
                hint = "A spreadsheet is not read: save it as CSV (in UTF-8) or as Parquet"
            if {"state.json", "dataset_dict.json"} & {each.split("/")[-1] for each in found.files}:
                hint = (
                    f"A folder that the datasets library saved is named as `hf:{_explicit(source)}`"
                )
            raise DataError(
                f"source {source!r}: expected files that end in {', '.join(FORMATS)}, found "
                f"{name!r}. {hint}"
            )
        formats.setdefault(kind, name)
    if len(formats) > 1:
        pair = " and ".join(repr(name) for name in formats.values())
        raise DataError(
            f"source {source!r}: expected files of one format, found {' and '.join(formats)}, "
            f"such as {pair}. Name the files by a glob such as '*.parquet'"
        )
    return next(iter(formats))
