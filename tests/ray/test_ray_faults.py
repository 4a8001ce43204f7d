"""What dies under a training on Ray changes nothing of what comes out of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray

from batchtrain.engines.session import RaySession
from batchtrain.errors import BatchtrainError, RankLostError, RankStuckError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.training.supervision import GroupLimits
from tests.support.on_ray import actor_pids, train_on_ray
from tests.support.ranks import (
    Told,
    compared,
    newest_step,
    small_spec,
    train_ranks,
    wait_until_gone,
)

pytestmark = [pytest.mark.ray, pytest.mark.fault]

RANKS = 3
FEW_RANKS = 2
"""Where it is not the ranks that die."""

EPOCHS = 6
KILLS = 3
MANY_KILLS = 20
FEW_KILLS = 2
"""In what is run each time: after the second all is as after the first, and so on."""
SEED = 20_261_121


def spec_with_retries(folder: Path, retries: int = KILLS) -> LoadedSpec:
    """A checkpoint every second step, and so many losses allowed."""
    loaded = small_spec(folder, epochs=epochs_for(retries))
    return load_spec(loaded.path, [f"retries={{lost_worker: {retries}}}"])


def epochs_for(kills: int) -> int:
    """Enough of them to be killed so often."""
    return max(EPOCHS, 2 * kills)


@cache
def undisturbed(epochs: int = EPOCHS, ranks: int = RANKS) -> dict[str, str]:
    """What so many ranks give that nobody kills; without Ray, which has no part in it."""
    with tempfile.TemporaryDirectory() as folder:
        return compared(train_ranks(small_spec(Path(folder) / "run", epochs=epochs), ranks))


def kill_points(kills: int) -> dict[int, dict[int, str]]:
    """For each attempt a rank, a point and how often it is passed before the kill; seeded."""
    chosen = random.Random(SEED)  # noqa: S311 - it is to be the same each time
    points = ("step.rows", "step.forward", "step.optimizer")
    return {
        claim: {chosen.randrange(RANKS): f"{chosen.choice(points)}:{chosen.randrange(4, 9)}:kill"}
        for claim in range(1, kills + 1)
    }


class KillsOnce(Progress):
    """Kills something when an epoch is heard of, once in each of some attempts."""

    def __init__(self, first: int, kills: int, kill: Callable[[], None]) -> None:
        """Let so many attempts pass first."""
        self.notes: list[str] = []
        self._passes = first
        self._left = kills
        self._is_armed = not first
        self._kill = kill

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        if self._is_armed and self._left:
            self._is_armed = False
            self._left -= 1
            self._kill()

    def note(self, text: str) -> None:
        self.notes.append(text)
        if "(retry " in text:
            self._passes -= 1
            self._is_armed = self._passes <= 0


def kill_controllers() -> None:
    for pid in actor_pids("TrainController"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("ranks", "controllers"),
    [
        (FEW_KILLS, FEW_KILLS - 1),
        pytest.param(KILLS, KILLS, marks=pytest.mark.long),
        pytest.param(MANY_KILLS, 0, marks=pytest.mark.long),
        pytest.param(0, MANY_KILLS, marks=pytest.mark.long),
    ],
)
def test_r12_r13_r14_killed_ranks_and_controllers_change_no_byte(
    ranks: int, controllers: int, tmp_path: Path, ray_session: RaySession
) -> None:
    """The first attempts lose a rank each, the next ones Ray Train's controller."""
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("batchtrain-ray-*"))
    kills = ranks + controllers
    loaded = spec_with_retries(tmp_path / "killed", kills)
    faults = kill_points(ranks)
    # Slow steps, so that a training is met in the middle however late its news come.
    slow = ",".join(f"step.optimizer:{step}:delay=0.2" for step in range(1, 9))
    faults |= {claim: {0: slow} for claim in range(ranks + 1, kills + 1)}
    told = KillsOnce(ranks, controllers, kill_controllers)
    trained = train_on_ray(loaded, ray_session, RANKS, progress=told, faults=faults)
    assert compared(trained) == undisturbed(epochs_for(kills))
    lost = [note for note in told.notes if "lost_worker" in note]
    assert len(lost) == kills
    for place, note in enumerate(lost, 1):
        assert f"(retry lost_worker: {place} of {kills})" in note
        if place <= ranks:
            (rank,) = faults[place]
            assert f"expected rank {rank} of {RANKS} to go on, found that its process" in note
        else:
            assert "expected Ray Train's controller to stay" in note
    # What Ray writes of its own lies in a folder of each attempt, which nothing reads.
    assert set(temporary.glob("batchtrain-ray-*")) <= before
    assert not list((tmp_path / "killed").rglob("checkpoint_manager_snapshot.json"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [FEW_KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.long)])
