"""From a spec, a profile and options to the request: a pure function of what travels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from batchtrain.engines.job_storage import check_job_storage
from batchtrain.engines.session import CORES_VARIABLE
from batchtrain.errors import Problem, SpecError
from batchtrain.spec.base import fingerprint_of
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import is_address
from batchtrain.submission.fitting import STAGES, held_by_job, held_by_stage
from batchtrain.submission.profile import BackendName, Profile
from batchtrain.submission.request import (
    ID_VARIABLE,
    JobRequest,
    JobResources,
    JobStatus,
    request_file,
)
from batchtrain.submission.secrets import has_password, is_secret_variable
from batchtrain.submission.shipping import Shipment
from batchtrain.submission.submitter_shell import shell_problems
from batchtrain.version import __version__

__all__ = [
    "COMMANDS",
    "ENTRYPOINT",
    "FORMAT",
    "MASK",
    "Choice",
    "CommandName",
    "StagesName",
    "SubmitOptions",
    "attempt_id",
    "build_request",
    "choose_id",
    "entrypoint_of",
    "env_vars",
    "printable_request",
    "with_id",
    "without_forwarded",
]

CommandName = Literal["run", "tune", "prepare", "train", "evaluate", "export"]
COMMANDS: tuple[CommandName, ...] = ("run", "tune", "prepare", "train", "evaluate", "export")
StagesName = Literal["together", "separate"]

FORMAT = 1
"""Of the request file."""

ENTRYPOINT = "python -m batchtrain.cli.entry "
"""What a cluster gives to a shell; a sha256 in hex is all that follows."""

STOP_WAIT_S = 60
"""After `stop` a run publishes one more checkpoint; Ray would kill it after 3 seconds."""

STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"

OUTPUT_VARIABLE, OUTPUT = "PYTHONIOENCODING", "utf-8:backslashreplace"
"""Ray gives a log away only when every byte of it is UTF-8. Python would write others where the
locale is C, such as those of a file's name."""

OURS = frozenset({ID_VARIABLE, CORES_VARIABLE, STOP_WAIT_VARIABLE, OUTPUT_VARIABLE})
MASK = "(from the environment)"

COORDINATE = "coordinate"
PROBE = "probe"
"""See `batchtrain.submission.probe_job`."""


