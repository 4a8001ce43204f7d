"""What travels with a job: the files that its spec names, and no folder as it lies there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from batchtrain.errors import DataError, UnsafeInputError
from batchtrain.spec.data import FilesSplit
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.spec.resolved import document_yaml
from batchtrain.storage import is_address
from batchtrain.submission.request import JobRequest, ShippedFile, request_file
from batchtrain.submission.secrets import LEFT_OUT, refuse_secrets
from batchtrain.submission.sources import FOLDER, Group, named_groups

__all__ = ["LIMIT_BYTES", "PACKAGE", "PACKAGE_FOLDER", "Shipment", "ship", "stage_files"]

LIMIT_BYTES = 50 << 20
"""All files of a job together. Ray takes 100 MiB at most (`ray/_private/runtime_env/packaging.py`),
keeps them in the memory of the head, and copies them to every node."""

PACKAGE = "batchtrain"
PACKAGE_FOLDER = Path(__file__).parent.parent
LARGEST = 10
"""How many files a refusal lists."""

MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class Shipment:
    """What travels, and what is said about the rest.

    Attributes:
        files: Sorted by name; the spec is among them.
        spec: The name of the spec.
        loaded: The spec as the job will read it.
        stays: What the spec names and every node must see by itself, with size and time where it
            is here too.
        notes: Sentences for whoever submits.
    """

    files: tuple[ShippedFile, ...]
    spec: str
    loaded: LoadedSpec
    stays: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def ship(
    loaded: LoadedSpec,
    *,
    allow_code: Sequence[str] = (),
    include: Sequence[Path] = (),
    ship_package: Literal["auto"] | bool = "auto",
    keep_paths: bool = False,
    limit: int = LIMIT_BYTES,
) -> Shipment:
    """Find what travels: the same files give the same shipment on every machine.

    A relative path of the spec must travel, since it means nothing elsewhere. An absolute one
    travels where it is here and small enough; else every node must see it.

    Args:
        loaded: The spec, with overrides and profile in it.
        allow_code: Packages of the user's; those beside the spec travel.
        include: Further files and folders below the spec's folder.
        ship_package: Whether batchtrain travels; `auto`: where this is a checkout.
        keep_paths: Whether the job runs on this machine: absolute paths then stay as they are, as
            does what is too large, and where results go is made absolute.
        limit: In bytes.

    Raises:
        DataError: If a file is not there, or all together are too large.
        UnsafeInputError: If a file is a secret by its name, or has a name that cannot travel.
    """
    base = loaded.path.parent
    found: dict[str, Path] = {}
    for path in include:
        found |= _included(path, base)
    for name in allow_code:
        found |= _code(name, base)
    if _package_travels(ship_package):
        found |= _package()
    groups = named_groups(loaded)
    moved = _travelling(loaded, groups, found, limit, keep_paths=keep_paths)
    stays = [group for group in groups if group not in moved]
    for group in moved:
        found |= group.files
    refuse_secrets(path for name, path in found.items() if not name.startswith(f"{PACKAGE}/"))
    _refuse_too_large({name: path.stat().st_size for name, path in found.items()}, limit)
    text, sent = _spec_text(loaded, moved, stays, keep_paths=keep_paths)
    name = f"{FOLDER}/{loaded.spec.name}.yaml"
    if name in found:
        raise UnsafeInputError(
            f"expected files beside the spec under other names than its own, found {name!r} twice. "
            "Rename that file"
        )
    files = [_file(each, path) for each, path in found.items()]
    files.append(_made(name, text.encode()))
    return Shipment(
        files=tuple(sorted(files, key=lambda each: each.name.encode())),
        spec=name,
        loaded=sent,
        stays=tuple(line for group in stays for line in _stays(group)),
        notes=tuple(_notes(loaded, stays, keep_paths=keep_paths)),
    )


def stage_files(request: JobRequest, folder: Path) -> None:
    """Put the files of a request into an empty folder, each held against its hash.

    Raises:
        DataError: If a file has changed since the request was built.
    """
    for file in request.files:
        data = file.source.read_bytes() if file.source is not None else file.content or b""
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DataError(
                f"{file.source}: expected the file as it was a moment ago, found other bytes. Let "
                "no one write to it while it is sent, and submit again"
            )
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sha256, data = request_file(request.arguments)
    (folder / f"request-{sha256}.json").write_bytes(data)


# ----------------------------------------------------------------------------------------------
# Which files.


def _travelling(
    loaded: LoadedSpec,
    groups: Sequence[Group],
    others: Mapping[str, Path],
    limit: int,
    *,
    keep_paths: bool,
) -> list[Group]:
    """What of the spec's own files travels: what must, and of the rest what there is room for."""
    must = [] if keep_paths else [group for group in groups if group.must_travel]
    left = limit - sum(path.stat().st_size for path in others.values())
    left -= sum(group.size for group in must)
    may = []
    for group in groups:
        is_wanted = group.is_here and group.must_travel == keep_paths
        if is_wanted and not _is_below(loaded, group) and group.size <= left:
            left -= group.size
            may.append(group)
    return [*must, *may]


def _included(path: Path, base: Path) -> dict[str, Path]:
    """A file or folder that the user names; it keeps its place beside the spec."""
    # Not resolved: a link is known under its own name.
    absolute = Path(os.path.normpath(path.absolute()))
    if not absolute.exists():
        raise DataError(f"--include: expected a file or a folder, found nothing at {path}")
    root = Path(os.path.normpath(base))
    if not absolute.is_relative_to(root) or absolute == root:
        raise DataError(
            f"--include: expected something below the folder of the spec, {base}, found {path}. "
            "Put it there, since the job finds it by its place beside the spec"
        )
    name = f"{FOLDER}/{absolute.relative_to(root).as_posix()}"
    if absolute.is_file():
        return {name: absolute}
    return {f"{name}/{below}": path for below, path in _below(absolute)}


