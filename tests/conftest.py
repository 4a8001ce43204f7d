"""What every test shares: one thread, a clean environment, a small table and a spec for it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # importing pyarrow takes longer than most unit tests
    import pyarrow as pa

TINY_ROWS = 60

TINY_SPEC = """\
version: 1
name: tiny
data:
  source: tiny.csv
  target: label
model: {kind: mlp, hidden: [8], dropout: 0.1}
training: {epochs: 3, batch_size: 16}
"""


def pytest_configure() -> None:
    """Fix what a machine could make differ, before any test module imports torch."""
    # Small tensors gain nothing from threads, and threads are part of a numerical result.
    os.environ["OMP_NUM_THREADS"] = "1"
    # A deadline is an assertion about time; a failure must come back on the next run.
    settings.register_profile("batchtrain", deadline=None, derandomize=True, print_blob=True)
    settings.load_profile("batchtrain")


def pytest_collection_finish() -> None:
    """Spare every garbage collection the thousands of tests and modules that stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def clean_environ() -> Iterator[None]:
    """Take away the variables by which a developer's shell could change a result."""
    prefixes = ("BATCHTRAIN_", "RAY_", "CLICOLOR")
    names = ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(prefixes) or name in names:
                patch.delenv(name)
        # Ray's own is 15: beside other work its processes would come too late for every limit.
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def tiny_table() -> pa.Table:
    """60 rows: two numbers (one with gaps), a category, a flag, and a label of three classes."""
    import pyarrow as pa

    rows = range(TINY_ROWS)
    return pa.table(
        {
            "age": [20 + (7 * row) % 45 for row in rows],
            "ratio": [None if row % 11 == 5 else round((row * 37 % 100) / 7, 3) for row in rows],
            "pressure": [("HIGH", "NORMAL", "LOW")[row % 3] for row in rows],
            "smoker": [row % 4 == 0 for row in rows],
            "label": [("a", "b", "c")[(row % 3 + row % 4 // 3) % 3] for row in rows],
        }
    )


@pytest.fixture
def tiny_spec(tmp_path: Path, tiny_table: pa.Table) -> Path:
    """A spec file that trains on `tiny_table` in about a second, next to its CSV file."""
    from pyarrow import csv

    csv.write_csv(tiny_table, tmp_path / "tiny.csv")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY_SPEC)
    return spec
