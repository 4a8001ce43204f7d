"""The head of a cluster is lost under a training, and with it all that Ray knew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from batchtrain.errors import BatchtrainError
from batchtrain.pipeline import run_spec
from batchtrain.spec.load import LoadedSpec
from tests.support.ranks import compared, newest_step, small_spec, train_ranks

pytestmark = [
    pytest.mark.ray,
    pytest.mark.fault,
    pytest.mark.long,
    pytest.mark.timeout(600),
]

RANKS = 2
EPOCHS = 300
RECONNECT_SECONDS = "5"
"""Ray itself waits so long for a head that may come back; a minute where nobody says otherwise."""


def test_r18_r19_a_head_that_is_killed_ends_the_driver_and_the_next_run_goes_on(
    tmp_path: Path,
) -> None:
    expected = compared(train_ranks(small_spec(tmp_path / "alone", epochs=EPOCHS), RANKS))
    loaded = small_spec(tmp_path / "killed", epochs=EPOCHS)
    command = [
        *(sys.executable, "-m", "batchtrain", "train", str(loaded.path)),
        *("--set", f"resources.workers={RANKS}"),
    ]
    environ = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": RECONNECT_SECONDS}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as driver:
        _wait_for_checkpoint(loaded, driver)
        heads = children(driver.pid, "gcs_server") + children(driver.pid, "raylet/raylet")
        assert len(heads) == 2
        for pid in heads:
            os.kill(pid, signal.SIGKILL)
        assert driver.wait() != 0
    again = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert "train     resumed" in again.stdout
    trained = run_spec(loaded, last="train").trained
    assert trained is not None
    assert compared(trained) == expected


def children(parent: int, word: str) -> list[int]:
    """The children of a process with a word in their command."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == parent and word in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def _wait_for_checkpoint(loaded: LoadedSpec, driver: subprocess.Popen[bytes]) -> None:
    while driver.poll() is None:
        with suppress(BatchtrainError, FileNotFoundError):
            if newest_step(loaded):
                return
        time.sleep(0.05)
    raise AssertionError(f"the driver has ended with {driver.returncode} before its head was lost")
