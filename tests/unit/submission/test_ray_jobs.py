"""The backend of Ray against a client that says what Ray's says; tests/cluster has the real one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import ClusterError
from batchtrain.submission.ray_jobs import CANCEL, CANCEL_VARIABLE, RayJobs, set_auth_mode
from batchtrain.submission.request import JobRequest, JobResources
from tests.support.jobs import FakeClient, nothing

REQUEST = JobRequest(
    "tiny-0123456789ab",
    "python -m batchtrain.cli.entry 00",
    {},
    runtime_env={"env_vars": {"A": "b"}},
    resources=JobResources(cpus=2, memory_bytes=5),
    metadata={"batchtrain": "0", "run": "tiny"},
)
NAME = REQUEST.submission_id


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def jobs(client: FakeClient) -> RayJobs:
    return RayJobs("http://head:8265", client=client, sleep=nothing)


def test_a_request_is_sent_as_it_is(jobs: RayJobs, client: FakeClient, tmp_path: Path) -> None:
    job, is_new = jobs.submit(REQUEST, tmp_path)

    assert (job.state, job.metadata["run"], is_new) == ("pending", "tiny", True)
    assert client.calls == [
        {
            "submission_id": NAME,
            "entrypoint": REQUEST.entrypoint,
            "runtime_env": {"env_vars": {"A": "b"}, "working_dir": str(tmp_path)},
            "metadata": {"batchtrain": "0", "run": "tiny"},
            "entrypoint_num_cpus": 2,
            "entrypoint_num_gpus": None,
            "entrypoint_memory": 5,
        }
    ]


def test_j05_submitted_twice_is_one_job(jobs: RayJobs, client: FakeClient, tmp_path: Path) -> None:
    jobs.submit(REQUEST, tmp_path)
    job, is_new = jobs.submit(REQUEST, tmp_path)

    assert (job.submission_id, is_new, len(client.calls)) == (NAME, False, 1)


def test_j07_a_job_that_waited_too_long_for_ray_says_so(jobs: RayJobs, client: FakeClient) -> None:
    # Ray 2.60, as it is.
    message = (
        "Job supervisor actor failed to start within 900.0 seconds. This timeout can be configured "
        "by setting the environment variable RAY_JOB_START_TIMEOUT_SECONDS. This may be because"
    )
    client.put(NAME, "FAILED", message=message)
    said = jobs.status(NAME).message
    assert said.startswith("it waited 900 s for its turn, and Ray gave it up. Submit again; ")
    assert "RAY_JOB_START_TIMEOUT_SECONDS" in said


def test_j05_a_lost_reply_is_one_job(
    jobs: RayJobs, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = client.submit_job

    def losing(**words: Any) -> str:
        send(**words)
        raise ConnectionError("Connection aborted.")

    monkeypatch.setattr(client, "submit_job", losing)

    job, is_new = jobs.submit(REQUEST, tmp_path)

    assert (job.submission_id, is_new, len(client.calls)) == (NAME, True, 1)
    assert jobs.submit(REQUEST, tmp_path)[1] is False


def test_j05_of_two_at_once_one_starts_it(
    jobs: RayJobs, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = client.get_job_info
    looks = 0

    def late(name: str) -> Any:
        nonlocal looks
        looks += 1
        if looks == 1:
            client.put(name, "RUNNING")  # the other one is there right after we have looked
            raise RuntimeError("Request failed with status code 404: does not exist")
        return look(name)

    monkeypatch.setattr(client, "get_job_info", late)

    job, is_new = jobs.submit(REQUEST, tmp_path)

    assert (job.state, is_new, client.calls) == ("running", False, [])


def test_a_submission_that_failed_is_an_error_when_no_job_is_there(
    jobs: RayJobs, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_words: Any) -> str:
        raise RuntimeError("Request failed with status code 500: no room\nTraceback ...")

    monkeypatch.setattr(client, "submit_job", refuse)
    with pytest.raises(ClusterError, match=r"takes the request, found: .* no room$"):
        jobs.submit(REQUEST, tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Authentication required: Unauthorized\n\nmore"), "asks for a token"),
        (RuntimeError("Authentication failed: Forbidden\n\nmore"), "refuses our token"),
        (ConnectionError("Failed to connect to Ray at address: x"), "found none that answers"),
        (RuntimeError("Request failed with status code 500: boom"), "found: .* boom"),
    ],
)
def test_what_ray_raises_is_one_sentence(
    error: Exception, words: str, jobs: RayJobs, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[Any]:
        raise error

    monkeypatch.setattr(client, "list_jobs", fail)
    with pytest.raises(ClusterError, match=words) as explained:
        jobs.jobs()
    assert "\n" not in str(explained.value)


def test_states_and_exit_codes_are_read(jobs: RayJobs, client: FakeClient) -> None:
    client.put("a", "FAILED", driver_exit_code=7, message="exit code 7, last available logs\nx")
    client.put("b", "FAILED", driver_exit_code=0, message="lost sight")
    client.put("c", "STOPPED")
    client.put("d", "SOMETHING")
    client.put("raysubmit_x", "RUNNING", metadata={})

    found = {job.submission_id: (job.state, job.exit_code) for job in jobs.jobs()}

    assert found == {
        "a": ("failed", 7),
        "b": ("succeeded", 0),
        "c": ("stopped", None),
        "d": ("unknown", None),
    }
    assert [job.submission_id for job in jobs.jobs()] == ["d", "c", "b", "a"]
    assert "\n" not in jobs.status("a").message


def test_the_log_is_what_the_job_writes(jobs: RayJobs, client: FakeClient) -> None:
    client.put("a", "RUNNING")
    client.logs = "INFO setting up\n"
    assert jobs.log("a") == ""
    client.logs += "Running entrypoint for job a: python -m x\nprepare   built\n"
    assert jobs.log("a") == "prepare   built\n"
    client.logs = "runtime_env setup failed"
    client.put("a", "FAILED")
    assert jobs.log("a") == "runtime_env setup failed"


def test_j09_a_job_that_waits_for_cores_is_ended_by_what_it_waits_with(
    client: FakeClient,
) -> None:
    client.put(NAME, "PENDING")
    seconds = iter(range(100))
    jobs = RayJobs("x", client=client, sleep=_ending(client), clock=lambda: float(next(seconds)))

    job = jobs.stop(NAME)

    assert (job.state, job.message) == ("stopped", "stopped before it began")
    assert client.stops == [NAME]
    [call] = client.calls
    assert call["entrypoint"] == CANCEL
    assert call["runtime_env"] == {"env_vars": {CANCEL_VARIABLE: NAME}}


def _ending(client: FakeClient) -> Callable[[float], None]:
    """Ray, which notices some time after the cancelling job that an actor was killed."""

    def sleep(_seconds: float) -> None:
        if client.calls:
            message = "Job supervisor actor died: The actor died because of `ray.kill`."
            client.put(NAME, "FAILED", message=message)

    return sleep


def test_j09_a_job_that_is_over_stays_as_it_is(jobs: RayJobs, client: FakeClient) -> None:
    client.put(NAME, "SUCCEEDED", driver_exit_code=0)
    assert jobs.stop(NAME).state == "succeeded"
    assert client.stops == []


@pytest.mark.parametrize(
    ("before", "file", "after"),
    [
        ({}, "x", "token"),
        ({}, None, None),
        ({}, " ", None),
        ({"RAY_AUTH_TOKEN": "x"}, None, "token"),
        ({"RAY_AUTH_TOKEN": " "}, None, None),
        ({"RAY_AUTH_MODE": "disabled"}, "x", "disabled"),
    ],
)
def test_authentication_is_on_where_there_is_a_token(
    before: dict[str, str],
    file: str | None,
    after: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if file is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(file)
    environ = dict(before)

    set_auth_mode(environ)

    assert environ.get("RAY_AUTH_MODE") == after


def test_a_token_s_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    environ = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with pytest.raises(ClusterError, match="expected the file of a token, found no file"):
        set_auth_mode(environ)
    (tmp_path / "token").write_text("x")
    set_auth_mode(environ)
    assert environ["RAY_AUTH_MODE"] == "token"


def test_nobody_answers_at_a_wrong_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray itself would go to this one instead of the address that it is given.
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="found none that answers") as error:
        RayJobs("http://127.0.0.1:9")
    assert "127.0.0.1:9" in str(error.value)
    assert os.environ["RAY_ADDRESS"] == "10.255.255.1:6379"
