"""Jobs on this machine: detached processes, each with a folder for status, log and exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchtrain.artifacts.process_identity import ProcessIdentity, this_process
from batchtrain.errors import ClusterError
from batchtrain.storage import FolderStorage
from batchtrain.submission.local_runner import EXIT, LOG, PROCESS, STOP, WORK
from batchtrain.submission.request import JOBS, JobRequest, JobState, JobStatus, check_id
from batchtrain.submission.shipping import PACKAGE_FOLDER

__all__ = ["LocalJobs"]

JOB = "job.json"
START_LIMIT_S = 30.0
"""Seconds in which the process beside a job must have shown itself."""
KILL_LIMIT_S = 10.0
"""Seconds in which the system must have ended what was killed."""
POLL_S = 0.02


class LocalJobs:
    """See `Backend`. What is known of a job lies in `<storage>/_jobs/<id>/`, and nowhere else."""

    def __init__(
        self,
        storage: Path,
        *,
        stop_wait_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Touch nothing yet.

        Args:
            storage: The folder that the runs write to.
            stop_wait_s: How long a job has for its last checkpoint before it is killed.
            sleep: Waits for seconds.
            clock: Seconds that never go back.
        """
        self._root = storage / JOBS
        self._stop_wait_s = stop_wait_s
        self._sleep = sleep
        self._clock = clock

    def submit(self, request: JobRequest, staged: Path) -> tuple[JobStatus, bool]:
        """See `Backend.submit`: whoever creates `job.json` starts the job."""
        folder = self._folder(request.submission_id)
        files = FolderStorage(folder)
        job = {
            "submission_id": request.submission_id,
            "entrypoint": request.entrypoint,
            "metadata": dict(request.metadata),
            "submitted": time.time(),
            "by": asdict(this_process()),
            "token": uuid.uuid4().hex,
        }
        if not files.create(JOB, json.dumps(job).encode()):
            return self.status(request.submission_id), False
        try:
            shutil.copytree(staged, folder / WORK)
            self._start(folder, request.runtime_env.get("env_vars", {}))
        except BaseException as error:
            ended = {"exit_code": 1, "ended": time.time(), "message": f"not started: {error}"}
            with suppress(OSError):
                files.write(EXIT, json.dumps(ended).encode())
            raise
        return self.status(request.submission_id), True

    def status(self, submission_id: str) -> JobStatus:
        """See `Backend.status`."""
        folder = self._folder(submission_id)
        job = _read(folder / JOB)
        if job is None:
            raise ClusterError(
                f"expected a job {submission_id!r} below {self._root}, found none. "
                "`batchtrain list` has those that are there"
            )
        process, ended = _read(folder / PROCESS), _read(folder / EXIT)
        if ended is None and _is_dead((process or {}).get("identity", job["by"])):
            # It may have ended between the two looks.
            ended = _read(folder / EXIT)
            process = _read(folder / PROCESS) or process
        is_stopped = (folder / STOP).exists()
        state, message = _state(job, process, ended, is_stopped=is_stopped)
        return JobStatus(
            submission_id,
            state,
            message=message,
            exit_code=None if ended is None else ended["exit_code"],
            started=job["submitted"],
            ended=None if ended is None else ended["ended"],
            metadata=job["metadata"],
        )

    def jobs(self) -> list[JobStatus]:
        """See `Backend.jobs`."""
        names = [path.parent.name for path in self._root.glob(f"*/{JOB}")]
        found = [self.status(name) for name in names]
        return sorted(found, key=lambda job: (-(job.started or 0), job.submission_id))

    def log(self, submission_id: str) -> str:
        """See `Backend.log`."""
        self.status(submission_id)
        with suppress(FileNotFoundError):
            data = (self._folder(submission_id) / LOG).read_bytes()
            return data.decode("utf-8", errors="replace")
        return ""

    def stop(self, submission_id: str) -> JobStatus:
        """See `Backend.stop`: SIGTERM to its group of processes, and SIGKILL after a while."""
        folder = self._folder(submission_id)
        if (status := self.status(submission_id)).is_over:
            return status
        process = _read(folder / PROCESS)
        identity = _identity((process or {}).get("identity", {}))
        if identity is not None and not identity.is_here():
            raise ClusterError(
                f"expected the job {submission_id!r} on this machine, found it on "
                f"{identity.host}. Stop it there"
            )
        FolderStorage(folder).write(STOP, json.dumps({"asked": time.time()}).encode())
        self._signal(folder, signal.SIGTERM)
        until = self._clock() + self._stop_wait_s
        is_told = process is not None
        while not (status := self.status(submission_id)).is_over and self._clock() < until:
            self._sleep(POLL_S)
            if not is_told and (folder / PROCESS).exists():
                # It began just now, and may have looked for the word before it was there.
                is_told = True
                self._signal(folder, signal.SIGTERM)
        if not status.is_over:
            self._signal(folder, signal.SIGKILL)
            until = self._clock() + KILL_LIMIT_S
            while not (status := self.status(submission_id)).is_over and self._clock() < until:
                self._sleep(POLL_S)
        return status

    def _folder(self, submission_id: str) -> Path:
        return self._root / check_id(submission_id)

    def _start(self, folder: Path, variables: Mapping[str, str]) -> None:
        """Start the process beside the job, and wait until it has said who it is."""
        package = str(PACKAGE_FOLDER.parent)
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([package, *([before] if before else [])])
        command = [sys.executable, "-P", "-m", "batchtrain.submission.local_runner", str(folder)]
        with (folder / LOG).open("ab") as log:
            done = subprocess.run(  # noqa: S603  # our own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables},
                check=False,
            )
        until = self._clock() + START_LIMIT_S
        while done.returncode == 0 and self._clock() < until:
            if (folder / PROCESS).exists():
                return
            self._sleep(POLL_S)
        raise ClusterError(
            f"expected the job to start, found that its process did not. {folder / LOG} has more"
        )

    def _signal(self, folder: Path, number: signal.Signals) -> None:
        """Signal the group of a job, if it is there and is what it was."""
        identity = _identity((_read(folder / PROCESS) or {}).get("identity", {}))
        if identity is not None and identity.is_here() and not identity.is_known_dead():
            with suppress(ProcessLookupError):
                os.killpg(identity.pid, number)


def _state(
    job: Mapping[str, Any],
    process: Mapping[str, Any] | None,
    ended: Mapping[str, Any] | None,
    *,
    is_stopped: bool,
) -> tuple[JobState, str]:
    """Where a job stands, by what lies in its folder."""
    if ended is not None:
        code, message = ended["exit_code"], ended.get("message", "")
        if code == 0:
            return "succeeded", message
        return ("stopped" if is_stopped else "failed"), message
    if process is not None:
        if not _is_dead(process["identity"]):
            return "running", f"on {process['identity']['host']}"
        return ("stopped" if is_stopped else "failed"), "its process was killed"
    if _is_dead(job["by"]):
        return ("stopped" if is_stopped else "failed"), "who submitted it died before it started"
    return "pending", ""


def _is_dead(identity: Mapping[str, Any]) -> bool:
    found = _identity(identity)
    return found is not None and found.is_known_dead()


def _identity(found: Mapping[str, Any]) -> ProcessIdentity | None:
    try:
        return ProcessIdentity(**found)
    except (TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """What a file of a job says; None where it is not there."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found
