"""Ranks of a training that are killed, stopped, slow, wrong or impatient; without Ray."""

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

from batchtrain.errors import (
    BatchtrainError,
    DivergedError,
    RankFailedError,
    RankLostError,
    RankStuckError,
    TrainingError,
)
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import Determinism
from batchtrain.storage.objects import ObjectStorage
from batchtrain.testing.processes import Limits
from tests.support.builders import layout_for, mixed_table, quantity_table, spec_for
from tests.support.ranks import (
    KILLED_WHEN_SAVED,
    SAVED_OFTEN,
    Told,
    compared,
    custom_spec,
    newest_step,
    train_ranks,
    wait_until_gone,
)

pytestmark = pytest.mark.fault

STUCK = Limits(stuck_seconds=5)


def small_spec(folder: Path, *, epochs: int = 3) -> LoadedSpec:
    """Six steps an epoch, with dropout and Adam."""
    folder.mkdir()
    return spec_for(
        folder,
        mixed_table(60),
        training={"epochs": epochs, "batch_size": 8, "checkpoint": SAVED_OFTEN},
    )


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a `FAULTY_NET` tells its processes; at the end none of them may be left."""
    folder = tmp_path / "pids"
    folder.mkdir()
    monkeypatch.setenv("RANK_PIDS", str(folder))
    yield folder
    told = [int(path.name) for path in folder.iterdir()]
    assert told
    wait_until_gone(told)


# --- killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 4))]
)
def test_r01_a_run_in_which_each_rank_is_killed_ends_with_the_same_bytes(
    tmp_path: Path, size: int
) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), size)
    loaded = small_spec(tmp_path / "killed")
    steps = [0]
    for rank in reversed(range(size)):
        with pytest.raises(RankLostError, match=rf"rank {rank} of {size} .*killed by SIGKILL"):
            train_ranks(loaded, size, faults={rank: KILLED_WHEN_SAVED})
        steps.append(newest_step(loaded))
    assert steps == sorted(set(steps))
    assert compared(train_ranks(loaded, size)) == compared(quiet)


def test_r03_r06_r07_five_kills_in_one_run_change_no_byte(tmp_path: Path) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet", epochs=4), 3)
    loaded = small_spec(tmp_path / "killed", epochs=4)
    kills = [
        (1, KILLED_WHEN_SAVED),
        (0, "checkpoint.named:1:kill"),  # a resume that saves at once and is killed
        (2, "resume.done:1:kill"),
        (0, "epoch.steps:1:kill"),
        (2, "step.rows:2:kill"),
    ]
    for rank, fault in kills:
        with pytest.raises(RankLostError, match=f"rank {rank} of 3"):
            train_ranks(loaded, 3, faults={rank: fault})
    assert compared(train_ranks(loaded, 3)) == compared(quiet)


def test_r08_a_kill_after_the_last_checkpoint_leaves_no_step_to_do(tmp_path: Path) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), 3)
    loaded = small_spec(tmp_path / "killed")
    # The ninth checkpoint of 18 steps is that of the last one.
    with pytest.raises(RankLostError):
        train_ranks(loaded, 3, faults={0: "checkpoint.named:9:kill"})
    assert newest_step(loaded) == 18
    told = Told()
    assert compared(train_ranks(loaded, 3, progress=told)) == compared(quiet)
    assert told.epochs == []


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


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
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


# --- wrong numbers ----------------------------------------------------------------------------

WARM_UP_FORWARDS = 3
"""What `exact_ddp` does before the first step of every start."""


def forwards_before(step: int, determinism: Determinism) -> int:
    """The training forwards of rank 1 of 3 before a step."""
    if determinism == "order":
        return WARM_UP_FORWARDS + step
    return 3 * step  # it holds three of the eight groups


SPOILT = [
    pytest.param("order", "nan", 7),
    pytest.param("order", "infinite_gradient", 8, marks=pytest.mark.long),
    pytest.param("canonical", "nan", 7, marks=pytest.mark.long),
    pytest.param("canonical", "infinite_gradient", 8),
]


@pytest.mark.parametrize(("determinism", "what", "found_in"), SPOILT)
def test_r23_what_one_rank_spoils_ends_all_and_is_in_no_checkpoint(
    tmp_path: Path,
    pids: Path,
    monkeypatch: pytest.MonkeyPatch,
    determinism: Determinism,
    what: str,
    found_in: int,
) -> None:
    quiet = train_ranks(custom_spec(tmp_path / "quiet", determinism=determinism), 3)
    loaded = custom_spec(tmp_path / "spoilt", determinism=determinism)
    with monkeypatch.context() as patch:
        patch.setenv("RANK_FAULT", f"{what}:1:{forwards_before(7, determinism) + 1}")
        # Every rank says so, and the lowest of those that say the same is named.
        with pytest.raises(DivergedError, match=f"^rank 0: .*found (nan|inf) in step {found_in} "):
            train_ranks(loaded, 3)
    assert newest_step(loaded) in {4, 6}
    assert compared(train_ranks(loaded, 3)) == compared(quiet)


def test_r23_what_one_rank_spoils_in_the_last_step_is_not_published(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"kind": "random", "fractions": {"train": 1.0}}
    loaded = custom_spec(tmp_path, data={"split": split}, training={"epochs": 1})
    last = -(-60 // 8) - 1
    monkeypatch.setenv("RANK_FAULT", f"infinite_gradient:1:{forwards_before(last, 'order') + 1}")
    with pytest.raises(DivergedError, match="found NaN or infinity in"):
        train_ranks(loaded, 3)
    assert newest_step(loaded) < last + 1
    monkeypatch.delenv("RANK_FAULT")
    assert train_ranks(loaded, 3).content["steps"] == last + 1


def test_r23_a_poisoned_row_is_found_in_the_step_in_which_one_process_finds_it(
    tmp_path: Path,
) -> None:
    table = quantity_table(60, features=4)
    values = table["y"].to_pylist()
    values[17] = 1e30  # its square is infinite in float32
    table = table.set_column(table.num_columns - 1, "y", [values])
    split = {"kind": "ordered", "fractions": {"train": 0.8, "valid": 0.2}}
    said = []
    for size in (0, 2, 3):
        loaded = custom_spec(tmp_path / str(size), table=table, data={"split": split})
        with pytest.raises(DivergedError) as caught:
            train_ranks(loaded, size)
        said.append(str(caught.value).removeprefix("rank 0: "))
    assert said == [said[0]] * 3
    assert re.search(r"found inf in step \d ", said[0])


# --- code that fails on one rank --------------------------------------------------------------

SKIPPING_NET = """
import torch.distributed as dist
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.other = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.forwards = 0

    def forward(self, numeric_BF, codes_BC):
        outputs_BK = self.line(numeric_BF)
        if self.training and dist.is_initialized():
            self.forwards += 1
            if self.forwards == {forward} and dist.get_rank() in {ranks}:
                return outputs_BK
        return outputs_BK + self.other(numeric_BF)
