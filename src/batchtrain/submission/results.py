"""What became of a job, as the job itself has published it: this decides, not the cluster's word.

A cluster may say that a job failed whose entry point ended well, such as when it lost sight of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.errors import BatchtrainError
from batchtrain.storage import Storage, is_address, open_storage
from batchtrain.submission.request import JOBS, JobState, JobStatus

__all__ = [
    "JobResult",
    "publish_result",
    "read_result",
    "result_key",
    "result_of",
    "settled",
    "storage_of",
]

FORMAT = 1

CLOCKS_S = 30.0
"""By how many seconds the clock of a node may be behind that of the cluster's head. Clocks that are
kept differ by less than one; and hardly a job begins, ends and is forgotten by its cluster in so
short a time before the next one of its name is submitted."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        submission_id: Its name.
        request: The sha256 of what it was asked to do.
        exit_code: As of the command.
        error: The kind of the error; None where all went well.
        made: What it has made, by name: keys of artifacts with their digests.
        places: Where a person finds it.
        started: When its entry point began, in seconds since the epoch; None in results of
            versions that did not say so.
    """

    submission_id: str
    request: str
    exit_code: int
    error: str | None = None
    made: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is published."""
        return {
            "format": FORMAT,
            "submission_id": self.submission_id,
            "request": self.request,
            "exit_code": self.exit_code,
            "error": self.error,
            "made": {name: dict(each) for name, each in self.made.items()},
            "places": dict(self.places),
            "started": self.started,
        }


def result_key(submission_id: str) -> str:
    """Where the result of a job lies in the storage of its run."""
    return f"{JOBS}/{submission_id}/result.json"


def publish_result(storage: Storage, result: JobResult) -> None:
    """Publish how a job ended; a later attempt of the same name has the last word."""
    storage.write(result_key(result.submission_id), canonical_json(result.to_json()))


def read_result(storage: Storage, submission_id: str) -> JobResult | None:
    """The result of a job; None where there is none, or none that can be read."""
    try:
        found = json.loads(storage.read(result_key(submission_id)))
        if found["format"] != FORMAT or found["submission_id"] != submission_id:
            return None
        made = {str(name): dict(each) for name, each in found["made"].items()}
        places = {str(name): str(each) for name, each in found["places"].items()}
        code, request = int(found["exit_code"]), str(found["request"])
        started = None if found.get("started") is None else float(found["started"])
        return JobResult(submission_id, request, code, found["error"], made, places, started)
    except (OSError, BatchtrainError, ValueError, TypeError, KeyError, AttributeError):
        return None


def result_of(storage: Storage, status: JobStatus) -> JobResult | None:
    """What a job itself has published of its end; None where it has not, or not yet.

    Names come again where a cluster has forgotten its jobs, and the result of an earlier job is
    there until the entry point of the new one begins, which it may never do.

    Args:
        storage: That of its run.
        status: What the backend says.
    """
    result = read_result(storage, status.submission_id)
    if result is None or result.started is None or status.started is None:
        return result
    return None if result.started < status.started - CLOCKS_S else result


def settled(status: JobStatus, result: JobResult | None) -> JobStatus:
    """A job that is over, with the exit code that it has published itself.

    Args:
        status: What the backend says.
        result: What the job says.
    """
    if not status.is_over:
        return status
    code = status.exit_code if result is None else result.exit_code
    if code is None:
        return status
    if code == 0:
        return replace(status, state="succeeded", exit_code=0)
    state: JobState = "stopped" if status.state == "stopped" else "failed"
    return replace(status, state=state, exit_code=code)


def storage_of(status: JobStatus) -> Storage | None:
    """The storage of a job's run, for reading, where it can be seen from here at all.

    A bucket is asked only where the backend gives no exit code: without credentials here it may
    take long to refuse.
    """
    text = status.metadata.get("storage", "")
    is_folder = Path(text).is_absolute() and Path(text).is_dir()
    is_worth_it = is_address(text) and status.exit_code is None
    if not (is_folder or is_worth_it):
        return None
    with suppress(BatchtrainError):
        storage = open_storage(text, Path())
        # A look is enough: nothing is written, and nobody waits for a bucket that is away.
        while (inner := getattr(storage, "inner", None)) is not None:
            storage = inner
        return storage
    return None
