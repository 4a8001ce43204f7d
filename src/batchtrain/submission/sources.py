"""Which files of this machine a spec names, and where they lie in a job's working directory."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from batchtrain.errors import DataError
from batchtrain.spec.data import FilesSplit
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel
from batchtrain.storage import is_address

__all__ = ["FOLDER", "Group", "named_groups"]

FOLDER = "job"
"""The folder of spec and data; the top of the working directory is on the path of Python, and so
holds nothing of a user's."""

WILDCARDS = frozenset("*?[")
NOT_FILES = ("sample:", "custom:")
HUB = "hf:"


@dataclass(frozen=True)
class Group:
    """What one key of the spec names.

    Attributes:
        key: Its names, from the top of the document.
        text: What it says.
        new_text: What it says in the spec that travels, if the files do.
        here: What would say the same in any folder of this machine.
        files: Name below `FOLDER` to where the file lies here.
        must_travel: Whether it means nothing on another machine, being relative.
        is_here: Whether there is something of this name on this machine.
    """

    key: tuple[str, ...]
    text: str
    new_text: str
    here: str
    files: Mapping[str, Path] = field(default_factory=dict)
    must_travel: bool = True
    is_here: bool = True

    @property
    def size(self) -> int:
        """In bytes, all files together."""
        return sum(path.stat().st_size for path in self.files.values())


def named_groups(loaded: LoadedSpec) -> list[Group]:
    """All that a spec names on this machine: tables, assets, a bundle to start from.

    Raises:
        DataError: If something that must travel is not there.
    """
    spec, base = loaded.spec, loaded.path.parent
    sources: dict[tuple[str, ...], str] = {("data", "source"): spec.data.source}
    if isinstance(spec.data.split, FilesSplit):
        named = spec.data.split.sources().items()
        sources = {("data", "split", split): source for split, source in named}
    groups = [
        _source(key, text, base, number, spec.data.null_values)
        for number, (key, text) in enumerate(sources.items())
        if _is_path(text)
    ]
    if isinstance(spec.model, CustomModel):
        groups += [_asset(name, text, base) for name, text in spec.model.assets.items()]
    warm_start = spec.training.warm_start
    if warm_start is not None and not is_address(warm_start.bundle):
        groups.append(_bundle(warm_start.bundle, base))
    return groups


def _is_path(text: str) -> bool:
    """Whether a source is a path of this machine."""
    if text.startswith(HUB):
        return text.removeprefix(HUB).startswith(("./", "../", "/"))
    return not text.startswith(NOT_FILES) and not is_address(text)


def _source(
    key: tuple[str, ...], text: str, base: Path, number: int, null_values: Sequence[str]
) -> Group:
    """A table: a file, a glob, a folder, or a folder of the `datasets` library."""
    from batchtrain.tables import open_source

    is_hub = text.startswith(HUB)
    path = text.removeprefix(HUB)
    must_travel = not PurePosixPath(path).is_absolute()
    root, pattern = _split(path)
    if not must_travel and not (base / root).exists():
        return Group(key, text, text, text, must_travel=False, is_here=False)
    source = open_source(text, base=base, null_values=null_values)
    found = {file.name: file.path for file in source.files}
    place = _place(root, f"table-{number}")
    here = f"{HUB if is_hub else ''}{base / path}"
    if is_hub:
        # What describes the files travels with them.
        found = {name: base / root / name for name in _names_below(base / root)}
    elif not pattern and (base / root).is_file():
        [only] = found.values()
        place = _place(root, f"table-{number}/{PurePosixPath(root).name}")
        return Group(key, text, place, here, {f"{FOLDER}/{place}": only}, must_travel)
    files = {f"{FOLDER}/{place}/{name}": path for name, path in found.items()}
    new_path = posixpath.join(place, pattern) if pattern else place
    new_text = f"{HUB}./{new_path}" if is_hub else new_path
    return Group(key, text, new_text, here, files, must_travel)


def _asset(name: str, text: str, base: Path) -> Group:
    key = ("model", "assets", name)
    path = base / text
    must_travel = not PurePosixPath(text).is_absolute()
    place = _place(text, f"asset-{name}")
    if not path.is_file():
        if must_travel:
            raise DataError(
                f"model.assets.{name}: expected a file at {path}, found none. Correct the path, "
                "which is relative to the spec file"
            )
        return Group(key, text, text, text, must_travel=False, is_here=False)
    return Group(key, text, place, str(path), {f"{FOLDER}/{place}": path}, must_travel)


def _bundle(text: str, base: Path) -> Group:
    """A bundle: its manifest and what that names, and nothing else that lies there."""
    from batchtrain.artifacts.bundle import ModelBundle

    key = ("training", "warm_start", "bundle")
    path = Path(text).expanduser()
    must_travel = not path.is_absolute()
    if not must_travel and not path.exists():
        return Group(key, text, text, text, must_travel=False, is_here=False)
    manifest = ModelBundle.open(base / path).artifact.manifest
    names = ["manifest.json", *(entry.path for entry in manifest.files.values())]
    place = _place(path.as_posix(), "bundle")
    files = {f"{FOLDER}/{place}/{name}": base / path / name for name in names}
    return Group(key, text, place, str(base / path), files, must_travel)


def _place(path: str, otherwise: str) -> str:
    """Where it lies below `FOLDER`: as beside the spec, or under a name of its own.

    What the spec reaches by leaving its folder cannot be there under that name.
    """
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts or not parts:
        return f"shipped/{otherwise}"
    return PurePosixPath(path).as_posix()


def _split(path: str) -> tuple[str, str]:
    """A glob as the folder before its first wildcard, and the rest; else the path alone."""
    parts = PurePosixPath(path).parts
    for index, part in enumerate(parts):
        if WILDCARDS & set(part):
            return str(PurePosixPath(*parts[:index])), str(PurePosixPath(*parts[index:]))
    return str(PurePosixPath(path)), ""


def _names_below(folder: Path) -> Iterator[str]:
    """The regular files of a folder, hidden ones aside."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()
