"""What `batchtrain submit` looks at before it sends a job, on a cluster that is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchtrain.cli.app import app
from batchtrain.cli.submitting import Cluster
from batchtrain.errors import ClusterError
from batchtrain.submission.facts import ClusterFacts, NodeFacts
from batchtrain.submission.preflight import this_machine
from batchtrain.submission.request import JobRequest, JobState
from tests.support.jobs import FakeJobs

Submit = Callable[..., Result]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    """A backend on which a probe finds nothing, and a run ends well."""
    found = FakeJobs()

    def run(request: JobRequest, _staged: Path) -> JobState:
        answer = {"batchtrain_probe": 1, "problem": "", "torch": "2.10.0"}
        found.logs[request.submission_id] = f"{json.dumps(answer)}\n"
        return "succeeded"

    found._run = run
    monkeypatch.setattr(Cluster, "connect", lambda *_: found)
    return found


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> list[ClusterFacts | ClusterError]:
    """What the cluster is found to have; the last of the list."""
    here = this_machine()
    found: list[ClusterFacts | ClusterError] = [
        ClusterFacts(here.ray, here.python, (NodeFacts("10.0.0.1", 2.0, free_cpus=2.0),))
    ]

    def gather(*_: object, **__: object) -> ClusterFacts:
        if isinstance(found[-1], ClusterError):
            raise found[-1]
        return found[-1]

    monkeypatch.setattr("batchtrain.submission.checking.gather_facts", gather)
    monkeypatch.setattr("batchtrain.submission.probe_job._version_of", lambda _: "2.10.0")
    monkeypatch.setattr("batchtrain.submission.checking.find_token", lambda _: None)
    return found


@pytest.fixture
def submit(
    jobs: FakeJobs, facts: list[ClusterFacts | ClusterError], tiny_spec: Path, tmp_path: Path
) -> Submit:
    def submit(*words: str) -> Result:
        storage = ("--set", f"storage={tmp_path / 'runs'}")
        return CliRunner().invoke(app, ["submit", str(tiny_spec), *storage, *words])

    return submit


def test_a_job_is_sent_after_its_probe(submit: Submit, jobs: FakeJobs) -> None:
    done = submit()
    assert (done.exit_code, done.stderr) == (0, "")
    probe, run = jobs.requests
    assert probe.arguments["command"] == "probe"
    assert probe.resources.cpus == 0
    assert run.arguments["command"] == "run"


def test_without_a_probe_the_job_alone_is_sent_and_what_is_not_known_is_said(
    submit: Submit, jobs: FakeJobs
) -> None:
    done = submit("--no-probe")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: storage: expected a folder that all nodes share")
    [run] = jobs.requests
    assert run.arguments["command"] == "run"


def test_a_job_that_is_there_is_joined_without_a_look(
    submit: Submit, jobs: FakeJobs, facts: list[ClusterFacts | ClusterError]
) -> None:
    submit()
    facts.append(ClusterError("is not to be asked"))
    assert submit().exit_code == 0
    assert len(jobs.requests) == 2


def test_what_a_cluster_never_has_is_said_at_once(submit: Submit, jobs: FakeJobs) -> None:
    done = submit("--set", "resources.workers=8")
    assert done.exit_code == 1
    assert "resources.workers: expected room for 8 workers with 1 CPU each" in done.stderr
    assert jobs.requests == []


def test_a_cluster_that_does_not_answer_gets_no_job(
    submit: Submit, jobs: FakeJobs, facts: list[ClusterFacts | ClusterError]
) -> None:
    facts.append(ClusterError("expected a dashboard, found none"))
    done = submit()
    assert done.exit_code == 1
    assert "address: expected a dashboard, found none" in done.stderr
    assert jobs.requests == []


def test_a_profile_that_is_wrong_ends_with_the_code_of_a_spec(
    submit: Submit, jobs: FakeJobs, tmp_path: Path
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nprofiles: {a: {adress: http://head:8265}}\n")
    done = submit("--profiles", str(file), "--profile", "a")
    assert done.exit_code == 2
    assert "Did you mean `profiles.a.address`?" in done.stderr
    assert jobs.requests == []


def test_a_warning_is_printed_and_keeps_nothing(
    submit: Submit, jobs: FakeJobs, facts: list[ClusterFacts | ClusterError]
) -> None:
    facts.append(ClusterFacts("2.60.99", this_machine().python, (NodeFacts("10.0.0.1", 2.0),)))
    done = submit()
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: ray: expected Ray ")
    assert len(jobs.requests) == 2


def test_a_storage_that_the_nodes_do_not_share_keeps_the_job(
    submit: Submit, jobs: FakeJobs
) -> None:
    def run(request: JobRequest, _staged: Path) -> JobState:
        answer = {"batchtrain_probe": 1, "problem": "10.0.0.2 sees another", "torch": "2.10.0"}
        jobs.logs[request.submission_id] = json.dumps(answer)
        return "succeeded"

    jobs._run = run
    done = submit()
    assert done.exit_code == 1
    assert "storage: 10.0.0.2 sees another" in done.stderr
    assert [each.arguments["command"] for each in jobs.requests] == ["probe"]
