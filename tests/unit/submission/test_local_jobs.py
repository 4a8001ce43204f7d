"""Jobs on this machine: processes that outlive who started them, whatever ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchtrain.artifacts.process_identity import this_process
from batchtrain.errors import ClusterError
from batchtrain.submission.local_jobs import LocalJobs
from batchtrain.submission.request import JobRequest, JobStatus

NAME = "tiny-0123456789ab"

QUICK = "import os, sys; print('hello', os.environ['ANSWER'], os.getcwd()); sys.exit({code})"
UNTIL_SIGNAL = """\
import signal, sys
def end(*_):
    print("a checkpoint", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    signal.pause()
"""
DEAF = """\
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    """Nothing of what a test started is left."""
    jobs = LocalJobs(tmp_path / "runs")
    yield jobs
    for job in jobs.jobs():
        LocalJobs(tmp_path / "runs", stop_wait_s=0.0).stop(job.submission_id)


def request(name: str = NAME) -> JobRequest:
    return JobRequest(
        name,
        "python job.py",
        {},
        runtime_env={"env_vars": {"ANSWER": "42"}},
        metadata={"run": "tiny"},
    )


def submit(jobs: LocalJobs, script: str, folder: Path, name: str = NAME) -> tuple[JobStatus, bool]:
    staged = folder / "staged"
    staged.mkdir(exist_ok=True)
    (staged / "job.py").write_text(script)
    return jobs.submit(request(name), staged)


def ended(jobs: LocalJobs, name: str = NAME) -> JobStatus:
    while not (job := jobs.status(name)).is_over:
        time.sleep(0.01)
    return job


def until_ready(jobs: LocalJobs) -> None:
    while "ready" not in jobs.log(NAME):
        time.sleep(0.01)


@pytest.mark.parametrize(("code", "state"), [(0, "succeeded"), (7, "failed")])
def test_a_job_runs_in_its_working_directory_and_leaves_its_exit_code(
    code: int, state: str, jobs: LocalJobs, tmp_path: Path
) -> None:
    job, is_new = submit(jobs, QUICK.format(code=code), tmp_path)
    assert (job.submission_id, is_new, job.metadata) == (NAME, True, {"run": "tiny"})

    job = ended(jobs)

    assert (job.state, job.exit_code) == (state, code)
    assert jobs.log(NAME) == f"hello 42 {tmp_path}/runs/_jobs/{NAME}/work\n"
    # Another process knows as much.
    assert LocalJobs(tmp_path / "runs").status(NAME) == job


def test_j05_submitted_twice_is_one_job(jobs: LocalJobs, tmp_path: Path) -> None:
    submit(jobs, QUICK.format(code=0), tmp_path)
    _, is_new = submit(jobs, QUICK.format(code=0), tmp_path)
    ended(jobs)

    assert is_new is False
    assert len(jobs.jobs()) == 1
    assert jobs.log(NAME).count("hello") == 1


def test_a_job_outlives_who_submitted_it(jobs: LocalJobs, tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "job.py").write_text(UNTIL_SIGNAL)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from batchtrain.submission.local_jobs import LocalJobs\n"
        "from batchtrain.submission.request import JobRequest\n"
        f"LocalJobs(Path({str(tmp_path / 'runs')!r})).submit("
        f"JobRequest({NAME!r}, 'python job.py', {{}}), Path({str(tmp_path / 'staged')!r}))\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, start_new_session=True)
    assert done.returncode == -signal.SIGKILL

    until_ready(jobs)
    assert jobs.status(NAME).state == "running"
    job = jobs.stop(NAME)
    assert (job.state, job.exit_code) == ("stopped", 130)
    assert jobs.log(NAME) == "ready\na checkpoint\n"


def test_j09_a_stop_in_each_state(jobs: LocalJobs, tmp_path: Path) -> None:
    submit(jobs, UNTIL_SIGNAL, tmp_path)
    until_ready(jobs)

    assert jobs.stop(NAME).state == "stopped"
    assert jobs.stop(NAME).state == "stopped"

    submit(jobs, QUICK.format(code=0), tmp_path, f"{NAME}-2")
    ended(jobs, f"{NAME}-2")
    assert jobs.stop(f"{NAME}-2").state == "succeeded"


def test_j09_a_stop_before_it_starts(
    jobs: LocalJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = LocalJobs._start
    monkeypatch.setattr(LocalJobs, "_start", lambda *_: None)
    job, _ = submit(jobs, "print('never')", tmp_path)
    assert job.state == "pending"
    folder = tmp_path / "runs" / "_jobs" / NAME

    def start_late(_seconds: float) -> None:
        if not (folder / "process.json").exists():
            start(jobs, folder, {})

    job = LocalJobs(tmp_path / "runs", sleep=start_late).stop(NAME)

    assert (job.state, job.exit_code) == ("stopped", 130)
    assert jobs.log(NAME) == ""


def test_j09_a_job_that_does_not_listen_is_killed(jobs: LocalJobs, tmp_path: Path) -> None:
    submit(jobs, DEAF, tmp_path)
    until_ready(jobs)

    job = LocalJobs(tmp_path / "runs", stop_wait_s=0.1).stop(NAME)

    assert (job.state, job.exit_code) == ("stopped", None)


def test_a_job_that_was_killed_is_failed(jobs: LocalJobs, tmp_path: Path) -> None:
    submit(jobs, UNTIL_SIGNAL, tmp_path)
    until_ready(jobs)
    process = json.loads((tmp_path / "runs" / "_jobs" / NAME / "process.json").read_bytes())
    os.killpg(process["identity"]["pid"], signal.SIGKILL)

    job = ended(jobs)

    assert (job.state, job.exit_code, job.message) == ("failed", None, "its process was killed")


def test_a_submission_that_died_half_way_is_failed(jobs: LocalJobs, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "_jobs" / NAME
    folder.mkdir(parents=True)
    dead = {**this_process().__dict__, "started": 1}
    job = {"entrypoint": "python job.py", "metadata": {}, "submitted": 1.0, "by": dead}
    (folder / "job.json").write_text(json.dumps(job))

    assert jobs.status(NAME).state == "failed"


def test_a_submission_that_cannot_be_is_failed_and_says_so(jobs: LocalJobs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        jobs.submit(request(), tmp_path / "gone")
    assert jobs.status(NAME).state == "failed"
    assert "not started" in jobs.status(NAME).message


def test_an_unknown_job_is_an_error(jobs: LocalJobs) -> None:
    for ask in (jobs.status, jobs.log, jobs.stop):
        with pytest.raises(ClusterError, match="expected a job 'nobody'"):
            ask("nobody")
    with pytest.raises(ClusterError, match="id of a job"):
        jobs.status("../../etc")
    assert jobs.jobs() == []
