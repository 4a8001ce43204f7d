"""Find, hash and load a class of the user's, under the operator's policy.

The spec names a class (`package.module:Class`), of a network or of rows; whether its code may run
is the operator's decision alone. Hashing runs none of it, and does not import torch.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from batchtrain.errors import Problem, SpecError, TrainingError

__all__ = ["NETWORK_KEY", "check_allowed", "code_hash", "load_class", "load_custom"]

NETWORK_KEY = "model.target"

TARGET = re.compile(
    r"(?P<module>[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*):(?P<name>[A-Za-z][A-Za-z0-9_]*)"
)

OWN_PACKAGES = frozenset(
    {
        "PIL",
        "batchtrain",
        "jinja2",
        "matplotlib",
        "numpy",
        "pandas",
        "pyarrow",
        "pydantic",
        "ray",
        "rich",
        "safetensors",
        "sklearn",
        "tensorboard",
        "torch",
        "torchmetrics",
        "typer",
        "yaml",
    }
)
"""What batchtrain itself imports; a class is the user's own code, in the user's own package."""

# A module that is imported stays in the process, whatever becomes of its file. This remembers the
# code that each one was imported from, so that the recorded hash is that of the code that runs.
_hash_when_imported: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Target:
    """What a spec names, and under which key.

    Attributes:
        text: `package.module:Class`.
        key: The dotted key, for messages.
    """

    text: str
    key: str

    def __str__(self) -> str:
        return f"{self.key} {self.text!r}"

    def refused(self, message: str, hint: str) -> SpecError:
        """The error for a target that cannot be used."""
        message = f"{self.text!r}: {message}."
        return SpecError([Problem(where="", key=self.key, message=message, hint=hint)])


def load_class(target: str, allow: Sequence[str], *, key: str, search: Path | None = None) -> type:
    """Import the class that `target` names, if the operator allows it.

    Refused without importing anything: a target of another form, modules of the standard library
    or of batchtrain's own dependencies, and packages that are not in `allow`. Refused after the
    import: what is no class that the package itself defines.

    Args:
        target: `package.module:Class`.
        allow: The packages whose code may run, from the operator's `--allow-code`.
        key: The key of the spec that names it, for messages.
        search: The spec file's folder. It is on `sys.path` during the import only, and last, so
            that nothing in it can stand in for a standard or an installed module.

    Raises:
        SpecError: If the target is refused or not found.
        TrainingError: If the user's module fails while it is imported, with that error as cause,
            or if other code under the same name is already imported.
    """
    return _loaded(_Target(target, key), allow, search, object, "a class")


def load_custom(target: str, allow: Sequence[str], *, search: Path | None = None) -> type:
    """Import a network: as `load_class`, and what is no `torch.nn.Module` is refused too."""
    named = _Target(target, NETWORK_KEY)
    check_allowed(target, allow)
    # Torch takes a second to import, and hashing does without.
    from torch import nn

    return _loaded(named, allow, search, nn.Module, "a subclass of torch.nn.Module")


def check_allowed(target: str, allow: Sequence[str], *, key: str = NETWORK_KEY) -> None:
    """Refuse a target that may not run here, without looking for it.

    Raises:
        SpecError: If its form is refused, or its package is not in `allow`.
    """
    named = _Target(target, key)
    package = _parse(named)[0].partition(".")[0]
    if package not in allow:
        raise named.refused(
            f"code of the package {package!r} is not allowed to run here",
            f"If you trust it, pass --allow-code {package}.",
        )


def code_hash(target: str, *, key: str = NETWORK_KEY, search: Path | None = None) -> str:
    """Hash the source that `target` runs, without running any of it.

    For a module that stands alone it is the sha256 of its file, for a package one sha256 over the
    names and contents of all its `.py` files in sorted order. Modules that it imports from
    outside of its package are not covered.

    Args:
        target: `package.module:Class`.
        key: The key of the spec that names it, for messages.
        search: As in `load_class`.

    Raises:
        SpecError: If the form of the target is refused, or its source is not found.
    """
    named = _Target(target, key)
    module_name, _ = _parse(named)
    with _searched_last(search):
        found = _find_top(module_name.partition(".")[0])
    if found is None:
        raise _not_found(named, module_name)
    try:
        return _hash_of(found)
    except OSError as error:
        raise named.refused(
            f"its source cannot be read ({error})",
            "Install the package as plain .py files.",
        ) from error


def _loaded(
    named: _Target, allow: Sequence[str], search: Path | None, base: type, wanted: str
) -> type:
    check_allowed(named.text, allow, key=named.key)
    module_name, name = _parse(named)
    package = module_name.partition(".")[0]
    with _searched_last(search):
        digest = code_hash(named.text, key=named.key)
        _check_not_stale(named, package)
        module = _import(named, module_name)
        _check_unchanged(named, package, digest)
    return _class_of(named, module, name, base, wanted)


def _parse(named: _Target) -> tuple[str, str]:
    """Split the target into module and class name; refuse what can never be a user's class."""
    match = TARGET.fullmatch(named.text)
    if match is None:
        raise named.refused(
            "expected package.module:Class, with one name after the colon that does not begin "
            "with an underscore",
            "Name a class that your module defines.",
        )
    package = match["module"].partition(".")[0]
    if package in sys.stdlib_module_names or package in OWN_PACKAGES:
        owner = "batchtrain's dependencies" if package in OWN_PACKAGES else "the standard library"
        raise named.refused(
            f"{package!r} belongs to {owner}; expected a module of your own",
            "Put the class into a module under another name.",
        )
    return match["module"], match["name"]


