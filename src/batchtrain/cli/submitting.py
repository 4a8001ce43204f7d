"""What the commands for jobs do, and what they print."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
import yaml

from batchtrain.cli.cluster import Cluster
from batchtrain.cli.outcome import plain, print_json
from batchtrain.errors import ClusterError, InterruptedRunError
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.submission.building import (
    MASK,
    SubmitOptions,
    build_request,
    choose_id,
    printable_request,
    with_id,
    without_forwarded,
)
from batchtrain.submission.checking import all_findings
from batchtrain.submission.findings import Finding, refuse_errors
from batchtrain.submission.following import NewLines, follow
from batchtrain.submission.probe_job import ask_probe
from batchtrain.submission.profile import Profile
from batchtrain.submission.profiles import with_profile
from batchtrain.submission.request import Backend, JobRequest, JobStatus, check_id
from batchtrain.submission.results import result_of, settled, storage_of
from batchtrain.submission.shipping import Shipment, ship, stage_files

__all__ = ["Cluster", "show_jobs", "show_log", "show_status", "stop_job", "submit_spec"]

INTERRUPTED = 130


def submit_spec(
    spec: Path,
    overrides: Sequence[str],
    cluster: Cluster,
    options: SubmitOptions,
    *,
    include: Sequence[Path] = (),
    again: bool = False,
    no_probe: bool = False,
    dry_run: bool = False,
    detach: bool = False,
    as_json: bool = False,
) -> None:
    """Build the request, check it, send it, and follow the job; ends with the job's exit code."""
    storage = [f"storage={cluster.address}"] if _is_storage(cluster) else []
    loaded = with_profile(load_spec(spec, [*storage, *overrides]), cluster.profile)
    shipment = ship(
        loaded,
        allow_code=options.allow_code,
        include=include,
        ship_package=cluster.profile.ship_package,
        keep_paths=cluster.backend == "local",
    )
    request = build_request(loaded, shipment, cluster.profile, options, os.environ)
    if dry_run:
        _show_request(request, cluster, shipment, as_json=as_json)
        return
    for note in shipment.notes:
        print(plain(f"note: {note}"), file=sys.stderr)
    cluster = cluster.at(shipment.loaded.spec.storage)
    backend = _connected(cluster, "submitting to", as_json=as_json)
    choice = choose_id(request.submission_id, backend.jobs(), again=again)
    request = with_id(request, choice.submission_id)
    if choice.known is None:
        check(request, loaded, cluster, options, backend, no_probe=no_probe)
    job, is_new = _sent(request, choice.known, backend)
    say = _sayer(as_json=as_json)
    say(f"{'submitted' if is_new else 'found'} {job.submission_id}" + _standing(job, is_new=is_new))
    if detach:
        _show_ways(say, cluster, job)
        if as_json:
            print_json(_document(job))
        return
    _follow(backend, cluster, job, say, as_json=as_json)


def check(
    request: JobRequest,
    loaded: LoadedSpec,
    cluster: Cluster,
    options: SubmitOptions,
    backend: Backend,
    *,
    no_probe: bool = False,
) -> None:
    """Hold a request against the cluster before it is sent; warnings are printed.

    Args:
        request: What is to be sent.
        loaded: The spec, with what the profile has put in.
        cluster: Where.
        options: What is to be done there.
        backend: What takes it.
        no_probe: Whether no job tries the storage before.

    Raises:
        SpecError: If a key of spec or profile keeps the job from running.
        ClusterError: If it is the cluster.
    """

    def probe() -> list[Finding]:
        return ask_probe(request, backend, lambda small: _sent(small, None, backend))

    findings = all_findings(
        loaded,
        cluster.profile,
        environ=os.environ,
        command=options.command,
        separate=options.stages == "separate",
        probe=None if no_probe else probe,
    )
    for found in findings:
        if found.severity == "warning":
            print(plain(str(found)), file=sys.stderr)
    refuse_errors(findings)


def show_jobs(cluster: Cluster, *, as_json: bool = False) -> None:
    """Print the jobs of a cluster, the newest first."""
    jobs = _connected(cluster, "asking", as_json=as_json).jobs()
    if as_json:
        print_json({"jobs": [_document(job) for job in jobs]})
        return
    if not jobs:
        print("no job of batchtrain is known there")
    width = max((len(job.submission_id) for job in jobs), default=0)
    for job in jobs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        words = f"{job.submission_id:<{width}}  {job.state:<9}  {when}  "
        print(plain(f"{words}{job.metadata.get('command', '')}".rstrip()))


def show_status(cluster: Cluster, submission_id: str, *, as_json: bool = False) -> None:
    """Print where a job stands, and what it has made."""
    backend = _connected(cluster, "asking", as_json=as_json)
    job, places = _looked_up(backend.status(check_id(submission_id)))
    if as_json:
        print_json({**_document(job), "places": places})
        return
    print(plain(f"{job.submission_id}{_standing(job)}"))
    for name, place in places.items():
        print(plain(f"{name:<9} {place}"))


