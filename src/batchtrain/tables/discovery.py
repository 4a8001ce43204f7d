"""Find the files behind a path, a glob or a folder, and refuse links and special files."""

from __future__ import annotations

import difflib
import fnmatch
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from batchtrain.errors import DataError, UnsafeInputError

__all__ = ["LOCAL", "Discovery", "discover", "source_contains"]

WILDCARDS = frozenset("*?[")

LOCAL = ("./", "../", "/")
"""What follows `hf:` begins so where it is a folder, and not a name of the hub."""

Patterns = frozenset[tuple[str, ...]]
"""What may still follow on a path: alternatives, each a sequence of parts of the glob."""


@dataclass(frozen=True)
class Discovery:
    """The files of a source.

    Attributes:
        files: Relative URI to path, in the order of the URI's UTF-8 bytes.
        skipped: Relative URIs of entries that a rule leaves out; a folder ends in a slash.
        splits: The split of each file, where the files come with splits; else empty.
    """

    files: dict[str, Path]
    skipped: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


@dataclass
class _Walk:
    """What one walk below `root` has met so far."""

    root: Path
    found: list[tuple[str, Path]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def discover(source: str, base: Path) -> Discovery:
    """Find the regular files that `source` stands for, each real file once.

    Entries of a folder or glob that begin with `.` or `_` or end in `.tmp` are skipped, unless a
    part of the glob without wildcards names them. Of several names for one file the one without
    a link is kept, else the first.

    Raises:
        DataError: If nothing is found; it names files with similar names.
        UnsafeInputError: If a link leads out of the folder, into a loop or nowhere, or an entry
            is a FIFO, a socket or a device; nothing of the kind is opened.
    """
    path = base / source
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if _has_wildcard(source):
            return _search(*_split_glob(path), source)
        raise _nothing_found(source, path) from error
    except OSError as error:
        raise UnsafeInputError(
            f"{path}: expected a readable file or folder, found: {error.strerror}. "
            "Check links and permissions, or name the file itself"
        ) from error
    if stat.S_ISDIR(mode):
        return _search(path, ("**", "*"), source)
    if not stat.S_ISREG(mode):
        raise _special_file(path, mode)
    return Discovery(files={path.name: path}, skipped=())


def source_contains(source: str, base: Path, path: Path) -> bool:
    """Whether an output at `path` would become part of the input.

    Args:
        source: As in the spec; nothing needs to exist.
        base: The folder that relative paths start from.
        path: A file or folder that is about to be written. For a glob the answer is yes as soon
            as something below that folder could match.
    """
    if source.startswith(("sample:", "custom:")):
        return False
    if source.startswith("hf:"):
        source = source.removeprefix("hf:")
        if not source.startswith(LOCAL):
            return False
    target = (base / path).resolve()
    whole = base / source
    if not _has_wildcard(source) or whole.exists():
        return target.is_relative_to(whole.resolve())
    root, parts = _split_glob(whole)
    root = root.resolve()
    if not target.is_relative_to(root):
        return False
    patterns: Patterns = frozenset([parts])
    for name in target.relative_to(root).parts:
        if _is_skipped(name, patterns):
            return False
        patterns = _after(name, patterns)
    return bool(patterns)


def _search(root: Path, parts: tuple[str, ...], source: str) -> Discovery:
    if not root.is_dir():
        raise _nothing_found(source, root)
    real_root = root.resolve()
    walk = _Walk(real_root)
    _visit(walk, real_root, "", frozenset([parts]), (real_root,))
    files: dict[str, Path] = {}
    real_paths: set[Path] = set()
    for name, path in sorted(walk.found, key=lambda each: (_is_linked(each[1]), _order(each[0]))):
        if path.resolve() in real_paths:
            walk.skipped.append(name)
        else:
            real_paths.add(path.resolve())
            files[name] = path
    if not files:
        raise _nothing_found(source, root, tuple(walk.skipped))
    return Discovery(
        files={name: files[name] for name in sorted(files, key=_order)},
        skipped=tuple(sorted(walk.skipped, key=_order)),
    )


def _visit(
    walk: _Walk, folder: Path, prefix: str, patterns: Patterns, above: tuple[Path, ...]
) -> None:
    """Collect the matching files of one folder; `above` are the real folders on the way here."""
    for path in _entries(folder):
        name = prefix + path.name
        after = _after(path.name, patterns)
        if not after:
            continue
        if _is_skipped(path.name, patterns):
            walk.skipped.append(name + ("/" if path.is_dir() else ""))
            continue
        if path.is_symlink():
            _check_link(path, walk.root, above)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            below = after - {()}
            if below:
                _visit(walk, path, name + "/", below, (*above, path.resolve()))
            else:
                walk.skipped.append(name + "/")
        elif not stat.S_ISREG(mode):
            raise _special_file(path, mode)
        elif () in after:
            walk.found.append((name, path))


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder that can be listed, found: {error.strerror}. "
            "Check its permissions"
        ) from error