def test_r15_a_killed_driver_changes_no_byte(
    kills: int, tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = spec_with_retries(tmp_path / "killed", kills)
    command = _command(loaded, ray_session)
    done = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
            step = _wait_for_checkpoint(loaded, done, driver)
            os.kill(driver.pid, signal.SIGKILL)
        done = step
        wait_until_gone(actor_pids("RayTrainWorker"))
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "train     resumed" in result.stdout
    trained = run_spec(loaded, last="train").trained
    assert trained is not None
    assert compared(trained) == undisturbed(epochs_for(kills), FEW_RANKS)
    assert "(raylet)" not in result.stdout + result.stderr


def _command(loaded: LoadedSpec, session: RaySession) -> list[str]:
    """What a user types to train on a cluster that is there."""
    session.connect()
    address = ray.get_runtime_context().gcs_address
    return [
        *(sys.executable, "-m", "batchtrain", "train", str(loaded.path)),
        *("--address", address, "--set", f"resources.workers={FEW_RANKS}"),
    ]


def _wait_for_checkpoint(loaded: LoadedSpec, after: int, driver: subprocess.Popen[bytes]) -> int:
    """Wait until a checkpoint is published that is newer than a step."""
    while driver.poll() is None:
        with suppress(BatchtrainError, FileNotFoundError):
            step = newest_step(loaded)
            if step > after:
                return step
        time.sleep(0.02)
    raise AssertionError(f"the driver has ended with {driver.returncode} before it could be killed")


@pytest.mark.long
def test_r09_a_lost_run_goes_on_with_another_number_of_workers(
    tmp_path: Path, ray_session: RaySession
) -> None:
    def canonical(folder: Path) -> LoadedSpec:
        return load_spec(
            small_spec(folder).path, ["determinism=canonical", "retries.lost_worker=0"]
        )

    alone = train_ranks(canonical(tmp_path / "alone"))
    loaded = canonical(tmp_path / "killed")
    with pytest.raises(RankLostError, match="its process is gone") as caught:
        train_on_ray(loaded, ray_session, RANKS, faults={1: {1: "step.optimizer:8:kill"}})
    assert len(str(caught.value).splitlines()) < 5
    assert newest_step(loaded) > 0
    assert compared(train_on_ray(loaded, ray_session, 2)) == compared(alone)


@pytest.mark.long
def test_r21_a_rank_that_is_stopped_is_found_and_the_run_goes_on(
    tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = spec_with_retries(tmp_path / "stopped")
    told = Told()
    trained = train_on_ray(
        loaded,
        ray_session,
        RANKS,
        progress=told,
        faults={1: {1: "step.forward:9:stop"}},
        limits=GroupLimits(silent_seconds=4),
    )
    assert compared(trained) == undisturbed()
    (lost,) = [note for note in told.notes if "nothing was heard of it" in note]
    assert f"expected rank 1 of {RANKS}" in lost


@pytest.mark.long
def test_r21_a_rank_that_hangs_is_found_and_its_stack_is_kept(
    tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = spec_with_retries(tmp_path / "hung", 0)
    with pytest.raises(RankStuckError, match="expected rank 2 of 3 to go on, found it stuck"):
        train_on_ray(
            loaded,
            ray_session,
            RANKS,
            faults={1: {2: "step.optimizer:9:delay=600"}},
            limits=GroupLimits(stuck_seconds=4),
        )
    stacks = next((tmp_path / "hung").rglob("rank-2.stacks.txt")).read_text()
    assert "train_rank" in stacks
