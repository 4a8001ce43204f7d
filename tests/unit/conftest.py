"""One finished run that many unit tests look at; who changes a file works on a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from batchtrain.pipeline import RunResult
from batchtrain.spec.load import LoadedSpec, load_spec
from tests.support.builders import mixed_table, run, spec_for


@dataclass(frozen=True)
class Finished:
    """A run from raw rows to a bundle."""

    table: pa.Table
    loaded: LoadedSpec
    result: RunResult


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of 400 mixed rows with gaps; the widths are awkward ones for a BLAS."""
    table = mixed_table(400)
    loaded = spec_for(
        tmp_path_factory.mktemp("finished"),
        table,
        data={"columns": {"dose": {"kind": "numeric", "missing": "median", "indicator": True}}},
        model={"kind": "mlp", "hidden": [65], "dropout": 0.1},
    )
    return Finished(table, loaded, run(loaded))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Callable[[], Finished]:
    """A copy of the finished run, opened again, that a test may damage."""

    def copy() -> Finished:
        folder = tmp_path / "copied"
        shutil.copytree(finished.loaded.path.parent, folder)
        loaded = load_spec(folder / finished.loaded.path.name)
        return Finished(finished.table, loaded, run(loaded))

    return copy