def _check_link(path: Path, root: Path, above: tuple[Path, ...]) -> None:
    problem = ""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        problem = "a link that leads nowhere or in a circle"
    else:
        if not real.is_relative_to(root):
            problem = f"a link to {str(real)!r}, outside that folder"
        elif real in above:
            problem = f"a link to {str(real)!r}, the folder that it lies in"
    if problem:
        raise UnsafeInputError(
            f"{path}: expected files below {root}, found {problem}. "
            "Remove the link, or name the files that are meant"
        )


def _after(name: str, patterns: Patterns) -> Patterns:
    """What may follow once `name` is matched; an empty tuple stands for a complete match."""
    after: set[tuple[str, ...]] = set()
    for parts in _expanded(patterns):
        if parts and parts[0] == "**":
            after.add(parts)
        elif parts and fnmatch.fnmatchcase(name, parts[0]):
            after.add(parts[1:])
    return frozenset(after)


def _expanded(patterns: Patterns) -> Patterns:
    """The patterns, and each with a leading `**` left out, as it may stand for no folder."""
    expanded = set(patterns)
    for parts in patterns:
        while parts and parts[0] == "**":
            parts = parts[1:]
            expanded.add(parts)
    return frozenset(expanded)


def _is_skipped(name: str, patterns: Patterns) -> bool:
    named = {parts[0] for parts in _expanded(patterns) if parts}
    return name not in named and (name.startswith((".", "_")) or name.endswith(".tmp"))


def _has_wildcard(text: str) -> bool:
    return not WILDCARDS.isdisjoint(text)


def _split_glob(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder before the first wildcard, and the parts from there on."""
    parts = path.parts
    first = next(place for place, part in enumerate(parts) if _has_wildcard(part))
    pattern = parts[first:]
    # A closing `**` stands for all files below, as it does in a shell.
    return Path(*parts[:first]), (*pattern, "*") if pattern[-1] == "**" else pattern


def _is_linked(path: Path) -> bool:
    return path.resolve() != path


def _order(name: str) -> bytes:
    return os.fsencode(name)


def _special_file(path: Path, mode: int) -> UnsafeInputError:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
    kind = kinds.get(stat.S_IFMT(mode), "a special file")
    return UnsafeInputError(
        f"{path}: expected a regular file, found {kind}. It was not opened. "
        "Write the rows to a file first"
    )


def _nothing_found(source: str, path: Path, skipped: tuple[str, ...] = ()) -> DataError:
    parent = path if path.is_dir() else path.parent
    names = sorted(each.name for each in parent.iterdir()) if parent.is_dir() else []
    wanted = Path(source).name if path.is_dir() else path.name
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if skipped:
        advice = f"Names that begin with . or _ or end in .tmp are skipped, here {skipped[0]!r}"
    elif close:
        advice = f"Did you mean {' or '.join(map(repr, close))}?"
    elif not parent.is_dir():
        advice = f"There is no folder {str(parent)!r} either"
    else:
        advice = "The path is relative to the spec file"
    what = "an empty folder" if path.is_dir() and not _has_wildcard(source) else "nothing"
    return DataError(f"source {source!r}: expected files of rows at {path}, found {what}. {advice}")
