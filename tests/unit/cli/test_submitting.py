"""The commands for jobs, against a backend in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from batchtrain.cli.app import app
from batchtrain.cli.submitting import Cluster
from batchtrain.storage import FolderStorage
from batchtrain.submission.request import JobRequest, JobState
from batchtrain.submission.results import JobResult, publish_result
from tests.support.jobs import FakeJobs

CANARY = "canary-5f1d"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    found = FakeJobs()
    monkeypatch.setattr(Cluster, "connect", lambda *_: found)
    # What is looked at before is the subject of test_submit_checks.py.
    monkeypatch.setattr("batchtrain.cli.submitting.check", lambda *_, **__: None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    return found


@pytest.fixture
def command(jobs: FakeJobs, tiny_spec: Path, tmp_path: Path) -> Callable[..., Result]:
    def command(name: str, *words: str) -> Result:
        spec = [str(tiny_spec), "--set", f"storage={tmp_path / 'runs'}"] if name == "submit" else []
        return CliRunner().invoke(app, [name, *spec, *words])

    return command


Command = Callable[..., Result]


def ends(jobs: FakeJobs, state: JobState, code: int | None, log: str = "") -> None:
    """Jobs run at once, and end so."""

    def run(request: JobRequest, _staged: Path) -> JobState:
        jobs.logs[request.submission_id] = log
        jobs.set(request.submission_id, "running", exit_code=code)
        return state

    jobs._run = run


def test_a_dry_run_prints_all_that_would_be_sent_and_sends_nothing(
    command: Command, jobs: FakeJobs, tmp_path: Path
) -> None:
    for_people, for_programs = (
        command("submit", "--dry-run"),
        command("submit", "--dry-run", "--json"),
    )

    shown, document = yaml.safe_load(for_people.stdout), json.loads(for_programs.stdout)
    assert shown["files"] == document["files"]
    files = {file["name"]: file["sha256"] for file in document["files"]}
    assert {"job/tiny.csv", "job/tiny.yaml", "batchtrain/cli/entry.py"} <= set(files)
    assert document["arguments"]["files"] == files
    assert re.fullmatch(r"python -m batchtrain\.cli\.entry [0-9a-f]{64}", shown["entrypoint"])
    assert shown["resources"] == {"cpus": 0.0, "gpus": 0.0, "memory_bytes": 2 * 2**30}
    assert shown["metadata"]["storage"] == str(tmp_path / "runs")
    assert set(shown["runtime_env"]) == {"env_vars"}
    assert jobs.requests == []
    assert CANARY not in for_people.output + for_programs.output
    assert not (tmp_path / "runs").exists()

    ends(jobs, "succeeded", 0)
    command("submit")
    [sent] = jobs.requests
    assert sent.submission_id == document["submission_id"]
    assert sent.entrypoint == document["entrypoint"]
    assert dict(sent.runtime_env) == document["runtime_env"]


def test_x13_a_dry_run_of_kuberay_shows_no_value_of_the_environment(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGION", CANARY)
    (tmp_path / "p.yaml").write_text(
        "version: 1\nprofiles:\n  k8s:\n    backend: kuberay\n    image: repo/batchtrain:1\n"
        "    ship_package: false\n    forward: [REGION]\n"
    )
    words = ("--profiles", str(tmp_path / "p.yaml"), "--profile", "k8s")

    done = command("submit", *words, "--set", "storage=s3://bucket/runs", "--dry-run")

    _, rayjob = yaml.safe_load_all(done.stdout)
    variables = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]
    assert variables["REGION"] == "(from the environment)"
    assert variables["BATCHTRAIN_SUBMISSION_ID"] == rayjob["spec"]["jobId"]
    assert CANARY not in done.output
    assert done.stderr == "note: '(from the environment)' stands for each value that is forwarded\n"


@pytest.mark.parametrize(
    ("state", "code", "exit_code"),
    [
        ("succeeded", 0, 0),
        ("failed", 1, 1),
        ("failed", 2, 2),
        ("failed", None, 1),
        ("stopped", None, 130),
    ],
)
def test_the_exit_code_is_the_run_s(
    state: JobState, code: int | None, exit_code: int, command: Command, jobs: FakeJobs
) -> None:
    ends(jobs, state, code, "prepare   built\n\x1b[31mred\n")

    done = command("submit")

    assert done.exit_code == exit_code
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"submitted tiny-[0-9a-f]{12}", lines[0])
    assert lines[1:3] == ["prepare   built", "\\x1b[31mred"]


def test_j05_submitting_twice_is_one_job(command: Command, jobs: FakeJobs) -> None:
    ends(jobs, "succeeded", 0, "done\n")

    first, second = command("submit"), command("submit")

    assert len(jobs.requests) == 1
    assert second.exit_code == 0
    name = jobs.requests[0].submission_id
    assert first.stdout == f"submitted {name}\ndone\n"
    assert second.stdout == f"found {name}  succeeded\ndone\n"
    command("submit", "--again")
    assert [each.submission_id for each in jobs.requests] == [name, f"{name}-2"]


def test_a_job_that_failed_is_started_again_under_the_next_name(
    command: Command, jobs: FakeJobs
) -> None:
    ends(jobs, "failed", 1)
    for _ in range(3):
        command("submit")

    first, *others = [each.submission_id for each in jobs.requests]
    assert others == [f"{first}-2", f"{first}-3"]
    variables = [each.runtime_env["env_vars"] for each in jobs.requests]
    assert [each["BATCHTRAIN_SUBMISSION_ID"] for each in variables] == [first, *others]
    assert len({each.entrypoint for each in jobs.requests}) == 1


def test_j08_what_the_job_published_decides(
    command: Command, jobs: FakeJobs, tmp_path: Path
) -> None:
    def run(request: JobRequest, _staged: Path) -> JobState:
        storage = FolderStorage(tmp_path / "runs")
        places = {"report": "/there/report.html"}
        publish_result(storage, JobResult(request.submission_id, "", 0, places=places))
        return "failed"

    jobs._run = run

    done = command("submit", "--json")

    assert done.exit_code == 0
    document = json.loads(done.stdout.splitlines()[-1])
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)
    assert document["places"] == {"report": "/there/report.html"}
    shown = command("status", document["submission_id"])
    assert shown.stdout.splitlines() == [
        f"{document['submission_id']}  succeeded",
        "report    /there/report.html",
    ]


@pytest.mark.parametrize(("began", "code"), [(1000.0, 1), (1990.0, 0), (2001.0, 0)])
def test_j08_the_result_of_an_earlier_job_of_its_name_decides_nothing(
    began: float, code: int, command: Command, jobs: FakeJobs, tmp_path: Path
) -> None:
    def run(request: JobRequest, _staged: Path) -> JobState:
        # The process of the new job never began: its image was not there.
        places = {"report": "/there/report.html"}
        earlier = JobResult(request.submission_id, "", 0, places=places, started=began)
        publish_result(FolderStorage(tmp_path / "runs"), earlier)
        jobs.set(request.submission_id, "running", started=2000.0)
        return "failed"

    jobs._run = run

    done = command("submit", "--json")

    assert done.exit_code == code
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["state"] == ("failed" if code else "succeeded")
    assert bool(document["places"]) == (code == 0)


def test_ctrl_c_detaches_and_says_how_to_look_again(
    command: Command, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "log", interrupt)

    done = command("submit", "--address", "http://head:8265")

    name = jobs.requests[0].submission_id
    assert done.exit_code == 130
    assert f"batchtrain logs -f {name} --address http://head:8265" in done.stderr
    assert jobs.stopped == []


def test_detached_it_does_not_wait(command: Command, jobs: FakeJobs) -> None:
    done = command("submit", "--detach")

    name = jobs.requests[0].submission_id
    assert done.exit_code == 0
    assert jobs.known[name].state == "pending"
    assert f"batchtrain stop {name}" in done.stdout


def test_jobs_are_listed_and_looked_at_and_stopped(command: Command, jobs: FakeJobs) -> None:
    assert "no job" in command("list").stdout
    jobs.set("a-000000000000", "failed", exit_code=7, message="\x1b[2Jboom", metadata={})
    jobs.set("b-000000000000", "running", metadata={"command": "run"})
    jobs.logs["a-000000000000"] = "one\ntwo"

    listed = command("list").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["b-000000000000", "running"],
        ["a-000000000000", "failed"],
    ]
    found = json.loads(command("list", "--json").stdout)["jobs"]
    assert [job["submission_id"] for job in found] == ["b-000000000000", "a-000000000000"]
    status = command("status", "a-000000000000")
    assert status.stdout == "a-000000000000  failed, exit code 7: \\x1b[2Jboom\n"
    assert command("logs", "a-000000000000").stdout == "one\ntwo\n"
    followed = command("logs", "a-000000000000", "-f")
    assert followed.exit_code == 7
    stopped = command("stop", "b-000000000000", "--json")
    assert json.loads(stopped.stdout)["state"] == "stopped"
    assert jobs.stopped == ["b-000000000000"]


@pytest.mark.parametrize("name", ["status", "logs", "stop"])
def test_what_is_no_job_is_one_sentence(name: str, command: Command) -> None:
    for job in ("nobody", "../x", "$(id)"):
        done = command(name, job)
        assert done.exit_code == 1
        assert done.stderr.startswith("ClusterError: ")


def test_a_spec_that_is_wrong_is_refused_before_anybody_is_asked(
    command: Command, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Cluster, "connect", connect)

    assert command("submit", "--set", "training.epochs=0").exit_code == 2
    assert command("submit", "--set", "storage=runs").exit_code == 2
    assert command("submit", "--set", "data.source=gone.csv").exit_code == 2
