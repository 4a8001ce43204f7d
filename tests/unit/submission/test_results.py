"""What a job says of its own end decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchtrain.storage import FolderStorage
from batchtrain.submission.request import JobState, JobStatus
from batchtrain.submission.results import (
    CLOCKS_S,
    JobResult,
    publish_result,
    read_result,
    result_key,
    result_of,
    settled,
    storage_of,
)


def result(code: int, started: float | None = None) -> JobResult:
    made = {"prepare": {"key": "k", "digest": "d"}}
    return JobResult("x", "0" * 64, code, made=made, started=started)


@pytest.mark.parametrize(
    ("said", "code", "published", "state"),
    [
        ("failed", None, 0, "succeeded"),  # J08: Ray lost sight of a job that ended well
        ("failed", 0, None, "succeeded"),
        ("succeeded", 0, 1, "failed"),
        ("failed", 1, None, "failed"),
        ("failed", None, None, "failed"),
        ("stopped", None, 130, "stopped"),
        ("stopped", None, None, "stopped"),
        ("stopped", 0, 0, "succeeded"),  # it was done before it heard of it
        ("running", None, 0, "running"),
    ],
)
def test_j08_the_published_result_decides(
    said: JobState, code: int | None, published: int | None, state: JobState
) -> None:
    found = settled(
        JobStatus("x", said, exit_code=code), None if published is None else result(published)
    )
    assert found.state == state
    if published is not None and found.is_over:
        assert found.exit_code == published


def test_a_result_is_read_back(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    publish_result(storage, result(1))
    publish_result(storage, result(0, 1795305600.25))
    assert read_result(storage, "x") == result(0, 1795305600.25)
    assert read_result(storage, "y") is None


@pytest.mark.parametrize(
    ("began", "submitted", "is_of_it"),
    [
        (1001.0, 1000.0, True),
        (1000.0 - CLOCKS_S, 1000.0, True),  # a node whose clock is behind
        (1000.0 - CLOCKS_S - 0.1, 1000.0, False),  # an earlier job of the same name
        (1.0, None, True),
        (None, 1000.0, True),
    ],
)
def test_j08_a_result_that_is_older_than_its_job_is_that_of_another(
    began: float | None, submitted: float | None, is_of_it: bool, tmp_path: Path
) -> None:
    storage = FolderStorage(tmp_path)
    publish_result(storage, result(0, began))
    found = result_of(storage, JobStatus("x", "failed", started=submitted))
    assert (found is not None) == is_of_it


def test_a_result_of_a_version_that_did_not_say_when_it_began_is_read(tmp_path: Path) -> None:
    storage, old = FolderStorage(tmp_path), result(0).to_json()
    del old["started"]
    storage.write(result_key("x"), json.dumps(old).encode())
    assert read_result(storage, "x") == result(0)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"format": 1}'])
def test_what_is_no_result_is_none(data: bytes, tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write(result_key("x"), data)
    assert read_result(storage, "x") is None


def test_a_result_of_another_job_is_none(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write(result_key("y"), json.dumps(result(0).to_json()).encode())
    assert read_result(storage, "y") is None


def test_a_storage_that_is_not_seen_from_here_is_not_asked(tmp_path: Path) -> None:
    def of(storage: str, code: int | None) -> object:
        return storage_of(JobStatus("x", "failed", exit_code=code, metadata={"storage": storage}))

    assert of(str(tmp_path), 1) is not None
    assert of(str(tmp_path / "gone"), None) is None
    assert of("runs", None) is None
    assert of("s3://bucket/runs", 1) is None
    assert storage_of(JobStatus("x", "failed")) is None
