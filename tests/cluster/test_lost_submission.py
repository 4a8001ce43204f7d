"""What is lost between a submission and its job: the head, or the reply."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.head import BIN, Head, starting_head
from tests.cluster.test_cluster import QUICK, assert_reused, digests
from tests.support.runs import SPECS, FinishedRun, finish

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.fault,
    pytest.mark.long,
    pytest.mark.timeout(300),
]

SPEC = SPECS / "drug200.yaml"
LIMIT_S = 110
LONG = ("training.epochs=1000000", "training.compile=false", "resources.workers=1")
ONE = "resources.workers=1"
"""So that a job waits for its core before it has a process."""

LOSING = """\
import sys
import ray.job_submission as jobs
from requests.exceptions import ConnectionError

Client, MOMENT = jobs.JobSubmissionClient, sys.argv.pop(1)
whole, lost = Client._do_request, []

def losing(self, method, endpoint, *words, **options):
    # The job itself, not the probe that goes before it.
    is_job = (method, endpoint) == ("POST", "/api/jobs/") and "drug200" in str(options)
    if not is_job or lost:
        return whole(self, method, endpoint, *words, **options)
    lost.append(endpoint)
    if MOMENT == "reply":
        whole(self, method, endpoint, *words, **options)
    raise ConnectionError("Connection aborted.")

Client._do_request = losing
from batchtrain.cli import main
try:
    main()
finally:
    print(f"lost {len(lost)}")
"""
"""`batchtrain` whose first submission is lost: the `request` on its way there, or the `reply`."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run in this process."""
    return finish(SPEC, *QUICK, f"storage={tmp_path_factory.mktemp('local')}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with starting_head(num_cpus=1) as started:
        yield started


def submit(
    head: Head, *overrides: str, words: tuple[str, ...] = (), program: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    sets = [word for each in overrides for word in ("--set", each)]
    return subprocess.run(
        [
            *(program or (str(BIN / "batchtrain"),)),
            *("submit", str(SPEC), *sets, *words, "--address", head.dashboard),
        ],
        env=head.environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def sent(head: Head) -> list[dict[str, Any]]:
    """The jobs of specs that the head knows; probes are no such jobs."""
    jobs = [job for job in head.ask("jobs/") if job["type"] == "SUBMISSION"]
    return [job for job in jobs if "run" in job["metadata"]]


def assert_one_whole_run(storage: Path, local: FinishedRun) -> None:
    """One run, each artifact once, and the bytes of a run that nothing disturbed."""
    there = finish(SPEC, *QUICK, f"storage={storage}")
    assert_reused(there)
    assert digests(there) == digests(local)
    assert published(storage) == published(Path(local.loaded.spec.storage))


def published(storage: Path) -> list[str]:
    """The artifacts that are there, by what they are."""
    found = storage.rglob("manifest.json")
    return sorted(path.relative_to(storage).parent.as_posix() for path in found)


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "just sent"])
def test_j05_after_a_head_that_took_a_job_with_it_the_same_command_is_one_run(
    tmp_path: Path, local: FinishedRun, waits: bool
) -> None:
    storage = tmp_path / "shared"
    with starting_head(num_cpus=1) as head:
        if waits:
            submit(head, *LONG, f"storage={tmp_path / 'other'}", words=("--detach",))
        first = submit(head, *QUICK, ONE, f"storage={storage}", words=("--detach", "--json"))
        assert first.returncode == 0, first.stderr
        if waits:
            [job] = [job for job in sent(head) if job["metadata"]["storage"] == str(storage)]
            assert job["status"] == "PENDING"
    # Here it was killed, and with it all that it had started and knew.
    with starting_head(num_cpus=1) as head:
        second = submit(head, *QUICK, ONE, f"storage={storage}", words=("--json",))
        assert second.returncode == 0, second.stderr
        assert [job["status"] for job in sent(head)] == ["SUCCEEDED"]
    names = [json.loads(done.stdout)["submission_id"] for done in (first, second)]
    assert names[0] == names[1]
    assert [path.name for path in (storage / "_jobs").iterdir()] == [names[0]]
    assert_one_whole_run(storage, local)


@pytest.mark.parametrize("moment", ["reply", "request"])
def test_j05_a_submission_whose_reply_is_lost_is_one_job(
    head: Head, tmp_path: Path, local: FinishedRun, moment: str
) -> None:
    script = tmp_path / "losing.py"
    script.write_text(LOSING)
    before = len(sent(head))

    done = submit(
        head,
        *QUICK,
        f"storage={tmp_path / 'shared'}",
        program=(sys.executable, str(script), moment),
    )

    assert "lost 1" in done.stdout, done
    assert (done.returncode, len(sent(head)) - before) == (
        (0, 1) if moment == "reply" else (1, 0)
    ), done
    again = submit(head, *QUICK, f"storage={tmp_path / 'shared'}")
    assert again.returncode == 0, again
    assert again.stdout.startswith("found" if moment == "reply" else "submitted")
    assert len(sent(head)) - before == 1
    assert_one_whole_run(tmp_path / "shared", local)


def test_j07_a_job_that_ray_gives_up_is_told_of_and_the_next_attempt_is_the_only_run(
    tmp_path: Path, local: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_START_TIMEOUT_SECONDS", "4")
    storage, once = tmp_path / "shared", (*QUICK, ONE)
    with starting_head(num_cpus=1) as head:
        other = submit(head, *LONG, f"storage={tmp_path / 'other'}", words=("--detach", "--json"))
        first = submit(head, *once, f"storage={storage}", words=("--json",))
        name = json.loads(other.stdout.splitlines()[-1])["submission_id"]
        stop = ["stop", name, "--address", head.dashboard]
        subprocess.run([BIN / "batchtrain", *stop], env=head.environ, check=True, timeout=LIMIT_S)
        second = submit(head, *once, f"storage={storage}", words=("--json",))

    assert first.returncode == 1
    assert "RAY_JOB_START_TIMEOUT_SECONDS" in first.stdout + first.stderr
    assert second.returncode == 0, second.stderr
    names = [json.loads(done.stdout.splitlines()[-1])["submission_id"] for done in (first, second)]
    assert names[1] == f"{names[0]}-2"
    assert_one_whole_run(storage, local)
