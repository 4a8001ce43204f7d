"""Jobs of a Ray cluster, over the HTTP of its dashboard."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from batchtrain.errors import ClusterError
from batchtrain.submission.request import JobRequest, JobState, JobStatus, check_id
from batchtrain.submission.token import find_token

__all__ = ["RayJobs", "set_auth_mode"]

STATES: Mapping[str, JobState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
OURS = "batchtrain"
"""The key of the metadata by which our jobs are known."""

BEGIN = "Running entrypoint for job "
"""Ray's last line before what the job itself writes."""

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray takes them before an address that it is given."""

LOUD = (
    "ray",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)

LIMIT_S = 30.0
"""Seconds that the dashboard may be silent; Ray's client would wait for ever."""
UPLOAD_LIMIT_S = 300.0
LOOKS = 5
"""How often to look whether a job is there whose reply was lost."""

PENDING_STOP_S = 3.0
"""How long a job that waits for resources has to stop by itself: it cannot, see `CANCEL`."""
STOP_LIMIT_S = 90.0

CANCEL_VARIABLE = "BATCHTRAIN_CANCEL"
CANCEL = (
    "python -c 'import os, ray; ray.init(logging_level=40, log_to_driver=False); "
    'ray.kill(ray.get_actor("_ray_internal_job_actor_" + os.environ["BATCHTRAIN_CANCEL"], '
    'namespace="SUPERVISOR_ACTOR_RAY_NAMESPACE"))\''
)
"""Ray does not stop a job before its process is there (2.60: `stop_job` is true, the job stays
PENDING): this ends what waits for it. It runs as a job without cores."""
KILLED = re.compile(r"supervisor actor died.*ray\.kill", re.DOTALL | re.IGNORECASE)

GIVEN_UP = re.compile(r"failed to start within ([\d.]+) seconds")
"""Of a job that waited for its resources too long for Ray."""

Answer = TypeVar("Answer")


def set_auth_mode(environ: Any = os.environ) -> None:
    """Turn token authentication on where there is a token and nobody says otherwise.

    Ray itself does so only when it starts a head; whoever talks to one gets a 401.

    Raises:
        ClusterError: If what should be a token is none.
    """
    if "RAY_AUTH_MODE" not in environ and find_token(environ) is not None:
        environ["RAY_AUTH_MODE"] = "token"