def show_log(
    cluster: Cluster, submission_id: str, *, to_the_end: bool = False, as_json: bool = False
) -> None:
    """Print what a job has written; to its end it ends with the job's exit code."""
    backend = _connected(cluster, "asking", as_json=as_json)
    job = backend.status(check_id(submission_id))
    if to_the_end:
        _follow(backend, cluster, job, _sayer(as_json=as_json), as_json=as_json)
        return
    for line in NewLines().take(backend.log(submission_id), is_whole=True):
        print(line)
    if as_json:
        print_json(_document(_looked_up(job)[0]))


def stop_job(cluster: Cluster, submission_id: str, *, as_json: bool = False) -> None:
    """End a job, and print how it stands then."""
    backend = _connected(cluster, "asking", as_json=as_json)
    job, _ = _looked_up(backend.stop(check_id(submission_id)))
    if as_json:
        print_json(_document(job))
    else:
        print(plain(f"{job.submission_id}{_standing(job)}"))
    if not job.is_over:
        raise ClusterError(
            f"expected {submission_id} to end, found it {job.state} still. Look again in a while: "
            f"batchtrain status {submission_id}{cluster.words}"
        )


def _connected(cluster: Cluster, doing: str, *, as_json: bool) -> Backend:
    """What takes the jobs; where a profile leads is said before anything goes there."""
    if cluster.place and not as_json:
        print(plain(f"{doing} {cluster.place}"), file=sys.stderr)
    return cluster.connect()


def _sent(request: JobRequest, known: JobStatus | None, backend: Backend) -> tuple[JobStatus, bool]:
    if known is not None:
        return known, False
    with tempfile.TemporaryDirectory(prefix="batchtrain-") as folder:
        stage_files(request, Path(folder))
        return backend.submit(request, Path(folder))


def _follow(
    backend: Backend,
    cluster: Cluster,
    job: JobStatus,
    say: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
    """Show the log until the job is over, and end with its exit code."""

    def changed(status: JobStatus) -> None:
        if status.state == "pending":
            say("waiting for its turn")

    try:
        ended = follow(backend, job.submission_id, say, changed=changed)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"Detached; {job.submission_id} goes on. Look again: batchtrain logs -f "
            f"{job.submission_id}{cluster.words}; end it: batchtrain stop "
            f"{job.submission_id}{cluster.words}"
        ) from None
    ended, places = _looked_up(ended)
    if as_json:
        print_json({**_document(ended), "places": places})
    code = _exit_code(ended)
    if code:
        say(f"{ended.submission_id}{_standing(ended)}")
        raise typer.Exit(code)


def _looked_up(job: JobStatus) -> tuple[JobStatus, dict[str, str]]:
    """A job as it says itself that it ended, and where its results are."""
    if not job.is_over or (storage := storage_of(job)) is None:
        return settled(job, None), {}
    result = result_of(storage, job)
    return settled(job, result), {} if result is None else dict(result.places)


def _exit_code(job: JobStatus) -> int:
    if job.state == "succeeded":
        return 0
    if job.state == "stopped":
        return INTERRUPTED
    return job.exit_code or 1


def _standing(job: JobStatus, *, is_new: bool = False) -> str:
    """Where a job stands, as the end of a line."""
    if is_new:
        return ""
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    is_clear = not job.message or job.state in {"succeeded", "running"}
    return f"  {job.state}{code}" + ("" if is_clear else f": {job.message}")


def _document(job: JobStatus) -> dict[str, Any]:
    return asdict(job)


def _sayer(*, as_json: bool) -> Callable[[str], None]:
    stream = sys.stderr if as_json else sys.stdout

    def say(line: str) -> None:
        print(plain(line), file=stream, flush=True)

    return say


def _show_ways(say: Callable[[str], None], cluster: Cluster, job: JobStatus) -> None:
    for command in ("logs -f", "status", "stop"):
        say(f"  batchtrain {command} {job.submission_id}{cluster.words}")


def _show_request(
    request: JobRequest, cluster: Cluster, shipment: Shipment, *, as_json: bool
) -> None:
    if cluster.backend == "kuberay" and not as_json:
        # This is what is sent: the rest follows from it.
        shown = without_forwarded(request)
        if shown != request:
            print(f"note: {MASK!r} stands for each value that is forwarded", file=sys.stderr)
        print(_manifest_text(shown, cluster.profile), end="")
        return
    document = {
        "backend": cluster.backend,
        "address": cluster.address,
        **printable_request(request),
        "notes": list(shipment.notes),
    }
    if as_json:
        print_json(document)
    else:
        # The hashes of the files are among the arguments; for people once is enough.
        document["arguments"] = {**request.arguments, "files": f"the {len(request.files)} below"}
        print(plain(yaml.safe_dump(document, sort_keys=False, width=200)), end="")


def _manifest_text(request: JobRequest, profile: Profile) -> str:
    from batchtrain.submission.kuberay import KubeRayBackend

    with tempfile.TemporaryDirectory(prefix="batchtrain-") as folder:
        stage_files(request, Path(folder))
        return KubeRayBackend(profile).manifest(request, Path(folder)).text


def _is_storage(cluster: Cluster) -> bool:
    """Whether the address is that of the storage, as it is for `local`."""
    return cluster.backend == "local" and cluster.address is not None
