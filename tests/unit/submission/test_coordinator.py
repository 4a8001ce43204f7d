"""Stages in jobs of their own: each when the one before is published."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchtrain.artifacts import reuse_or_build
from batchtrain.engines.session import CORES_VARIABLE
from batchtrain.errors import ClusterError
from batchtrain.storage import FolderStorage
from batchtrain.submission.coordinator import KIND_OF_STAGE, base_id, coordinate, plan_stages
from batchtrain.submission.fitting import STAGES
from batchtrain.submission.request import ID_VARIABLE, JobRequest, JobState, ShippedFile
from batchtrain.submission.results import JobResult, publish_result, read_result, result_key
from tests.support.jobs import FakeJobs, nothing

BASE = "tiny-0123456789ab"
ARGUMENTS: Mapping[str, Any] = {
    "format": 1,
    "command": "coordinate",
    "spec": "job/tiny.yaml",
    "files": {"job/tiny.yaml": "00"},
    "backend": "ray",
    "forward": ["REGION"],
    "stages": {
        name: {"cpus": 1 + number, "gpus": 0, "memory_bytes": 0}
        for number, name in enumerate(STAGES)
    },
}
JOBS = [f"{BASE}-{stage}" for stage in STAGES]


def plan(submission_id: str = BASE) -> Any:
    files = [ShippedFile("job/tiny.yaml", 1, "00")]
    metadata = {"run": "tiny", "batchtrain": "0"}
    environ = {"REGION": "mars", "SECRET": "x"}
    return plan_stages(ARGUMENTS, files, metadata, submission_id, environ)


class Cluster(FakeJobs):
    """Runs a stage as it is submitted: publishes its artifact and its result."""

    def __init__(self, storage: FolderStorage, codes: Mapping[str, int] | None = None) -> None:
        super().__init__(self._stage)
        self._storage = storage
        self._codes = codes or {}
        self.is_mute = False

    def _stage(self, request: JobRequest, staged: Path) -> JobState:
        stage = request.metadata["command"]
        code = self._codes.get(stage, 0)
        made = {}
        if code == 0:
            kind = KIND_OF_STAGE[stage]
            artifact, _ = reuse_or_build(
                self._storage, f"there/{stage}", kind, inputs={}, build=lambda draft: {}
            )
            made = {stage: {"key": artifact.key, "digest": artifact.manifest.digest}}
        if not self.is_mute:
            result = JobResult(request.submission_id, "0" * 64, code, made=made)
            publish_result(self._storage, result)
        self.set(request.submission_id, "running", exit_code=code)
        # What a cluster says is not what counts.
        return "failed"


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path)


@pytest.fixture
def cluster(storage: FolderStorage) -> Cluster:
    return Cluster(storage)


def go(
    cluster: FakeJobs,
    storage: FolderStorage,
    submission_id: str = BASE,
    say: Callable[[str], None] = lambda line: None,
) -> JobResult:
    return coordinate(plan(submission_id), cluster, storage, lambda _: Path(), say, sleep=nothing)


def submitted(cluster: FakeJobs) -> list[str]:
    return [request.submission_id for request in cluster.requests]


def test_a_plan_is_the_same_for_all_attempts_of_a_coordinator() -> None:
    assert base_id(f"{BASE}-12", "tiny") == BASE
    assert plan() == plan(f"{BASE}-2")


def test_each_stage_has_its_own_command_and_resources() -> None:
    jobs = plan()

    assert [job.request.submission_id for job in jobs] == JOBS
    assert [job.request.arguments["command"] for job in jobs] == list(STAGES)
    assert [job.request.resources.cpus for job in jobs] == [1, 2, 3, 4]
    assert len({job.request.entrypoint for job in jobs}) == 4
    for job in jobs:
        assert job.request.arguments["files"] == ARGUMENTS["files"]
        assert "stages" not in job.request.arguments
        assert job.request.runtime_env["env_vars"] == {
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            CORES_VARIABLE: f"{job.request.resources.cpus:g}",
            "PYTHONIOENCODING": "utf-8:backslashreplace",
            "REGION": "mars",
            ID_VARIABLE: job.request.submission_id,
        }


def test_stages_run_one_after_the_other(cluster: Cluster, storage: FolderStorage) -> None:
    said: list[str] = []

    result = go(cluster, storage, say=said.append)

    assert (result.exit_code, result.submission_id) == (0, JOBS[-1])
    assert submitted(cluster) == JOBS
    assert [line for line in said if "started" in line] == [
        f"{stage:<9} started: {name}" for stage, name in zip(STAGES, JOBS, strict=True)
    ]


def test_submitted_again_each_stage_looks_whether_its_rows_are_the_same(
    cluster: Cluster, storage: FolderStorage
) -> None:
    go(cluster, storage)

    assert go(cluster, storage, f"{BASE}-2").exit_code == 0

    assert submitted(cluster) == [*JOBS, *(f"{name}-2" for name in JOBS)]


def test_a_head_that_was_started_anew_gets_the_same_names_again(
    cluster: Cluster, storage: FolderStorage
) -> None:
    go(cluster, storage)
    anew = Cluster(storage)

    assert go(anew, storage).exit_code == 0
    assert submitted(anew) == JOBS


def test_j08_what_an_earlier_job_of_its_name_has_published_is_not_a_stage_s(
    cluster: Cluster, storage: FolderStorage
) -> None:
    go(cluster, storage)
    # Its process began long before the job that has its name now, which never got to its entry.
    old = read_result(storage, JOBS[0])
    assert old is not None
    publish_result(storage, replace(old, started=1000.0))
    anew = FakeJobs()
    anew.set(JOBS[0], "running", started=2000.0)

    with pytest.raises(ClusterError, match=f"expected a result of the job {JOBS[0]}, found none"):
        coordinate(
            plan()[:1],
            anew,
            storage,
            lambda _: Path(),
            print,
            sleep=lambda _: anew.set(JOBS[0], "failed"),
        )


def test_a_stage_that_fails_ends_it_with_its_exit_code(storage: FolderStorage) -> None:
    cluster = Cluster(storage, {"train": 2})

    assert go(cluster, storage).exit_code == 2
    assert submitted(cluster) == JOBS[:2]

    # Submitted again, the stage before it looks at its rows once more.
    cluster._codes = {}
    assert go(cluster, storage, f"{BASE}-2").exit_code == 0
    assert submitted(cluster)[2:] == [f"{JOBS[0]}-2", f"{JOBS[1]}-2", *JOBS[2:]]


def test_a_stage_that_an_earlier_coordinator_has_left_at_work_is_joined(
    cluster: Cluster, storage: FolderStorage
) -> None:
    [prepare, *_] = plan()
    cluster.set(JOBS[0], "running")
    looks = 0

    def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            cluster.set(JOBS[0], cluster._stage(prepare.request, Path()))

    coordinate(plan(), cluster, storage, lambda _: Path(), print, sleep=sleep)

    assert looks == 3
    assert submitted(cluster) == JOBS[1:]


def test_j08_a_job_that_is_called_done_and_has_published_nothing_is_not(
    cluster: Cluster, storage: FolderStorage
) -> None:
    cluster.is_mute = True
    with pytest.raises(ClusterError, match=f"prepare: expected a result of the job {JOBS[0]}"):
        go(cluster, storage)
    assert submitted(cluster) == JOBS[:1]


def test_j09_stopping_it_stops_the_stage_that_runs(
    cluster: Cluster, storage: FolderStorage
) -> None:
    cluster.set(JOBS[0], "running")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coordinate(plan(), cluster, storage, lambda _: Path(), print, sleep=interrupt)

    assert cluster.stopped == [JOBS[0]]
    assert cluster.requests == []
    assert storage.size(result_key(JOBS[0])) is None


def test_the_name_of_every_job_is_safe() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+", job.request.submission_id) for job in plan())
