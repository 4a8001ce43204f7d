"""Runs that are killed at seeded points end with the bytes of one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchtrain.testing.killing import Chaos, run_chaos
from tests.support.builders import mixed_table, spec_for

pytestmark = pytest.mark.fault

TRIALS = 40
"""As many as there are points, and some."""


def kill_and_compare(folder: Path, *, seed: int, ranks: tuple[int, ...]) -> None:
    loaded = spec_for(folder, mixed_table(90))
    report = run_chaos(
        Chaos(loaded.path, storage=str(folder / "chaos")), seed=seed, points=TRIALS, ranks=ranks
    )
    assert report.different == []
    assert report.never_hit == []
    assert report.trials == TRIALS
    assert report.kills >= TRIALS


@pytest.mark.timeout(600)
def test_r01_r02_r03_r04_r06_r07_d25_forty_killed_runs_end_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    kill_and_compare(tmp_path, seed=0, ranks=(1, 2, 3))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_r01_two_hundred_killed_runs_end_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    kill_and_compare(tmp_path, seed=seed, ranks=(1, 2, 3, 4))
