"""Each stage of a run as a job of its own, started when the one before is published.

The coordinator is a small job on the cluster itself, so that whoever submitted it may go away. It
holds no cores, and has nothing that it could lose: started again it joins the stage that runs, and
stages that are done find in seconds that they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchtrain.artifacts import ArtifactKind, open_artifact
from batchtrain.artifacts.bundle import MODEL_BUNDLE
from batchtrain.artifacts.prepared import PREPARED_DATA
from batchtrain.artifacts.report import EVALUATION_REPORT
from batchtrain.artifacts.trained import TRAINED_MODEL
from batchtrain.errors import ArtifactError, ClusterError
from batchtrain.storage import Storage
from batchtrain.submission.building import choose_id, entrypoint_of, env_vars, with_id
from batchtrain.submission.fitting import STAGES
from batchtrain.submission.following import follow
from batchtrain.submission.request import Backend, JobRequest, JobResources, JobStatus, ShippedFile
from batchtrain.submission.results import JobResult, result_of, settled

__all__ = ["KIND_OF_STAGE", "StageJob", "base_id", "coordinate", "plan_stages"]

KIND_OF_STAGE: Mapping[str, ArtifactKind] = {
    "prepare": PREPARED_DATA,
    "train": TRAINED_MODEL,
    "evaluate": EVALUATION_REPORT,
    "export": MODEL_BUNDLE,
}

LOOKS = 20
"""How often to look for the result of a stage whose job is over: a listing may lag."""
LOOK_S = 0.5


@dataclass(frozen=True)
class StageJob:
    """One stage.

    Attributes:
        name: Which.
        base: The name of its job's first attempt.
        request: The job, under that name.
    """

    name: str
    base: str
    request: JobRequest


def base_id(submission_id: str, run: str) -> str:
    """The name of the first attempt, from that of any.

    Example:
        >>> base_id("drug200-0123456789ab-3", "drug200")
        'drug200-0123456789ab'
    """
    return submission_id[: len(run) + 1 + 12]


def plan_stages(
    arguments: Mapping[str, Any],
    files: Sequence[ShippedFile],
    metadata: Mapping[str, str],
    submission_id: str,
    environ: Mapping[str, str],
) -> list[StageJob]:
    """The jobs of all stages, in their order, from what the coordinator was told.

    All attempts of a coordinator plan the same jobs, so that a stage that still runs is joined.

    Args:
        arguments: Those of the coordinator.
        files: The working directory.
        metadata: Of the coordinator; that of the stages follows from it.
        submission_id: The coordinator's own name.
        environ: The variables that are forwarded.
    """
    base = base_id(submission_id, metadata["run"])
    left_out = {"stages", "backend", "forward", "command"}
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    jobs = []
    for stage in STAGES:
        told, held = {**kept, "command": stage}, JobResources(**arguments["stages"][stage])
        request = JobRequest(
            submission_id="",
            entrypoint=entrypoint_of(told),
            arguments=told,
            files=files,
            runtime_env={"env_vars": env_vars(arguments["forward"], environ, held)},
            resources=held,
            metadata={**metadata, "command": stage, "stages": "together", "part_of": base},
        )
        # No dot: Ray would take its log for a part of the coordinator's.
        name = f"{base}-{stage}"
        jobs.append(StageJob(stage, name, with_id(request, name)))
    return jobs


def coordinate(
    jobs: Sequence[StageJob],
    backend: Backend,
    storage: Storage,
    stage_files: Callable[[JobRequest], Path],
    show: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> JobResult:
    """Start one stage after the other, each when the one before has published its artifact.

    No stage is left out for what an earlier job has published: rows may have changed since, which
    only the stage itself looks at. What still holds it reuses. When this is interrupted, the
    running stage is stopped too.

    Args:
        jobs: What `plan_stages` gave.
        backend: Where they run.
        storage: That of the run.
        stage_files: Puts the files of a request into a folder.
        show: Gets each line for people.
        sleep: Waits for seconds.

    Returns:
        The result of the last stage that was started or joined; its exit code is the run's.
    """
    result: JobResult | None = None
    for job in jobs:
        result = _run(job, backend, storage, stage_files, show, sleep)
        if result.exit_code != 0:
            return result
    if result is None:
        raise ValueError("expected at least one stage")
    return result


def _run(
    job: StageJob,
    backend: Backend,
    storage: Storage,
    stage_files: Callable[[JobRequest], Path],
    show: Callable[[str], None],
    sleep: Callable[[float], None],
) -> JobResult:
    """One stage: submit or join its job, follow it, and look at what it has published."""
    # One that is done was done with the rows of its time; one that runs is joined.
    choice = choose_id(job.base, backend.jobs(), again=True)
    request = with_id(job.request, choice.submission_id)
    name = request.submission_id
    try:
        if choice.known is None:
            backend.submit(request, stage_files(request))
        show(f"{job.name:<9} {'started' if choice.known is None else 'joined'}: {name}")
        status = follow(backend, name, show, sleep=sleep)
    except KeyboardInterrupt:
        show(f"{job.name:<9} is stopped too: {name}")
        backend.stop(name)
        raise
    return _outcome(job, status, storage, sleep)


def _outcome(
    job: StageJob, status: JobStatus, storage: Storage, sleep: Callable[[float], None]
) -> JobResult:
    """How a stage ended: what it has published decides, then its exit code."""
    name = status.submission_id
    result = result_of(storage, status)
    looks = LOOKS if settled(status, None).state == "succeeded" else 1
    for _ in range(looks - 1):
        if result is not None:
            break
        sleep(LOOK_S)
        result = result_of(storage, status)
    if result is None:
        message = f"{job.name}: expected a result of the job {name}, found none: {status.message}"
        raise ClusterError(f"{message or status.state}. Its log says more: batchtrain logs {name}")
    if result.exit_code == 0 and not _is_there(job.name, result, storage):
        raise ClusterError(
            f"{job.name}: expected what the job {name} has published, found it gone or changed. "
            "Let no one clean the storage during a run, and submit again"
        )
    return result


def _is_there(stage: str, result: JobResult, storage: Storage) -> bool:
    made = result.made.get(stage)
    if made is None:
        return False
    try:
        found = open_artifact(storage, made["key"], KIND_OF_STAGE[stage])
    except (ArtifactError, KeyError):
        return False
    return found.manifest.digest == made.get("digest")