"""


@pytest.mark.parametrize("ranks", [(1,), (0, 1, 2)])
def test_r24_a_step_that_skips_a_parameter_is_an_error_before_anything_comes_of_it(
    tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    code = SKIPPING_NET.format(forward=forwards_before(5, "order") + 1, ranks=ranks)
    every_step = {"every_steps": 1, "every_seconds": None}
    loaded = custom_spec(tmp_path, code, training={"checkpoint": every_step})
    with pytest.raises(TrainingError, match=r"one that does not use 'other\.weight'") as caught:
        train_ranks(loaded, 3, limits=STUCK)
    assert type(caught.value) is TrainingError
    assert newest_step(loaded) <= 5


FAILURES: list[tuple[str, type[BatchtrainError], str]] = [
    ("raise", RankFailedError, r"rank 1 of 3 .*ValueError: these rows are not to my taste"),
    ("exit", RankFailedError, r"rank 1 of 3 .*found SystemExit: 0"),
    ("leave", RankLostError, r"rank 1 of 3 .*its process ended with exit code 0"),
    ("build", TrainingError, r"rank 1: model\.target .*ValueError: this machine is not to my"),
]


FAILING = [
    pytest.param(
        *failure,
        determinism,
        # What one way of the batch shows, the other one seldom hides.
        marks=[] if (failure[0] == "raise") == (determinism == "canonical") else pytest.mark.long,
        id=f"{failure[0]}, {determinism}",
    )
    for failure in FAILURES
    for determinism in ("order", "canonical")
]


@pytest.mark.parametrize(("what", "kind", "said", "determinism"), FAILING)
def test_r24_code_that_fails_on_one_rank_ends_all_with_its_error(
    tmp_path: Path,
    pids: Path,
    monkeypatch: pytest.MonkeyPatch,
    determinism: Determinism,
    what: str,
    kind: type[BatchtrainError],
    said: str,
) -> None:
    number = 0 if what == "build" else forwards_before(4, determinism) + 1
    monkeypatch.setenv("RANK_FAULT", f"{what}:1:{number}")
    with pytest.raises(kind, match=said) as caught:
        train_ranks(custom_spec(tmp_path / "failing", determinism=determinism), 3)
    assert type(caught.value) is kind
    if what == "raise":
        assert "in strike" in str(caught.value)
