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
from pathlib import Path
from typing import Any

import pytest
import ray

from batchtrain.artifacts.claims import read_claims
from batchtrain.engines.session import RaySession
from batchtrain.errors import BatchtrainError, RankLostError, RankStuckError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.training.supervision import GroupLimits
from tests.support.builders import layout_for
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
EPOCHS = 6
KILLS = 3
MANY_KILLS = 20
SEED = 20_261_121

STEPS = 6 * EPOCHS


def spec_with_retries(folder: Path, retries: int = KILLS, *, epochs: int = EPOCHS) -> LoadedSpec:
    """A checkpoint every second step, and so many losses allowed."""
    loaded = small_spec(folder, epochs=epochs)
    return load_spec(loaded.path, [f"retries={{lost_worker: {retries}}}"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What three ranks give that nobody kills; without Ray, which has no part in it."""
    loaded = small_spec(tmp_path_factory.mktemp("undisturbed") / "run", epochs=EPOCHS)
    return compared(train_ranks(loaded, RANKS))


def kill_points(kills: int) -> dict[int, dict[int, str]]:
    """For each attempt a rank, a point and how often it is passed before the kill; seeded."""
    chosen = random.Random(SEED)  # noqa: S311 - it is to be the same each time
    points = ("step.rows", "step.forward", "step.optimizer")
    return {
        claim: {chosen.randrange(RANKS): f"{chosen.choice(points)}:{chosen.randrange(4, 9)}:kill"}
        for claim in range(1, kills + 1)
    }


class KillAtEpoch(Progress):
    """Kills something when an epoch is over, once for each of some epochs."""

    def __init__(self, epochs: list[int], kill: Callable[[], None]) -> None:
        self.notes: list[str] = []
        self._epochs = list(epochs)
        self._kill = kill

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        if self._epochs and record["epoch"] >= self._epochs[0]:
            self._epochs.pop(0)
            self._kill()

    def note(self, text: str) -> None:
        self.notes.append(text)


def num_claims(loaded: LoadedSpec) -> int:
    layout = layout_for(loaded)
    return len(read_claims(layout.storage, layout.root))


@pytest.mark.parametrize(
    "kills", [KILLS, pytest.param(MANY_KILLS, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_r12_killed_ranks_change_no_byte(
    kills: int, tmp_path: Path, ray_session: RaySession, undisturbed: dict[str, str]
) -> None:
    loaded = spec_with_retries(tmp_path / "killed", kills)
    told = Told()
    faults = kill_points(kills)
    trained = train_on_ray(loaded, ray_session, RANKS, progress=told, faults=faults)
    assert compared(trained) == undisturbed
    lost = [note for note in told.notes if "its process is gone" in note]
    # With many kills the last attempts may reach the end before their point comes.
    assert len(lost) == kills or kills > STEPS // 4
    (first_rank,) = faults[1]
    assert f"expected rank {first_rank} of {RANKS} to go on" in lost[0]
    assert f"retry lost_worker: 1 of {kills}" in lost[0]


def test_a_lost_rank_without_a_retry_left_is_an_error(
    tmp_path: Path, ray_session: RaySession
) -> None:
    loaded = spec_with_retries(tmp_path / "killed", 0)
    with pytest.raises(RankLostError, match="its process is gone") as caught:
        train_on_ray(loaded, ray_session, RANKS, faults=kill_points(1))
    assert len(str(caught.value).splitlines()) < 5
    assert num_claims(loaded) == 1


@pytest.mark.parametrize(
    "kills", [KILLS, pytest.param(MANY_KILLS, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_r13_a_killed_controller_changes_no_byte(
    kills: int, tmp_path: Path, ray_session: RaySession, undisturbed: dict[str, str]
) -> None:
    loaded = spec_with_retries(tmp_path / "killed", kills)

    def kill() -> None:
        for pid in actor_pids("TrainController"):
            os.kill(pid, signal.SIGKILL)

    told = KillAtEpoch([1 + place * EPOCHS // (kills + 1) for place in range(kills)], kill)
    trained = train_on_ray(loaded, ray_session, RANKS, progress=told)
    assert compared(trained) == undisturbed
    lost = [note for note in told.notes if "expected Ray Train's controller to stay" in note]
    assert len(lost) == kills


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.long)])
def test_r15_a_killed_driver_changes_no_byte(
    kills: int, tmp_path: Path, ray_session: RaySession, undisturbed: dict[str, str]
) -> None:
    loaded = spec_with_retries(tmp_path / "killed")
    command = _command(loaded, ray_session)
    done = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
            step = _wait_for_checkpoint(loaded, done, driver)
            os.kill(driver.pid, signal.SIGKILL)
        if step >= STEPS - 2:
            break
        done = step
        wait_until_gone(actor_pids("RayTrainWorker"))
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "train     resumed" in result.stdout
    trained = run_spec(loaded, last="train").trained
    assert trained is not None
    assert compared(trained) == undisturbed
    assert "(raylet)" not in result.stdout + result.stderr


def _command(loaded: LoadedSpec, session: RaySession) -> list[str]:
    """What a user types to train on a cluster that is there."""
    session.connect()
    address = ray.get_runtime_context().gcs_address
    return [
        *(sys.executable, "-m", "batchtrain", "train", str(loaded.path)),
        *("--address", address, "--set", f"resources.workers={RANKS}"),
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


def test_r14_what_lies_in_the_folder_of_ray_does_not_matter(
    tmp_path: Path, ray_session: RaySession
) -> None:
    """Each attempt has a name and a folder of its own towards Ray, and both are gone after it."""
    loaded = small_spec(tmp_path / "run", epochs=1)
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("batchtrain-ray-*"))
    train_on_ray(loaded, ray_session, 1)
    assert set(temporary.glob("batchtrain-ray-*")) <= before
    assert not list((tmp_path / "run").rglob("checkpoint_manager_snapshot.json"))


def test_r21_a_rank_that_is_stopped_is_found_and_the_run_goes_on(
    tmp_path: Path, ray_session: RaySession, undisturbed: dict[str, str]
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
    assert compared(trained) == undisturbed
    (lost,) = [note for note in told.notes if "nothing was heard of it" in note]
    assert f"expected rank 1 of {RANKS}" in lost


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
