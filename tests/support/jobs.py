"""Jobs without a cluster: a backend in memory, and the client of Ray that it could be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from batchtrain.errors import ClusterError
from batchtrain.submission.request import JobRequest, JobState, JobStatus

__all__ = ["FakeClient", "FakeJobs", "nothing"]


def nothing(_seconds: float) -> None:
    """In place of a sleep."""


class FakeJobs:
    """See `Backend`; a job does nothing until `run` says what."""

    def __init__(self, run: Callable[[JobRequest, Path], JobState] | None = None) -> None:
        self.known: dict[str, JobStatus] = {}
        self.requests: list[JobRequest] = []
        self.logs: dict[str, str] = {}
        self.stopped: list[str] = []
        self._run = run

    def submit(self, request: JobRequest, staged: Path) -> tuple[JobStatus, bool]:
        name = request.submission_id
        if name in self.known:
            return self.known[name], False
        self.requests.append(request)
        self.set(name, "pending", metadata=dict(request.metadata))
        if self._run is not None:
            self.set(name, self._run(request, staged))
        return self.known[name], True

    def set(self, name: str, state: JobState, **changes: Any) -> None:
        found = self.known.get(name, JobStatus(name, state, started=float(len(self.known))))
        self.known[name] = replace(found, state=state, **changes)

    def status(self, submission_id: str) -> JobStatus:
        if submission_id not in self.known:
            raise ClusterError(f"no job {submission_id}")
        return self.known[submission_id]

    def jobs(self) -> list[JobStatus]:
        return sorted(self.known.values(), key=lambda job: -(job.started or 0))

    def log(self, submission_id: str) -> str:
        return self.logs.get(submission_id, "")

    def stop(self, submission_id: str) -> JobStatus:
        self.stopped.append(submission_id)
        if not self.status(submission_id).is_over:
            self.set(submission_id, "stopped", exit_code=130)
        return self.known[submission_id]


class FakeClient:
    """What `RayJobs` asks of Ray's own client, with its words."""

    def __init__(self) -> None:
        self.infos: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.logs = ""
        self.stops: list[str] = []

    def get_job_info(self, name: str) -> Any:
        if name not in self.infos:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.infos[name]

    def list_jobs(self) -> list[Any]:
        return list(self.infos.values())

    def submit_job(self, *, submission_id: str, **words: Any) -> str:
        if submission_id in self.infos:
            raise RuntimeError(
                "Request failed with status code 500: ValueError: Job with submission_id "
                f"{submission_id} already exists. Please use a different submission_id."
            )
        self.calls.append({"submission_id": submission_id, **words})
        self.put(submission_id, "PENDING", metadata=words.get("metadata"))
        return submission_id

    def stop_job(self, name: str) -> bool:
        self.stops.append(name)
        return True

    def get_job_logs(self, name: str) -> str:
        return self.logs

    def put(self, name: str, status: str, **changes: Any) -> None:
        known = {
            "submission_id": name,
            "message": None,
            "driver_exit_code": None,
            "start_time": 1000 * (1 + len(self.infos)),
            "end_time": None,
            "metadata": {"batchtrain": "0"},
        }
        self.infos[name] = SimpleNamespace(**{**known, "status": status, **changes})
