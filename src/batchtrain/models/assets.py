"""Files that a network of the user's needs beside its weights, such as a vocabulary.

They are read once, where the spec lies; from there their bytes travel. A trained model and a bundle
hold them as `assets/<name>`, so that neither needs the original files again.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from batchtrain.artifacts.artifact import Artifact, Draft
from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.model import CustomModel

__all__ = ["MAX_ASSET_BYTES", "add_assets", "asset_hashes", "assets_of", "read_assets"]

FOLDER = "assets/"

MAX_ASSET_BYTES = 64 << 20
"""All assets of a model together, 64 MiB: every worker of a training holds them, and so does
whoever predicts. What is larger are weights, which belong into parameters, or data."""


def read_assets(loaded: LoadedSpec) -> dict[str, bytes]:
    """The bytes of all files that `model.assets` names; empty for a model without.

    Raises:
        SpecError: If one is not there, is no regular file, or they are too large; it lists all.
    """
    model = loaded.spec.model
    if not isinstance(model, CustomModel):
        return {}
    assets: dict[str, bytes] = {}
    problems: list[Problem] = []
    left = MAX_ASSET_BYTES
    for name, text in model.assets.items():
        try:
            data = _bytes_of(loaded.path.parent / text, left)
        except OSError as error:
            key = f"model.assets.{name}"
            message = f"expected a file at {text!r}, found: {error.strerror or error}"
            problems.append(Problem(loaded.where(key), key, message, HINT))
            continue
        left -= len(data)
        if left < 0:
            raise SpecError([_too_large(loaded, name, text)])
        assets[name] = data
    if problems:
        raise SpecError(problems)
    return assets


def asset_hashes(assets: Mapping[str, bytes]) -> dict[str, str]:
    """Name to sha256: what a trained model depends on. Where a file lies plays no part."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in assets.items()}


def add_assets(draft: Draft, assets: Mapping[str, bytes]) -> None:
    """Write assets into an artifact in the making."""
    for name, data in assets.items():
        draft.add(FOLDER + name, data)


def assets_of(artifact: Artifact) -> dict[str, bytes]:
    """The assets that a trained model or a bundle holds, each checked against the manifest.

    Raises:
        ArtifactDamagedError: If one is not what the manifest says.
    """
    names = sorted(name for name in artifact.manifest.files if name.startswith(FOLDER))
    return {name.removeprefix(FOLDER): artifact.read(name) for name in names}


HINT = "The path is relative to the spec file"


def _bytes_of(path: Path, at_most: int) -> bytes:
    """The bytes of a file, or one byte more than allowed."""
    # Opening a FIFO would wait for a writer, and a device may never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")
    with path.open("rb") as file:
        return file.read(at_most + 1)


def _too_large(loaded: LoadedSpec, name: str, text: str) -> Problem:
    key = f"model.assets.{name}"
    size = (loaded.path.parent / text).stat().st_size
    return Problem(
        loaded.where(key),
        key,
        f"expected {MAX_ASSET_BYTES >> 20} MiB at most in all assets of a model, found more with "
        f"the {size} bytes of {text!r}",
        "Keep weights in parameters of the model, and rows in the data",
    )
