"""What runs in a submitted job: `python -m batchtrain.cli.entry SHA256`, in its working directory.

That hash is of `request-<sha256>.json`, which has all that was asked for: no value of a user's is
ever part of a command. The job publishes how it ended, see `batchtrain.submission.results`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from batchtrain.cli.outcome import command_outcome
from batchtrain.errors import BatchtrainError, UnsafeInputError
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.storage import Storage, open_storage
from batchtrain.submission.building import COMMANDS, COORDINATE, FORMAT, PROBE
from batchtrain.submission.request import ID_VARIABLE, JobRequest, ShippedFile, check_id
from batchtrain.submission.results import JobResult, publish_result, result_key

__all__ = ["main", "read_request"]

SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_REQUEST_BYTES = 16 << 20
INTERRUPTED = 130


def main(words: Sequence[str]) -> int:
    """Verify the request in the working directory, do it, and publish how it ended.

    Args:
        words: The hash of the request.

    Returns:
        The exit code of the command.
    """
    folder = Path.cwd()
    try:
        with command_outcome():
            sha256 = words[0] if len(words) == 1 else ""
            arguments = read_request(folder, sha256)
            submission_id = check_id(os.environ.get(ID_VARIABLE, ""))
            loaded = load_spec(folder / arguments["spec"])
            storage = open_storage(loaded.spec.storage, loaded.path.parent)
            if arguments["command"] == PROBE:
                from batchtrain.submission.probe_job import probe_line, probe_nodes

                _say(probe_line(probe_nodes(storage)))
                return 0
            job = _Job(arguments, sha256, submission_id, loaded, storage)
            job.run()
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def read_request(folder: Path, sha256: str) -> dict[str, Any]:
    """The request of a job, and with it all files that it names, held against their hashes.

    Args:
        folder: The working directory.
        sha256: Of the request's bytes, in hex.

    Raises:
        UnsafeInputError: If anything is not as it was sent.
    """
    if not SHA256.fullmatch(sha256):
        raise UnsafeInputError(
            "expected one argument, the sha256 of the request in hex, found "
            f"{sha256[:80]!r}. A job is started by `batchtrain submit`"
        )
    path = folder / f"request-{sha256}.json"
    _check_bytes(path, sha256, MAX_REQUEST_BYTES)
    arguments: dict[str, Any] = json.loads(path.read_bytes())
    known = (*COMMANDS, COORDINATE, PROBE)
    if arguments.get("format") != FORMAT or arguments.get("command") not in known:
        raise UnsafeInputError(
            f"{path.name}: expected a request of format {FORMAT}, found one of another version of "
            f"batchtrain ({arguments.get('batchtrain')}). Use the same version here and there"
        )
    for name, digest in arguments["files"].items():
        _check_bytes(folder / name, digest)
    return arguments


def _check_bytes(path: Path, sha256: str, limit: int | None = None) -> None:
    try:
        if limit is not None and path.stat().st_size > limit:
            raise UnsafeInputError(f"{path.name}: expected {limit} bytes at most, found more")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnsafeInputError(
            f"{path}: expected a file that was sent with the job, found: {error.strerror}. Submit "
            "again"
        ) from error
    if found != sha256:
        raise UnsafeInputError(
            f"{path}: expected the bytes that were sent with the job (sha256 {sha256[:12]}...), "
            f"found others ({found[:12]}...). Nothing was started; submit again"
        )


class _Job:
    """One job, whose request was verified."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        sha256: str,
        submission_id: str,
        loaded: LoadedSpec,
        storage: Storage,
    ) -> None:
        self._arguments = arguments
        self._sha256 = sha256
        self._id = submission_id
        self._loaded = loaded
        self._storage = storage
        self._started = time.time()

    def run(self) -> None:
        """Do what was asked for; how it ended is published in any case."""
        command = self._arguments["command"]
        act: Callable[[], JobResult] = {
            COORDINATE: self._coordinate,
            "tune": self._tune,
        }.get(command, self._stages)
        with suppress(BatchtrainError):
            # An earlier start under this name has no say any more.
            self._storage.delete(result_key(self._id))
        try:
            result = act()
        except BatchtrainError as error:
            self._publish(self._result(exit_code=error.exit_code, error=type(error).__name__))
            raise
        except KeyboardInterrupt:
            self._publish(self._result(exit_code=INTERRUPTED, error="InterruptedRunError"))
            raise
        except BaseException as error:
            # A fault of batchtrain, which Python ends with 1.
            self._publish(self._result(exit_code=1, error=type(error).__name__))
            raise
        self._publish(result)
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    def _stages(self) -> JobResult:
        from batchtrain.cli.running import run_and_show

        command = self._arguments["command"]
        last = "export" if command == "run" else command
        result = run_and_show(self._loaded, last=last, allow_code=self._arguments["allow_code"])
        artifacts = {
            "prepare": result.prepared,
            "train": result.trained,
            "evaluate": result.report,
            "export": result.bundle,
        }
        made = {
            stage: {"key": each.artifact.key, "digest": each.artifact.manifest.digest}
            for stage, each in artifacts.items()
            if each is not None
        }
        document = result.to_json()
        places = {name: document[name] for name in ("prepared", "report", "bundle")}
        return self._result(made=made, places=places)

    def _tune(self) -> JobResult:
        from batchtrain.cli.running import tune_and_show

        result = tune_and_show(self._loaded, allow_code=self._arguments["allow_code"])
        document = result.to_json()
        return self._result(places={name: document[name] for name in ("table", "page")})

    def _coordinate(self) -> JobResult:
        from batchtrain.submission.coordinator import coordinate, plan_stages
        from batchtrain.submission.shipping import stage_files

        run = self._loaded.spec.name
        metadata = {"batchtrain": self._arguments["batchtrain"], "run": run}
        metadata["storage"] = self._loaded.spec.storage
        files = [
            ShippedFile(name, (Path.cwd() / name).stat().st_size, sha256, source=Path.cwd() / name)
            for name, sha256 in self._arguments["files"].items()
        ]
        jobs = plan_stages(self._arguments, files, metadata, self._id, os.environ)
        with tempfile.TemporaryDirectory(prefix="batchtrain-") as folder:

            def staged(request: JobRequest) -> Path:
                # Without what this process has written beside the files, so that the same working
                # directory is sent once.
                place = Path(folder, request.submission_id)
                place.mkdir()
                stage_files(request, place)
                return place

            result = coordinate(jobs, self._backend(), self._storage, staged, _say)
        return self._result(
            exit_code=result.exit_code, error=result.error, made=result.made, places=result.places
        )

    def _backend(self) -> Any:
        if self._arguments["backend"] == "local":
            from batchtrain.submission.local_jobs import LocalJobs

            return LocalJobs(Path(self._loaded.spec.storage))
        from batchtrain.submission.ray_jobs import RayJobs

        return RayJobs()

    def _result(
        self,
        *,
        exit_code: int = 0,
        error: str | None = None,
        made: Mapping[str, Mapping[str, str]] | None = None,
        places: Mapping[str, str | None] | None = None,
    ) -> JobResult:
        kept = {name: place for name, place in (places or {}).items() if place is not None}
        return JobResult(self._id, self._sha256, exit_code, error, made or {}, kept, self._started)

    def _publish(self, result: JobResult) -> None:
        """Say how it ended; where the storage refuses that, the exit code alone says it."""
        try:
            publish_result(self._storage, result)
        except BatchtrainError as error:
            print(f"how the job ended could not be published: {error}", file=sys.stderr)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
