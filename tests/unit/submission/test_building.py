"""A request is a pure function of what is sent, and no value of a user's is part of a command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.engines.session import CORES_VARIABLE
from batchtrain.errors import ClusterError, SpecError
from batchtrain.spec.load import LoadedSpec
from batchtrain.submission.building import (
    ENTRYPOINT,
    SubmitOptions,
    build_request,
    choose_id,
    entrypoint_of,
    printable_request,
)
from batchtrain.submission.profile import Profile, StageResources
from batchtrain.submission.request import ID_VARIABLE, JobRequest, JobState, JobStatus, check_id
from batchtrain.submission.shipping import ship

Load = Callable[..., LoadedSpec]
CANARY = "canary-5f1d"
PLAIN, ANY = SubmitOptions(), Profile()


def build(
    loaded: LoadedSpec,
    options: SubmitOptions = PLAIN,
    profile: Profile = ANY,
    environ: dict[str, str] | None = None,
) -> JobRequest:
    shipment = ship(loaded, ship_package=False, keep_paths=options.backend == "local")
    return build_request(loaded, shipment, profile, options, environ or {})


def test_the_same_request_has_the_same_name(load: Load) -> None:
    assert build(load()) == build(load())
    assert re.fullmatch(r"tiny-[0-9a-f]{12}", build(load()).submission_id)


def test_whatever_changes_the_run_changes_the_name(load: Load, folder: Path) -> None:
    found = {
        build(load()).submission_id,
        build(load("seed=1")).submission_id,
        build(load("storage=/mnt/other")).submission_id,
        build(load(), SubmitOptions(command="prepare")).submission_id,
        build(load(), SubmitOptions(stages="separate")).submission_id,
        build(load(), SubmitOptions(allow_code=("nets",))).submission_id,
        build(load(), profile=Profile(entrypoint_gpus=1)).submission_id,
        build(load(), profile=Profile(forward=("REGION",)), environ={"REGION": "x"}).submission_id,
    }
    (folder / "rows.csv").write_text("a,label\n1,x\n2,z\n")
    found.add(build(load()).submission_id)

    assert len(found) == 9


def test_a_large_table_that_changes_where_it_lies_is_another_request(
    load: Load, folder: Path
) -> None:
    def name() -> str:
        loaded = load(f"data.source={folder}/rows.csv")
        shipment = ship(loaded, ship_package=False, limit=8)
        return build_request(loaded, shipment, Profile(), SubmitOptions(), {}).submission_id

    before = name()
    assert name() == before
    (folder / "rows.csv").write_text("a,label\n1,x\n2,y\n3,z\n")
    assert name() != before


TRICKS = ["; rm -rf /", "$(id)", "`id`", "a\nb", "-rf", "'\"", "| cat", "../x", "\x1b[31m"]


@given(st.text(max_size=8), st.sampled_from(TRICKS))
def test_j04_whatever_is_asked_for_the_command_is_a_constant_and_a_hash(
    text: str, trick: str
) -> None:
    arguments = {"spec": text + trick, "files": {trick: text}, "allow_code": [trick, text]}

    command = entrypoint_of(arguments)

    assert re.fullmatch(re.escape(ENTRYPOINT) + "[0-9a-f]{64}", command)
    assert entrypoint_of({**arguments, "spec": text + trick + "."}) != command


@pytest.mark.parametrize("trick", TRICKS)
def test_j03_a_run_whose_name_is_no_name_is_no_job(trick: str, load: Load) -> None:
    with pytest.raises(SpecError, match="name"):
        load(f"name={json.dumps(trick)}")
    with pytest.raises(ClusterError, match="id of a job"):
        check_id(trick)


def test_metacharacters_in_values_stay_values(load: Load, folder: Path) -> None:
    (folder / "$(id); x.csv").write_text("a,label\n1,x\n")

    request = build(load("data.source='$(id); x.csv'", "data.exclude=['`id`']"))

    outside = {**printable_request(request), "arguments": None, "files": None}
    assert "id)" not in json.dumps(outside)
    assert "`" not in json.dumps(outside)
    assert "job/$(id); x.csv" in request.arguments["files"]


def test_x13_a_secret_of_the_environment_is_nowhere(load: Load) -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": CANARY, "HOME": CANARY, "RAY_AUTH_TOKEN": CANARY}

    request = build(load(), environ=environ)

    assert CANARY not in repr(request)
    assert CANARY not in json.dumps(printable_request(request))
    assert not [file for file in request.files if CANARY.encode() in (file.content or b"")]


def test_x13_a_secret_is_not_forwarded(load: Load) -> None:
    with pytest.raises(SpecError, match="AWS_SECRET_ACCESS_KEY") as refused:
        build(load(), profile=Profile(forward=("AWS_SECRET_ACCESS_KEY",)), environ={})
    assert "credentials to the nodes" in str(refused.value)


def test_x13_an_address_with_a_password_is_not_forwarded_nor_repeated(load: Load) -> None:
    environ = {"DATABASE_URL": f"postgres://me:{CANARY}@host/db"}
    with pytest.raises(SpecError, match="a password in DATABASE_URL") as refused:
        build(load(), profile=Profile(forward=("DATABASE_URL",)), environ=environ)
    assert CANARY not in str(refused.value)
    assert build(
        load(), profile=Profile(forward=("HOST_URL",)), environ={"HOST_URL": "http://h:1/x"}
    )


def test_j04_what_kuberay_s_shell_would_obey_is_refused_at_its_place(load: Load) -> None:
    options, environ = SubmitOptions(backend="kuberay"), {"REGION": f"$({CANARY})"}
    profile = Profile(backend="kuberay", forward=("REGION",))
    with pytest.raises(SpecError) as refused:
        build(load("storage='/mnt/`id`'"), options, profile, environ)
    assert [each.key for each in refused.value.problems] == ["storage", "REGION"]
    assert CANARY not in str(refused.value)
    # No other backend gives them to a shell.
    assert build(load("storage='/mnt/`id`'"), PLAIN, Profile(forward=("REGION",)), environ)


def test_what_a_job_prints_is_utf_8_whatever_the_locale(load: Load) -> None:
    variables = build(load()).runtime_env["env_vars"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; [print(chr(0xDCFF), file=f) for f in (sys.stdout, sys.stderr)]",
        ],
        env={"LC_ALL": "C", **variables},
        capture_output=True,
        check=True,
    )
    assert done.stdout == done.stderr == b"\\udcff\n"


def test_what_is_forwarded_is_sent_and_not_printed(load: Load) -> None:
    profile = Profile(forward=("REGION", "ABSENT"))

    request = build(load(), profile=profile, environ={"REGION": "mars-1", "OTHER": "x"})

    assert request.runtime_env["env_vars"] == {
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        CORES_VARIABLE: "0",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "REGION": "mars-1",
        ID_VARIABLE: request.submission_id,
    }
    printed = printable_request(request)["runtime_env"]["env_vars"]
    assert printed["REGION"] == "(from the environment)"
    assert printed["PYTHONIOENCODING"] == "utf-8:backslashreplace"
    assert printed[ID_VARIABLE] == request.submission_id


def test_results_that_would_be_deleted_with_the_job_are_refused_before_it_is_sent(
    load: Load,
) -> None:
    with pytest.raises(SpecError, match="folder that all nodes share"):
        build(load("storage=runs"))
    assert build(load("storage=runs"), SubmitOptions(backend="local"))


def test_what_cannot_be_is_refused(load: Load) -> None:
    with pytest.raises(SpecError, match="expected the command run"):
        build(load(), SubmitOptions(command="train", stages="separate"))
    with pytest.raises(SpecError, match="search"):
        build(load(), SubmitOptions(command="tune"))
    with pytest.raises(SpecError, match="expected a folder with the backend local"):
        build(load("storage=s3://bucket/runs"), SubmitOptions(backend="local"))


def test_a_coordinator_holds_no_core_and_knows_what_its_stages_hold(load: Load) -> None:
    profile = Profile(entrypoint_cpus=2, stages={"train": StageResources(gpus=1, memory_gib=1.5)})

    request = build(load(), SubmitOptions(stages="separate"), profile)

    assert (request.resources.cpus, request.resources.gpus) == (0, 0)
    stages: dict[str, Any] = request.arguments["stages"]
    assert stages["prepare"] == {"cpus": 2, "gpus": 0, "memory_bytes": 0}
    assert stages["train"] == {"cpus": 1, "gpus": 1, "memory_bytes": 3 * 2**29}


TWO, ONE = ("resources.workers=2",), ("resources.workers=1",)
BY_RAY, BY_ITSELF = ("engine=ray",), ("engine=embedded",)
WAITS, WORKS = (0, 2 * 2**30), (1, 0)


@pytest.mark.parametrize(
    ("command", "overrides", "said", "held"),
    [
        ("tune", (), {}, WAITS),
        ("tune", BY_ITSELF, {}, WORKS),
        ("tune", (), {"entrypoint_cpus": 1}, WORKS),
        ("tune", (), {"backend": "kuberay"}, WORKS),
        ("run", (), {}, WAITS),
        ("run", TWO, {}, WAITS),
        ("run", TWO, {"entrypoint_memory_gib": 4}, (0, 4 * 2**30)),
        ("run", TWO, {"entrypoint_cpus": 0, "entrypoint_memory_gib": 0}, (0, 0)),
        ("run", TWO, {"backend": "kuberay"}, WORKS),
        ("run", TWO, {"backend": "local"}, WORKS),
        ("run", ONE, {}, WORKS),
        ("run", (*ONE, *BY_RAY), {}, WAITS),
        ("run", BY_ITSELF, {}, WORKS),
        ("prepare", TWO, {}, WORKS),
        ("prepare", BY_RAY, {}, WAITS),
    ],
)
def test_a_job_holds_no_core_that_its_ranks_or_trials_wait_for(
    load: Load,
    command: Any,
    overrides: tuple[str, ...],
    said: dict[str, Any],
    held: tuple[float, int],
) -> None:
    search = "search={metric: valid_loss, space: {training.optimizer.lr: {choice: [0.1, 0.2]}}}"
    loaded = load(*overrides, *[search] * (command == "tune"))
    request = build(loaded, SubmitOptions(command=command), Profile(**said))

    assert (request.resources.cpus, request.resources.memory_bytes) == held
    assert request.runtime_env["env_vars"][CORES_VARIABLE] == str(held[0])


def job(name: str, state: JobState) -> JobStatus:
    return JobStatus(name, state)


@pytest.mark.parametrize(
    ("states", "chosen", "is_joined"),
    [
        ([], "x", False),
        (["pending"], "x", True),
        (["running"], "x", True),
        (["succeeded"], "x", True),
        (["unknown"], "x", True),
        (["failed"], "x-2", False),
        (["stopped"], "x-2", False),
        (["failed", "stopped"], "x-3", False),
        (["failed", "running"], "x-2", True),
        (["failed", "succeeded"], "x-2", True),
    ],
)
def test_an_attempt_is_chosen_by_what_is_there(
    states: list[JobState], chosen: str, is_joined: bool
) -> None:
    jobs = [job("x" if not n else f"x-{n + 1}", state) for n, state in enumerate(states)]
    jobs.append(job("other", "running"))

    for order in (jobs, jobs[::-1]):
        choice = choose_id("x", order)
        assert (choice.submission_id, choice.known is not None) == (chosen, is_joined)


def test_again_starts_what_is_done_and_joins_what_runs() -> None:
    assert choose_id("x", [job("x", "succeeded")], again=True).submission_id == "x-2"
    assert choose_id("x", [job("x", "running")], again=True).submission_id == "x"
