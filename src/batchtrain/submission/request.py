"""A request to run a spec elsewhere: a value that can be printed before it is acted on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.errors import ClusterError

__all__ = [
    "ID_PATTERN",
    "ID_VARIABLE",
    "JOBS",
    "Backend",
    "JobRequest",
    "JobResources",
    "JobState",
    "JobStatus",
    "ShippedFile",
    "check_id",
    "request_file",
]

ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]{0,119}")
"""The name of a job: safe in a shell, an address, a folder and an object key."""

ID_VARIABLE = "BATCHTRAIN_SUBMISSION_ID"
"""By which the entry point knows its job."""

JOBS = "_jobs"
"""The folder of a storage for what is known of jobs; no run has such a name."""

JobState = Literal["pending", "running", "succeeded", "failed", "stopped", "unknown"]
"""Waiting for its turn or its resources, at work, exit code 0, any other, ended by `stop`."""


@dataclass(frozen=True)
class ShippedFile:
    """One file of the working directory that travels with a job.

    Attributes:
        name: Its path in that directory, with forward slashes.
        size: In bytes.
        sha256: Of its bytes, in hex.
        source: Where it lies here; not part of what is sent.
        content: Its bytes, where it was made for the job and lies nowhere.
    """

    name: str
    size: int
    sha256: str
    source: Path | None = field(default=None, compare=False)
    content: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class JobResources:
    """What the process of a job's entry point holds; its workers ask for their own.

    Attributes:
        cpus: Cores; with at least 1 the job waits for its turn where the cluster is full.
        gpus: GPUs.
        memory_bytes: Of the machine's memory; 0 for no claim.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class JobRequest:
    """Everything that is sent to start one job, and nothing else is.

    Attributes:
        submission_id: The name of the job, from the run's name and the fingerprint of all below:
            so the same request twice is one job.
        entrypoint: The command, a constant but for a hash in hex: a cluster runs it in a shell.
        arguments: The file of values that the entry point reads from the working directory, by the
            hash of its bytes (`request-<sha256>.json`); as JSON.
        files: The working directory.
        runtime_env: Ray's runtime environment but for the working directory.
        resources: What the entry point holds.
        metadata: Shown by the cluster beside the job; strings, none of them secret.
    """

    submission_id: str
    entrypoint: str
    arguments: Mapping[str, Any]
    files: Sequence[ShippedFile] = ()
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    resources: JobResources = JobResources()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobStatus:
    """A job as its backend knows it.

    Attributes:
        submission_id: Its name.
        state: Where it stands.
        message: What the backend says of it, on one line.
        exit_code: Of its entry point; None while there is none.
        started: When it was submitted or began, in seconds since the epoch; None where unknown.
        ended: When it was over.
        metadata: What was sent with it.
    """

    submission_id: str
    state: JobState
    message: str = ""
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in {"succeeded", "failed", "stopped"}


class Backend(Protocol):
    """Where jobs run. Whatever it raises is an error of `batchtrain.errors` without a secret."""

    def submit(self, request: JobRequest, staged: Path) -> tuple[JobStatus, bool]:
        """Start a job unless one of this name is there.

        Args:
            request: What to start.
            staged: A folder with the files of the request in place.

        Returns:
            The job, and whether this call started it. Where a reply was lost the job is found
            again, so that trying again is safe.
        """
        ...

    def status(self, submission_id: str) -> JobStatus:
        """One job; raises `ClusterError` where there is none of this name."""
        ...

    def jobs(self) -> list[JobStatus]:
        """All jobs that batchtrain started here, the newest first."""
        ...

    def log(self, submission_id: str) -> str:
        """All that the job has written so far."""
        ...

    def stop(self, submission_id: str) -> JobStatus:
        """Ask a job to end; one that is over stays as it is."""
        ...


def request_file(arguments: Mapping[str, Any]) -> tuple[str, bytes]:
    """The sha256, in hex, and the bytes of the file that the entry point reads."""
    data = canonical_json(arguments)
    return hashlib.sha256(data).hexdigest(), data


def check_id(text: str) -> str:
    """The name of a job, as it is.

    Raises:
        ClusterError: If no job can be called so.
    """
    if not ID_PATTERN.fullmatch(text):
        raise ClusterError(
            f"expected the id of a job, such as drug200-0123456789ab, found {text[:80]!r}. "
            "`batchtrain list` has them"
        )
    return text