def _code(package: str, base: Path) -> dict[str, Path]:
    """A package of the user's that lies beside the spec; an installed one is the image's affair."""
    if not MODULE.fullmatch(package):
        raise DataError(
            f"--allow-code: expected the name of a package, found {package!r}. Name the first part "
            "of `package.module:Class`"
        )
    module, folder = base / f"{package}.py", base / package
    if folder.is_dir():
        return {f"{FOLDER}/{package}/{name}": path for name, path in _below(folder)}
    return {f"{FOLDER}/{package}.py": module} if module.is_file() else {}


def _package_travels(wanted: Literal["auto"] | bool) -> bool:
    if wanted != "auto":
        return wanted
    root = PACKAGE_FOLDER.parent
    return root.name == "src" and (root.parent / "pyproject.toml").is_file()


def _package() -> dict[str, Path]:
    return {f"{PACKAGE}/{name}": path for name, path in _below(PACKAGE_FOLDER)}


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder, without caches, version control and what is hidden.

    A hidden file that looks like a secret is given all the same, so that it is refused.
    """
    for entry in sorted(os.scandir(folder), key=lambda each: os.fsencode(each.name)):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in LEFT_OUT and not entry.name.startswith("."):
                yield from ((f"{entry.name}/{name}", below) for name, below in _below(path))
        elif entry.is_file() and _is_wanted(entry.name):
            yield entry.name, path


def _is_wanted(name: str) -> bool:
    is_hidden = name.startswith(".") and not name.startswith(".env")
    return not is_hidden and not name.endswith(".pyc")


def _is_below(loaded: LoadedSpec, group: Group) -> bool:
    """Whether it lies in the storage, which every node sees."""
    storage = loaded.spec.storage
    if is_address(storage):
        return False
    root = (loaded.path.parent / Path(storage).expanduser()).resolve()
    return all(path.resolve().is_relative_to(root) for path in group.files.values())


def _file(name: str, path: Path) -> ShippedFile:
    """A file of this machine, with what it holds now."""
    if CONTROL.search(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise UnsafeInputError(
            f"expected a file name without control characters and backslashes, found {name!r}. "
            "Rename it"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found: {error.strerror}") from error
    return ShippedFile(name, len(data), hashlib.sha256(data).hexdigest(), source=path)


def _made(name: str, data: bytes) -> ShippedFile:
    return ShippedFile(name, len(data), hashlib.sha256(data).hexdigest(), content=data)


def _refuse_too_large(sizes: Mapping[str, int], limit: int) -> None:
    total = sum(sizes.values())
    if total <= limit:
        return
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:LARGEST]
    lines = [f"  {_mib(sizes[name]):>10}  {name}" for name in largest]
    raise DataError(
        f"expected {limit >> 20} MiB at most that travel with a job, found {_mib(total)} in "
        f"{len(sizes)} files, the largest of them:\n"
        + "\n".join(lines)
        + "\nPut large tables where all nodes see them, and name them in the spec by an absolute "
        "path"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _stays(group: Group) -> list[str]:
    """What tells one state of files that stay from another, as far as it can be seen from here."""
    if not group.files:
        return [group.text]
    lines = []
    for path in group.files.values():
        with suppress(OSError):
            now = path.stat()
            lines.append(f"{path} {now.st_size} {now.st_mtime_ns}")
    return lines


def _notes(loaded: LoadedSpec, stays: Iterable[Group], *, keep_paths: bool) -> Iterator[str]:
    if keep_paths:
        return
    for group in stays:
        key = ".".join(group.key)
        yield f"{key}: {group.text} does not travel; every node must see it there"
    tensorboard = loaded.spec.tracking.tensorboard
    folder = getattr(tensorboard, "dir", None)
    if folder is not None and not Path(folder).is_absolute():
        yield (
            f"tracking.tensorboard.dir: {folder} is relative, and goes with the job's working "
            "directory; an absolute folder stays"
        )


# ----------------------------------------------------------------------------------------------
# The spec that travels.


def _spec_text(
    loaded: LoadedSpec, moved: Sequence[Group], stays: Sequence[Group], *, keep_paths: bool
) -> tuple[str, LoadedSpec]:
    """The spec as the job reads it; `search` is in it, and all overrides are."""
    document = loaded.spec.model_dump(mode="json", exclude_unset=True)
    if isinstance(loaded.spec.data.split, FilesSplit):
        # It may have been left out, and is what `data.split.train` names.
        document["data"].pop("source", None)
    document["storage"] = loaded.spec.storage
    for group in moved:
        _put(document, group.key, group.new_text)
    if keep_paths:
        for group in stays:
            _put(document, group.key, group.here)
        _stay_here(document, loaded)
    text = document_yaml(document)
    return text, parse_spec(text, str(loaded.path))


def _stay_here(document: dict[str, Any], loaded: LoadedSpec) -> None:
    """Make absolute what counts from the spec's folder and is written to."""
    base = loaded.path.parent
    if not is_address(loaded.spec.storage):
        document["storage"] = str((base / Path(loaded.spec.storage).expanduser()).resolve())
    tracking = document.get("tracking")
    if not isinstance(tracking, dict):
        return
    for section, key in (("tensorboard", "dir"), ("mlflow", "uri")):
        found = tracking.get(section)
        if not isinstance(found, dict) or not isinstance(found.get(key), str):
            continue
        if ":" not in found[key] and found[key] != "databricks":
            found[key] = str(base / found[key])


def _put(document: dict[str, Any], key: Sequence[str], value: str) -> None:
    *sections, last = key
    for name in sections:
        document = document[name]
    document[last] = value
