"""A training on several ranks that is asked to stop, killed whole, stuck or slow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import RankStuckError
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage.objects import ObjectStorage
from batchtrain.testing.processes import Limits
from tests.support.builders import layout_for
from tests.support.ranks import (
    STUCK,
    Told,
    compared,
    custom_spec,
    forwards_before,
    newest_step,
    small_spec,
    telling_pids,
    train_ranks,
    wait_until_gone,
)

pytestmark = pytest.mark.fault


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a `FAULTY_NET` tells its processes; at the end none of them may be left."""
    with telling_pids(tmp_path / "pids", monkeypatch) as folder:
        yield folder


# --- asked to stop ----------------------------------------------------------------------------

DRIVER = """
import sys
from pathlib import Path
from batchtrain.errors import BatchtrainError
from batchtrain.spec.load import load_spec
from tests.support.ranks import Told, train_ranks

class Telling(Told):
    def stage_started(self, name):
        print("stage", name, flush=True)

    def epoch_finished(self, record, epochs):
        print("epoch", record["epoch"], flush=True)

try:
    train_ranks(load_spec(Path(sys.argv[1])), 3, progress=Telling())
except BatchtrainError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(error.exit_code)
"""


@contextmanager
def driver_of(loaded: LoadedSpec, slow: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains a spec on three ranks, slowly while a file is there."""
    slow.touch()
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RANK_SLOW": str(slow),
    }
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(loaded.path)],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as driver:
        try:
            yield driver
        finally:
            driver.kill()
            slow.unlink()


def read_until(driver: subprocess.Popen[str], line: str) -> None:
    assert driver.stdout is not None
    for found in driver.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"the driver ended before it said {line!r}")


STOPS = [
    pytest.param(os.kill, signal.SIGTERM, id="SIGTERM to the driver"),
    pytest.param(os.killpg, signal.SIGTERM, id="SIGTERM to all", marks=pytest.mark.long),
    pytest.param(os.killpg, signal.SIGINT, id="Ctrl-C", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("send", "number"), STOPS)
def test_r20_a_stop_saves_where_it_was_and_counts_as_interrupted(
    tmp_path: Path, pids: Path, send: Any, number: int
) -> None:
    # Nothing but the stop saves; and it is many slow steps to the end.
    training = {"epochs": 12, "checkpoint": {"every_steps": None, "every_seconds": 3600}}
    loaded = custom_spec(tmp_path / "stopped", training=training)
    with driver_of(loaded, tmp_path / "slow") as driver:
        read_until(driver, "epoch 1")
        send(driver.pid, number)
        said, _ = driver.communicate()
    assert said.splitlines()[-1].startswith("InterruptedRunError rank ")
    assert driver.returncode == 130
    found = re.search(r"stopped after step (\d+);", said)
    assert found is not None
    assert newest_step(loaded) == int(found[1]) >= 6
    quiet = custom_spec(tmp_path / "quiet", training=training)
    assert compared(train_ranks(loaded, 3)) == compared(train_ranks(quiet, 3))


@pytest.mark.long
def test_r20_a_stop_of_all_processes_while_the_ranks_are_started_counts_as_interrupted(
    tmp_path: Path,
) -> None:
    loaded = custom_spec(tmp_path / "stopped", training={"epochs": 100})
    with driver_of(loaded, tmp_path / "slow") as driver:
        read_until(driver, "stage train")
        children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
        while not children.read_text():
            assert driver.poll() is None
        # The server that forks the ranks has begun to import what takes it seconds.
        os.killpg(driver.pid, signal.SIGTERM)
        said, _ = driver.communicate()
    assert "InterruptedRunError" in said
    assert driver.returncode == 130


@pytest.mark.long
def test_r15_r20_a_stop_without_any_time_leaves_the_checkpoint_before_and_no_process(
    tmp_path: Path, pids: Path
) -> None:
    # Each epoch is saved, and waits until the one before is published.
    every_epoch = {"every_steps": 6, "every_seconds": None}
    training = {"epochs": 12, "checkpoint": every_epoch}
    loaded = custom_spec(tmp_path / "killed", training=training)
    layout = layout_for(loaded)
    with driver_of(loaded, tmp_path / "slow") as driver:
        read_until(driver, "epoch 3")
        named = json.loads(layout.storage.read(layout.newest_checkpoint))["step"]
        driver.terminate()
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        wait_until_gone([int(path.name) for path in pids.iterdir()])
    assert newest_step(loaded) >= named >= 6
    quiet = custom_spec(tmp_path / "quiet", training=training)
    assert compared(train_ranks(loaded, 3)) == compared(train_ranks(quiet, 3))


# --- stuck or slow ----------------------------------------------------------------------------


def test_r21_a_stopped_rank_is_named_its_stacks_stay_and_the_run_can_go_on(tmp_path: Path) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), 3)
    loaded = small_spec(tmp_path / "stuck")
    with pytest.raises(RankStuckError, match=r"rank 1 of 3 .* its heartbeats stopped") as caught:
        train_ranks(loaded, 3, faults={1: "step.backward:7:stop"}, limits=STUCK)
    layout = layout_for(loaded)
    stacks = [Path(path) for path in re.findall(r"/\S+/rank-\d\.txt", str(caught.value))]
    assert [path.name for path in stacks] == ["rank-0.txt", "rank-1.txt", "rank-2.txt"]
    assert all(path.is_relative_to(layout.storage.url(layout.logs)) for path in stacks)
    assert newest_step(loaded) >= 4
    assert compared(train_ranks(loaded, 3)) == compared(quiet)
    # The next attempt leaves what was seen of the one before.
    assert "train_until_done" in stacks[1].read_text()


@pytest.mark.s3
@pytest.mark.long
def test_r21_the_stacks_stay_where_storage_has_no_folder(
    tmp_path: Path, s3_storage: ObjectStorage
) -> None:
    loaded = small_spec(tmp_path / "stuck")
    with pytest.raises(RankStuckError) as caught:
        train_ranks(loaded, 2, storage=s3_storage, faults={1: "step.rows:3:stop"}, limits=STUCK)
    stacks = re.findall(r"/\S+/rank-1\.txt", str(caught.value))
    assert "train_until_done" in Path(stacks[0]).read_text()


@pytest.mark.long
def test_r21_rank_0_is_named_also_where_it_has_saved_much(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_FAULT", f"hang:0:{forwards_before(8, 'order') + 1}")
    with pytest.raises(RankStuckError, match=r"rank 0 of 3 .* behind all others"):
        train_ranks(custom_spec(tmp_path / "stuck"), 3, limits=STUCK)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_r21_a_slow_rank_is_noted_and_changes_nothing(tmp_path: Path, rank: int) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), 3)
    told = Told()
    slowly = ",".join(f"step.rows:{step}:delay=0.8" for step in range(4, 9))
    trained = train_ranks(
        small_spec(tmp_path / "slow"),
        3,
        progress=told,
        faults={rank: slowly},
        limits=Limits(slow_heartbeats=3),
    )
    assert [note[:24] for note in told.notes] == [f"rank {rank} is the slowest: t"]
    assert compared(trained) == compared(quiet)


def test_r24_all_ranks_wait_until_rank_0_has_saved_the_last_state(tmp_path: Path) -> None:
    loaded = small_spec(tmp_path / "slow")
    # The tenth checkpoint of 18 steps is that of the end.
    slow = Limits(early_return_seconds=0.5)
    trained = train_ranks(loaded, 2, faults={0: "checkpoint.begun:10:delay=2"}, limits=slow)
    assert trained.content["steps"] == 18
