"""A spec with a table beside it, in a folder that holds more than travels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchtrain.spec.load import LoadedSpec, load_spec

SPEC = """\
version: 1
name: tiny
data: {source: rows.csv, target: label}
training: {epochs: 2}
"""

NOT_NAMED = (".env", ".git/config", "id_rsa", "notes.txt", "other.csv", "__pycache__/x.pyc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "rows.csv").write_text("a,label\n1,x\n2,y\n")
    (folder / "tiny.yaml").write_text(SPEC)
    for name in NOT_NAMED:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("canary-secret")
    return folder


@pytest.fixture
def load(folder: Path) -> Callable[..., LoadedSpec]:
    """Reads the spec of that folder; the storage is one that every node sees."""

    def load(*overrides: str, base: Path = folder) -> LoadedSpec:
        return load_spec(base / "tiny.yaml", ["storage=/mnt/shared/runs", *overrides])

    return load
