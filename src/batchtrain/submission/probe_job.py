"""A small job before the job: whether every node writes, and all nodes read, the storage of a run.

It holds no cores, so that it runs where the cluster is full.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from typing import Any
from uuid import uuid4

from batchtrain.engines.nodes import check_storage_on_nodes
from batchtrain.engines.session import RaySession
from batchtrain.errors import BatchtrainError, ClusterError
from batchtrain.storage import RetryingStorage, Storage, probe_storage
from batchtrain.submission.building import PROBE, entrypoint_of, with_id
from batchtrain.submission.findings import Finding
from batchtrain.submission.request import Backend, JobRequest, JobResources, JobStatus
from batchtrain.submission.shipping import PACKAGE

__all__ = ["ask_probe", "probe_findings", "probe_line", "probe_nodes", "probe_request"]

MARK = "batchtrain_probe"
VERSION = 1
LIMIT_S = 90.0
"""Seconds in which a probe that runs must end: each node starts a process, which loads torch."""

PENDING_LIMIT_S = 60.0
"""Seconds in which it must begin: Ray starts a process for it, on a machine that may be busy."""

LIMIT_OF_CALL_S = 4.0
"""Seconds after which a call of the storage is not tried again."""

PACKAGES = ("batchtrain", "ray", "torch", "pyarrow")
MAX_MESSAGE = 2000
ADVICE = re.compile(r"\s*\n(?=Set )")
LOST = "Look at the log of that job on the cluster"


# ----------------------------------------------------------------------------------------------
# On the cluster.


def probe_nodes(
    storage: Storage, *, check: Callable[[Storage], None] | None = None
) -> dict[str, Any]:
    """Try the storage from this process, then from all nodes of the cluster it is in.

    Args:
        storage: Of the run.
        check: Asks the nodes; left out, over Ray.

    Returns:
        The versions here, and in `problem` one line about what is wrong; empty where all is well.
    """
    document: dict[str, Any] = {MARK: VERSION, "python": platform.python_version()}
    document |= {name: _version_of(name) for name in PACKAGES}
    try:
        # One probe, and no long retries: somebody waits for the answer.
        quick = RetryingStorage(_plain(storage), limit=LIMIT_OF_CALL_S)
        probe_storage(quick)
        (check or _check_over_ray)(quick)
    except BatchtrainError as error:
        document["problem"] = _one_line(str(error))
    else:
        document["problem"] = ""
    return document


def probe_line(document: Mapping[str, Any]) -> str:
    """What the job prints as its last line."""
    return json.dumps(document, sort_keys=True)


def _plain(storage: Storage) -> Storage:
    """A storage without its layers."""
    while (inner := getattr(storage, "inner", None)) is not None:
        storage = inner
    return storage


def _check_over_ray(storage: Storage) -> None:
    with RaySession("auto") as session:
        session.connect()
        check_storage_on_nodes(storage)


def _version_of(name: str) -> str | None:
    if name == "batchtrain":
        # The one that runs, which may have come with the job.
        from batchtrain.version import __version__

        return __version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ----------------------------------------------------------------------------------------------
# Here.


def probe_request(request: JobRequest) -> JobRequest:
    """The probe of a request: its spec and its package, another command, no cores."""
    kept = [
        file
        for file in request.files
        if file.name == request.arguments["spec"] or file.name.startswith(f"{PACKAGE}/")
    ]
    arguments = {
        "format": request.arguments["format"],
        "batchtrain": request.arguments["batchtrain"],
        "command": PROBE,
        "spec": request.arguments["spec"],
        "files": {file.name: file.sha256 for file in kept},
    }
    probe = replace(
        request,
        entrypoint=entrypoint_of(arguments),
        arguments=arguments,
        files=tuple(kept),
        resources=JobResources(cpus=0.0),
        metadata={MARK: str(VERSION)},
    )
    return with_id(probe, f"{PROBE}-{uuid4().hex[:12]}")


def ask_probe(
    request: JobRequest,
    backend: Backend,
    send: Callable[[JobRequest], Any],
    *,
    limit: float = LIMIT_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Finding]:
    """Run the probe of a request, and say what it found.

    One that does not begin or end in time is a warning: nothing is known to be wrong.

    Args:
        request: What is to be run after it.
        backend: Where.
        send: Stages the files of a request and submits it there.
        limit: Seconds in which it must end, once it runs.
        sleep: Waits for seconds.
        clock: Seconds that never go back.
    """
    probe = probe_request(request)
    name = probe.submission_id
    try:
        send(probe)
        until, is_pending = clock() + PENDING_LIMIT_S, True
        while not (job := backend.status(name)).is_over:
            if is_pending and job.state != "pending":
                until, is_pending = clock() + limit, False
            if clock() > until:
                with suppress(ClusterError):
                    backend.stop(name)
                wanted = "begin" if is_pending else "end"
                return [_not_tried(wanted, PENDING_LIMIT_S if is_pending else limit, job)]
            sleep(0.5)
        return probe_findings(job, backend.log(name))
    except ClusterError as error:
        return [Finding("error", "probe", _one_line(str(error)))]


def _not_tried(wanted: str, limit: float, job: JobStatus) -> Finding:
    message = (
        f"the storage was not tried: expected that its probe {job.submission_id} would {wanted} "
        f"within {limit:g} s, found it {job.state} still. The job is sent all the same; "
        "`--no-probe` leaves the probe out"
    )
    return Finding("warning", "probe", message)


def probe_findings(job: JobStatus, log: str) -> list[Finding]:
    """Read what a probe has found.

    Args:
        job: The probe, which is over.
        log: What it has written.
    """
    document = _last_document(log)
    if document is None:
        return [Finding("error", "probe", _without_answer(job, log))]
    findings = []
    problem = document.get("problem")
    if problem or not isinstance(problem, str):
        message = _printable(problem) if isinstance(problem, str) else "found no answer"
        message = message.removeprefix("storage ")
        findings.append(Finding("error", "storage", message))
    there = document.get("torch")
    here = _version_of("torch")
    if there is None:
        message = "expected torch on the cluster, found none. Install it there: the same as here"
        findings.append(Finding("error", "torch", message))
    elif here is not None and there != here:
        findings.append(
            Finding(
                "warning",
                "torch",
                f"expected torch {here}, as here, found {_printable(str(there))} on the cluster, "
                "where the same spec may give other last digits. Use the same on both",
            )
        )
    return findings


def _last_document(log: str) -> dict[str, Any] | None:
    for line in reversed(log.splitlines()):
        if MARK not in line:
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get(MARK) == VERSION:
            return document
    return None


def _without_answer(job: JobStatus, log: str) -> str:
    wanted = "expected that the cluster runs a probe of the storage, found"
    if "No module named 'batchtrain" in log or "No module named batchtrain" in log:
        return (
            f"{wanted} no batchtrain there. Install the same version, or ship it with the job: "
            "`ship_package: true` in the profile"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = _printable(lines[-1] if lines else job.message)[:300]
    return f"{wanted} that it {job.state}{f': {said}' if said else ''}. {LOST}"


def _one_line(text: str) -> str:
    """A message of several lines, of which the last says what to do, as one."""
    return _printable(" ".join(ADVICE.sub(". ", text).split()))


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:MAX_MESSAGE]
