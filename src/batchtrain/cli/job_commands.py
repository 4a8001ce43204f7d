"""The commands for jobs: submit, list, status, logs, stop."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from batchtrain.cli.options import AllowCode, AsJson, Overrides, SpecFile
from batchtrain.cli.outcome import command_outcome

__all__ = ["ProfileFile", "ProfileName", "list_jobs", "logs", "status", "stop", "submit"]


class BackendOption(StrEnum):
    """What takes jobs."""

    RAY = "ray"
    KUBERAY = "kuberay"
    LOCAL = "local"


class CommandOption(StrEnum):
    """What a job does."""

    RUN = "run"
    TUNE = "tune"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"


class StagesOption(StrEnum):
    """Whether stages share a job."""

    TOGETHER = "together"
    SEPARATE = "separate"


JobAddress = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The dashboard, such as http://head:8265; for local, the folder of the storage.",
    ),
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="The cluster, as a profile has it.")
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profiles", metavar="FILE", help="The file of the profiles.")
]
Backend = Annotated[BackendOption | None, typer.Option(help="What takes the job; else ray.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as `batchtrain list` has it.")]


def submit(
    spec: SpecFile,
    address: JobAddress = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    overrides: Overrides = None,
    allow_code: AllowCode = None,
    include: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A file or folder beside the spec that travels too."),
    ] = None,
    command: Annotated[CommandOption, typer.Option(help="What the job does.")] = CommandOption.RUN,
    stages: Annotated[
        StagesOption, typer.Option(help="All stages in one job, or each in a job of its own.")
    ] = StagesOption.TOGETHER,
    backend: Backend = None,
    again: Annotated[
        bool, typer.Option("--again", help="Start another job although this one is done.")
    ] = False,
    no_probe: Annotated[
        bool,
        typer.Option("--no-probe", help="Do not try the storage on the nodes before the job."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait for the job's end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a spec on a cluster, and follow it; the same request twice is one job."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.submitting import Cluster, submit_spec
        from batchtrain.submission.building import SubmitOptions

        cluster = Cluster.of(address, profile, profiles, _word(backend), folder=spec.parent)
        submit_spec(
            spec,
            overrides or [],
            cluster,
            SubmitOptions(
                command=command.value,
                stages=stages.value,
                backend=cluster.backend,
                allow_code=tuple(sorted(set(allow_code or []))),
            ),
            include=include or [],
            again=again,
            no_probe=no_probe,
            dry_run=dry_run,
            detach=detach,
            as_json=as_json,
        )


def list_jobs(
    address: JobAddress = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were submitted, the newest first."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.submitting import Cluster, show_jobs

        show_jobs(Cluster.of(address, profile, profiles, _word(backend)), as_json=as_json)


def status(
    job: JobId,
    address: JobAddress = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Say where a job stands."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.submitting import Cluster, show_status

        show_status(Cluster.of(address, profile, profiles, _word(backend)), job, as_json=as_json)


def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over.")
    ] = False,
    address: JobAddress = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Print what a job has written; with -f as it grows, and with the job's exit code."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.submitting import Cluster, show_log

        cluster = Cluster.of(address, profile, profiles, _word(backend))
        show_log(cluster, job, to_the_end=follow, as_json=as_json)


def stop(
    job: JobId,
    address: JobAddress = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """End a job; its run publishes a checkpoint first, and goes on when it is submitted again."""
    with command_outcome(as_json=as_json):
        from batchtrain.cli.submitting import Cluster, stop_job

        stop_job(Cluster.of(address, profile, profiles, _word(backend)), job, as_json=as_json)


def _word(backend: BackendOption | None) -> Any:
    return None if backend is None else backend.value