@contextmanager
def _searched_last(folder: Path | None) -> Iterator[None]:
    """Let imports look into `folder` after everything else, for a while."""
    # Python caches what folders hold; a module may have been written since.
    importlib.invalidate_caches()
    entry = None if folder is None else str(folder.resolve())
    if entry is None or entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _find_top(package: str) -> ModuleSpec | None:
    """Find a top-level module as an import would, were it not imported yet.

    `importlib.util.find_spec` answers from `sys.modules` first, which hides that another module
    of the same name is in the way.
    """
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        found: ModuleSpec | None = find(package, None) if find else None
        if found is not None:
            return found
    return None


def _hash_of(found: ModuleSpec) -> str:
    if found.submodule_search_locations is None:
        return hashlib.sha256(Path(found.origin or "").read_bytes()).hexdigest()
    files: list[tuple[bytes, Path]] = []
    for folder in found.submodule_search_locations:
        root = Path(folder)
        files += [
            (os.fsencode(path.relative_to(root).as_posix()), path) for path in root.rglob("*.py")
        ]
    if not files:
        raise OSError(f"no .py file in {list(found.submodule_search_locations)}")
    digest = hashlib.sha256()
    for name, path in sorted(files):
        content = path.read_bytes()
        digest.update(b"%s\0%d\0" % (name, len(content)))
        digest.update(content)
    return digest.hexdigest()


def _check_not_stale(named: _Target, package: str) -> None:
    """Refuse a module of the same name that was imported from another place."""
    imported, found = sys.modules.get(package), _find_top(package)
    if imported is None or found is None:
        return
    place, wanted = _place(getattr(imported, "__spec__", None)), _place(found)
    if place != wanted:
        raise TrainingError(
            f"{named}: expected {package} from {wanted}, found that this process "
            f"has already imported it from {place}. Rename one of the two, or start a new process."
        )


def _place(spec: ModuleSpec | None) -> str | None:
    if spec is None or spec.origin is not None:
        return None if spec is None else spec.origin
    return ", ".join(spec.submodule_search_locations or ())


def _check_unchanged(named: _Target, package: str, digest: str) -> None:
    """Refuse code that was edited after this process had imported it."""
    if _hash_when_imported.setdefault(sys.modules[package], digest) != digest:
        raise TrainingError(
            f"{named}: the source of {package} has changed since this process "
            "imported it; the code that would run is not the code on disk. Start a new process "
            "(in a notebook, restart the kernel)."
        )


def _import(named: _Target, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise _not_found(named, module_name) from error
        raise _import_failed(named, module_name, error) from error
    # A user's module may raise anything, and may call sys.exit.
    except (Exception, SystemExit) as error:
        raise _import_failed(named, module_name, error) from error


def _class_of(named: _Target, module: ModuleType, name: str, base: type, wanted: str) -> type:
    found: Any = getattr(module, name, None)
    if found is None:
        raise named.refused(f"{module.__name__} has no {name!r}", "Correct the class name.")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise named.refused(
            f"expected {wanted}, found {found!r}",
            "Name the class itself, not a function or an instance.",
        )
    if found.__module__.partition(".")[0] != module.__name__.partition(".")[0]:
        raise named.refused(
            f"{name} is defined in {found.__module__}, outside of the allowed package",
            "Define the class in your package; it may be a subclass.",
        )
    return found


def _not_found(named: _Target, module_name: str) -> SpecError:
    return named.refused(
        f"no module {module_name!r} on the Python path or in the folder of the command",
        "Install the package, or put it beside the spec (of a bundle: the working directory).",
    )


def _import_failed(named: _Target, module_name: str, error: BaseException) -> TrainingError:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return TrainingError(
        f"{named}: expected {module_name} to import, found "
        f"{type(error).__name__}: {error}{place}. Correct that module; "
        f"`python -c 'import {module_name}'` shows the whole traceback."
    )