class RayJobs:
    """See `Backend`."""

    def __init__(
        self,
        address: str | None = None,
        *,
        client: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect.

        Args:
            address: Of the dashboard, such as http://head:8265; left out, what Ray's variables
                say, or the cluster that this process belongs to.
            client: In place of Ray's, for tests.
            sleep: Waits for seconds.
            clock: Seconds that never go back.

        Raises:
            ClusterError: If nobody answers there, or not to us.
        """
        self._where = address or "the address of Ray's variables"
        self._sleep = sleep
        self._clock = clock
        self._client = client if client is not None else self._asked(lambda: _client(address))

    def submit(self, request: JobRequest, staged: Path) -> tuple[JobStatus, bool]:
        """See `Backend.submit`."""
        name = check_id(request.submission_id)
        if (known := self._find(name)) is not None:
            return known, False
        resources = request.resources
        try:
            self._client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=name,
                runtime_env={**request.runtime_env, "working_dir": str(staged)},
                metadata={**request.metadata},
                entrypoint_num_cpus=resources.cpus or None,
                entrypoint_num_gpus=resources.gpus or None,
                entrypoint_memory=resources.memory_bytes or None,
            )
        except Exception as error:
            found = self._found_after_all(name)
            if found is None:
                raise self._explained(error) from error
            return found, "already exists" not in str(error)
        return self.status(name), True

    def status(self, submission_id: str) -> JobStatus:
        """See `Backend.status`."""
        found = self._find(check_id(submission_id))
        if found is None:
            raise ClusterError(
                f"expected a job {submission_id!r} at {self._where}, found none. `batchtrain list` "
                "has those that are there; a head that was started anew has forgotten all before"
            )
        return found

    def jobs(self) -> list[JobStatus]:
        """See `Backend.jobs`."""
        found = [_status(job) for job in self._asked(self._client.list_jobs) if _is_ours(job)]
        return sorted(found, key=lambda job: (-(job.started or 0), job.submission_id))

    def log(self, submission_id: str) -> str:
        """See `Backend.log`; what Ray writes before the job begins is left out."""
        status = self.status(submission_id)
        text = str(self._asked(lambda: self._client.get_job_logs(submission_id)) or "")
        _, begin, rest = text.partition(BEGIN)
        if begin:
            return rest.partition("\n")[2]
        # It never began, and this says why.
        return text if status.is_over else ""

    def stop(self, submission_id: str) -> JobStatus:
        """See `Backend.stop`."""
        status = self.status(submission_id)
        if status.is_over:
            return status
        was_pending = status.state == "pending"
        self._asked(lambda: self._client.stop_job(submission_id))
        began = self._clock()
        while not (status := self.status(submission_id)).is_over:
            waited = self._clock() - began
            if was_pending and status.state == "pending" and waited > PENDING_STOP_S:
                self._cancel(submission_id)
                was_pending = False
            if waited > STOP_LIMIT_S:
                break
            self._sleep(0.5)
        return status

    def _cancel(self, submission_id: str) -> None:
        """End what waits for the process of a job; see `CANCEL`."""
        with suppress(ClusterError):
            self._asked(
                lambda: self._client.submit_job(
                    entrypoint=CANCEL,
                    submission_id=f"{submission_id}.stop",
                    runtime_env={"env_vars": {CANCEL_VARIABLE: submission_id}},
                )
            )

    def _find(self, name: str) -> JobStatus | None:
        try:
            return _status(self._client.get_job_info(name))
        except Exception as error:
            if _is_unknown(error):
                return None
            raise self._explained(error) from error

    def _found_after_all(self, name: str) -> JobStatus | None:
        """A job whose submission failed, or seemed to; None where it is surely not there."""
        for look in range(LOOKS):
            try:
                if (found := self._find(name)) is not None:
                    return found
            except ClusterError:
                if look == LOOKS - 1:
                    return None
            self._sleep(0.2 * 2**look)
        return None

    def _asked(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except ClusterError:
            raise
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> ClusterError:
        """What Ray's client raised, as one sentence without a token."""
        text = str(error)
        at = f"expected a Ray cluster at {self._where}"
        if "Authentication required" in text or "status code 401" in text or "401 Client" in text:
            return ClusterError(
                f"{at} that lets us in, found that it asks for a token. Put the cluster's into "
                "~/.ray/auth_token (mode 0600), or name its file in RAY_AUTH_TOKEN_PATH"
            )
        if "Authentication failed" in text or "status code 403" in text or "403 Client" in text:
            return ClusterError(
                f"{at} that lets us in, found that it refuses our token. Take the cluster's own: "
                "`ray get-auth-token` on its head prints it"
            )
        if isinstance(error, OSError):
            return ClusterError(
                f"{at}, found none that answers there. Start it, or correct --address: it is that "
                "of the dashboard, such as http://head:8265"
            )
        line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
        return ClusterError(f"{at} that takes the request, found: {line[:300]}")


def _client(address: str | None) -> Any:
    """Ray's client, which waits for an answer no longer than `LIMIT_S`."""
    set_auth_mode()
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, *words: Any, **options: Any) -> Any:
            options.setdefault("timeout", UPLOAD_LIMIT_S if method == "PUT" else LIMIT_S)
            return super()._do_request(method, *words, **options)

    for name in LOUD:
        # Its news are ours to tell.
        logging.getLogger(name).setLevel(logging.ERROR)
    with _without(ADDRESS_VARIABLES if address else ()):
        return Client(address)


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Take variables away for a while."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _status(job: Any) -> JobStatus:
    """A job as Ray describes it."""
    state = STATES.get(str(getattr(job.status, "value", job.status)), "unknown")
    message = job.message or ""
    if state == "failed" and KILLED.search(message) and job.driver_exit_code is None:
        # What `stop` does to a job that waits.
        state, message = "stopped", "stopped before it began"
    if job.driver_exit_code == 0 and state == "failed":
        # Ray may lose sight of a job whose entry point ended well.
        state = "succeeded"
    if state == "failed" and (waited := GIVEN_UP.search(message)):
        message = (
            f"it waited {float(waited[1]):g} s for its turn, and Ray gave it up. Submit again; "
            "RAY_JOB_START_TIMEOUT_SECONDS in the environment of the head says how long Ray waits"
        )
    line = next((line for line in message.splitlines() if line.strip()), "")
    return JobStatus(
        job.submission_id,
        state,
        message=line.split(", last available logs")[0][:300],
        exit_code=job.driver_exit_code,
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        metadata=job.metadata or {},
    )


def _is_ours(job: Any) -> bool:
    return bool(job.submission_id) and OURS in (job.metadata or {})


def _is_unknown(error: Exception) -> bool:
    text = str(error)
    return "status code 404" in text or "does not exist" in text
