"""`batchtrain submit` to a cluster on this machine, with a token, as a user does it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.head import BIN, Head, starting_head
from tests.cluster.test_cluster import QUICK, assert_reused, digests
from tests.support.runs import SPECS, FinishedRun, finish

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

SPEC = SPECS / "drug200.yaml"
LIMIT_S = 110
LONG = ("training.epochs=1000000", "training.compile=false")
ONE = "resources.workers=1"
"""So that a job waits for its core before it has a process."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two cores, so that a third job waits."""
    with starting_head(num_cpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run in this process."""
    return finish(SPEC, *QUICK, f"storage={tmp_path_factory.mktemp('local')}")


def command(head: Head, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of batchtrain; RAY_AUTH_MODE is not set, as users forget it."""
    environ = {key: value for key, value in head.environ.items() if key != "RAY_AUTH_MODE"}
    return subprocess.run(
        [BIN / "batchtrain", name, *words, "--address", head.dashboard],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def submit(head: Head, *overrides: str, words: tuple[str, ...] = ()) -> Any:
    sets = [word for each in overrides for word in ("--set", each)]
    return command(head, "submit", str(SPEC), *sets, *words)


def submitted(done: subprocess.CompletedProcess[str]) -> str:
    found = re.match(r"(?:submitted|found) (\S+)", done.stdout)
    assert found is not None, done
    return found[1]


def standing(head: Head, name: str) -> dict[str, Any]:
    done = command(head, "status", name, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_submitted_spec_is_one_job_and_leaves_what_a_run_here_leaves(
    head: Head, shared: Path, local: FinishedRun
) -> None:
    done = submit(head, *QUICK, f"storage={shared}")

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    name = submitted(done)
    lines = done.stdout.splitlines()
    there = finish(SPEC, *QUICK, f"storage={shared}")
    assert_reused(there)
    assert digests(there) == digests(local)
    assert lines[-1].split() == ["bundle", str(there.bundle_folder)]
    assert [line for line in lines if "Running entrypoint" in line or "INFO" in line] == []

    again = submit(head, *QUICK, f"storage={shared}")

    assert again.returncode == 0
    assert again.stdout.splitlines()[0] == f"found {name}  succeeded"
    jobs = head.ask("jobs/")
    submitted_ids = {job["submission_id"] for job in jobs if job["type"] == "SUBMISSION"}
    # Before the first of them was sent, a small job looked at the storage.
    assert {each for each in submitted_ids if not each.startswith("probe-")} == {name}
    [job] = [job for job in jobs if job["submission_id"] == name]
    assert re.fullmatch(r"python -m batchtrain\.cli\.entry [0-9a-f]{64}", job["entrypoint"])
    token = Path(head.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert token not in json.dumps(jobs) + done.stdout + again.stdout
    assert standing(head, name)["places"]["bundle"] == str(there.bundle_folder)


@pytest.mark.long
def test_a_job_that_fails_gives_its_exit_code_and_goes_on_under_another_name(
    head: Head, shared: Path, local: FinishedRun
) -> None:
    require = "evaluation.require={log_loss: '<= 0'}"

    first = submit(head, *QUICK, f"storage={shared}", require)
    second = submit(head, *QUICK, f"storage={shared}", require, words=("--detach",))

    assert first.returncode == 1
    assert "ModelRejectedError" in first.stdout
    assert re.search(r"^\S+  failed, exit code 1", first.stdout.splitlines()[-1])
    assert submitted(second) == f"{submitted(first)}-2"
    assert command(head, "logs", "-f", submitted(second)).returncode == 1


@pytest.mark.long
def test_j09_a_stop_while_it_waits_and_while_it_runs(head: Head, shared: Path) -> None:
    names = []
    for seed in range(3):
        done = submit(head, f"seed={seed}", *LONG, ONE, f"storage={shared}", words=("--detach",))
        names.append(submitted(done))
    while "Epoch [1/1000000]" not in command(head, "logs", names[0]).stdout:
        time.sleep(0.5)
    assert standing(head, names[2])["state"] == "pending"

    waiting, running = (command(head, "stop", name) for name in (names[2], names[0]))

    assert (waiting.returncode, running.returncode) == (0, 0), waiting.stderr + running.stderr
    assert standing(head, names[2])["state"] == "stopped"
    assert "prepare" not in command(head, "logs", names[2]).stdout
    assert (standing(head, names[0])["state"], standing(head, names[0])["exit_code"]) == (
        "stopped",
        130,
    )
    said = command(head, "logs", names[0]).stdout
    found = re.search(r"stopped after step \d+; .* the checkpoint is (\S+)\. Run the same", said)
    assert found is not None, said
    assert Path(found[1], "manifest.json").is_file()
    command(head, "stop", names[1])
    # None of them is joined: each is another attempt, which goes on from its checkpoint.
    again = submit(head, "seed=0", *LONG, ONE, f"storage={shared}", words=("--detach",))
    assert submitted(again) == f"{names[0]}-2"
    assert command(head, "stop", submitted(again)).returncode == 0


@pytest.mark.long
def test_j09_a_stop_while_a_job_with_a_process_waits_for_a_core(head: Head, shared: Path) -> None:
    """Whether it is to have ranks it knows only when it has prepared."""
    names = []
    for seed in (4, 5, 6):
        done = submit(head, f"seed={seed}", *LONG, f"storage={shared}", words=("--detach",))
        names.append(submitted(done))
    waiting = ""
    while not waiting:
        time.sleep(0.5)
        logs = {name: command(head, "logs", name).stdout for name in names}
        waiting = next((name for name, log in logs.items() if "waiting for 1 free" in log), "")
    stopped = [command(head, "stop", name) for name in (waiting, *(set(names) - {waiting}))]

    assert [done.returncode for done in stopped] == [0, 0, 0]
    assert "Epoch" not in command(head, "logs", waiting).stdout
    for name in names:
        found = standing(head, name)
        assert (found["state"], found["exit_code"]) == ("stopped", 130)


@pytest.mark.long
def test_stages_in_jobs_of_their_own_leave_the_same(
    head: Head, tmp_path: Path, local: FinishedRun
) -> None:
    done = submit(head, *QUICK, f"storage={tmp_path}", words=("--stages", "separate"))

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    name = submitted(done)
    there = finish(SPEC, *QUICK, f"storage={tmp_path}")
    assert_reused(there)
    assert digests(there) == digests(local)
    stages = ["prepare", "train", "evaluate", "export"]
    for stage in stages:
        assert f"{stage:<9} started: {name}-{stage}" in done.stdout.splitlines()
        job = standing(head, f"{name}-{stage}")
        assert (job["state"], job["metadata"]["part_of"]) == ("succeeded", name)
    # Each stage looks at its rows again, and finds in seconds that it is done.
    once_more = submit(
        head, *QUICK, f"storage={tmp_path}", words=("--stages", "separate", "--again")
    )
    assert submitted(once_more) == f"{name}-2"
    for stage in stages:
        assert f"{stage:<9} started: {name}-{stage}-2" in once_more.stdout.splitlines()
    assert_reused(finish(SPEC, *QUICK, f"storage={tmp_path}"))
