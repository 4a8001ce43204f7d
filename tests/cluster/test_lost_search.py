"""A search on Ray Tune whose driver is killed goes on with what was published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchtrain.tuning.stage import tune_spec
from tests.support.small_searches import search_spec, table

pytestmark = [
    pytest.mark.ray,
    pytest.mark.cluster,
    pytest.mark.fault,
    pytest.mark.long,
    pytest.mark.timeout(600),
]

KILLS = 2
SEARCH = {"trials": 8, "pack": 1, "scheduler": {"kind": "asha", "first_epochs": 50}}
EPOCHS = 200


def _units(folder: Path) -> dict[str, int]:
    """What came of each unit so far, with the time at which it was written."""
    found = folder.glob("runs/*/search-*/units/*.json")
    return {each.name: each.stat().st_mtime_ns for each in found}


def test_r37_a_killed_driver_changes_no_byte_and_nothing_is_done_twice(tmp_path: Path) -> None:
    here = tune_spec(search_spec(tmp_path / "here", SEARCH, epochs=EPOCHS, engine="embedded"))
    folder = tmp_path / "killed"
    loaded = search_spec(folder, SEARCH, epochs=EPOCHS, engine="ray")
    command = [sys.executable, "-m", "batchtrain", "tune", str(loaded.path)]
    done: dict[str, int] = {}
    for _ in range(KILLS):
        search = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while search.poll() is None and len(_units(folder)) < len(done) + 3:
            time.sleep(0.05)
        assert search.poll() is None, "the search ended before it could be killed"
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        assert _units(folder).items() >= done.items()
        done = _units(folder)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert _units(folder).items() >= done.items()
    (found,) = folder.glob("runs/*/search-*/table.json")
    assert found.read_bytes() == table(here)