@dataclass(frozen=True)
class SubmitOptions:
    """What the command line says about a job.

    Attributes:
        command: What the job does, as the command of that name.
        stages: All in one job, or each in its own.
        backend: Where it runs.
        allow_code: Packages whose code may run.
    """

    command: CommandName = "run"
    stages: StagesName = "together"
    backend: BackendName = "ray"
    allow_code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Under which name a job goes.

    Attributes:
        submission_id: Its name.
        known: The job of that name that is there already, to be joined; None where it is to be
            started.
    """

    submission_id: str
    known: JobStatus | None = None


def build_request(
    loaded: LoadedSpec,
    shipment: Shipment,
    profile: Profile,
    options: SubmitOptions,
    environ: Mapping[str, str],
) -> JobRequest:
    """Make the request of a job; the same parts give the same request, its name included.

    Args:
        loaded: The spec, for places in messages.
        shipment: What travels.
        profile: The cluster.
        options: What is to be done there.
        environ: The variables that `profile.forward` chooses from.

    Raises:
        SpecError: If the results would be deleted with the job, the stages of this command
            cannot be apart, a variable may not be forwarded, or a shell would obey a value.
    """
    if options.backend != "local":
        check_job_storage(
            LoadedSpec(shipment.loaded.spec, loaded.path, loaded.places), inside_job=True
        )
    _check(loaded, profile, options, environ)
    separate = options.stages == "separate"
    arguments: dict[str, Any] = {
        "format": FORMAT,
        "batchtrain": __version__,
        "command": COORDINATE if separate else options.command,
        "spec": shipment.spec,
        "allow_code": list(options.allow_code),
        "files": {file.name: file.sha256 for file in shipment.files},
        "stays": list(shipment.stays),
    }
    if separate:
        arguments["backend"] = "local" if options.backend == "local" else "ray"
        arguments["forward"] = list(profile.forward)
        stages = {name: held_by_stage(profile, name, shipment.loaded.spec) for name in STAGES}
        arguments["stages"] = {name: asdict(each) for name, each in stages.items()}
    # A coordinator only waits: with a core of its own it could keep its stages from theirs.
    own = held_by_job(profile, options.command, shipment.loaded.spec)
    own = JobResources(cpus=0.0) if separate else own
    request = JobRequest(
        submission_id="",
        entrypoint=entrypoint_of(arguments),
        arguments=arguments,
        files=shipment.files,
        runtime_env={"env_vars": env_vars(profile.forward, environ, own)},
        resources=own,
        metadata={
            "batchtrain": __version__,
            "run": shipment.loaded.spec.name,
            "command": options.command,
            "stages": options.stages,
            "storage": shipment.loaded.spec.storage,
        },
    )
    base = f"{shipment.loaded.spec.name}-{_fingerprint(request)[:12]}"
    return with_id(request, base)


def entrypoint_of(arguments: Mapping[str, Any]) -> str:
    """The command of a job; nothing in it comes from a user but through a hash."""
    return ENTRYPOINT + request_file(arguments)[0]


def env_vars(
    forward: Sequence[str], environ: Mapping[str, str], held: JobResources
) -> dict[str, str]:
    """The variables of a job: those that are forwarded and set, and ours."""
    return {
        STOP_WAIT_VARIABLE: str(STOP_WAIT_S),
        CORES_VARIABLE: f"{held.cpus:g}",
        OUTPUT_VARIABLE: OUTPUT,
        **_forwarded(forward, environ),
    }


def _forwarded(forward: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in sorted(forward) if name in environ}


def with_id(request: JobRequest, submission_id: str) -> JobRequest:
    """The same request under another name, which its entry point knows too."""
    variables = {**request.runtime_env.get("env_vars", {}), ID_VARIABLE: submission_id}
    runtime_env = {**request.runtime_env, "env_vars": variables}
    return replace(request, submission_id=submission_id, runtime_env=runtime_env)


def attempt_id(base: str, attempt: int) -> str:
    """The name of an attempt, from 1: the base itself, then `-2`, `-3`, ..."""
    return base if attempt == 1 else f"{base}-{attempt}"


def choose_id(base: str, jobs: Collection[JobStatus], *, again: bool = False) -> Choice:
    """Under which name a request goes, by what is there: two submitters choose the same.

    A job that waits, runs or is done is joined; after one that failed or was stopped the next
    attempt is started.

    Args:
        base: The name of the first attempt.
        jobs: Those that the cluster lists.
        again: Whether a job that is done is started once more.
    """
    known = {job.submission_id: job for job in jobs}
    attempt = 1
    while (job := known.get(attempt_id(base, attempt))) is not None:
        is_past = job.state in {"failed", "stopped"} or (again and job.state == "succeeded")
        if not is_past:
            return Choice(job.submission_id, job)
        attempt += 1
    return Choice(attempt_id(base, attempt))


def printable_request(request: JobRequest) -> dict[str, Any]:
    """All of a request but the values of variables that are forwarded from an environment."""
    request = without_forwarded(request)
    return {
        "submission_id": request.submission_id,
        "entrypoint": request.entrypoint,
        "runtime_env": dict(request.runtime_env),
        "resources": asdict(request.resources),
        "metadata": dict(request.metadata),
        "arguments": dict(request.arguments),
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256} for file in request.files
        ],
    }


def without_forwarded(request: JobRequest) -> JobRequest:
    """The same request, to be shown, with words in place of each value that is forwarded."""
    variables = {
        name: value if name in OURS else MASK
        for name, value in request.runtime_env.get("env_vars", {}).items()
    }
    return replace(request, runtime_env={**request.runtime_env, "env_vars": variables})


def _fingerprint(request: JobRequest) -> str:
    return fingerprint_of(
        {
            "arguments": dict(request.arguments),
            "runtime_env": dict(request.runtime_env),
            "resources": asdict(request.resources),
        }
    )


def _check(
    loaded: LoadedSpec, profile: Profile, options: SubmitOptions, environ: Mapping[str, str]
) -> None:
    problems = []
    if options.stages == "separate" and options.command != "run":
        problems.append(
            Problem(
                "--stages separate",
                "",
                f"expected the command run, whose stages can be apart, found {options.command}",
                "Leave out one of the two",
            )
        )
    if options.command == "tune" and loaded.spec.search is None:
        problems.append(
            Problem(loaded.where("search"), "search", "expected a section, found none", "See tune")
        )
    problems += _forward_problems(profile.forward, environ)
    if options.backend == "kuberay":
        problems += shell_problems({"storage": loaded.spec.storage}, loaded.where("storage"))
        problems += shell_problems(_forwarded(profile.forward, environ), "profile: forward")
    if options.backend == "local" and is_address(loaded.spec.storage):
        problems.append(
            Problem(
                loaded.where("storage"),
                "storage",
                "expected a folder with the backend local, which keeps its jobs there, found an "
                "address",
                "Use `batchtrain run` in a terminal of its own, or another backend",
            )
        )
    if problems:
        raise SpecError(problems)


def _forward_problems(forward: Sequence[str], environ: Mapping[str, str]) -> list[Problem]:
    """Variables that hold a secret, by their names or by their values, which are not repeated."""
    hint = "Whoever may see a job sees them: give credentials to the nodes themselves"
    problems = []
    for name in forward:
        if is_secret_variable(name):
            message = f"expected names of variables without secrets, found {name}"
        elif has_password(environ.get(name, "")):
            message = (
                f"expected variables without secrets, found an address with a password in {name}"
            )
        else:
            continue
        problems.append(Problem("profile", "forward", message, hint))
    return problems
