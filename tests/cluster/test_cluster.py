"""A cluster on this machine: jobs submitted, watched and stopped as a user does it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest
import yaml

from tests.cluster.head import Head, Job, starting_head
from tests.support.runs import SPECS, FinishedRun, finish
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, FakeS3, serving_s3, use_s3

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

ROOT = SPECS.parents[1]
SPEC = SPECS / "drug200.yaml"
SHIPPED = "from the checkout"
NOT_SHIPPED = [".git/config", ".env", ".env.local", ".venv/x.py", "data/rows.csv", "runs/old"]
QUICK = ("training.epochs=2", "determinism=canonical")
"""Canonical, so that two workers on Ray give the bits of one here."""

SCORED = re.compile(r"metrics\.json|predictions/.*")

BUILT = [
    r"prepare   built   200 rows: 141 train, 20 valid, 39 test  [\d.]+ s",
    r"          Epoch \[1/2\], Loss: [\d.]+, valid [\d.]+, [\d.]+ %, lr 0.001(, .*)?",
    r"          Epoch \[2/2\], Loss: [\d.]+, valid [\d.]+, [\d.]+ %, lr 0.001(, .*)?",
    r"train     built   2 epochs, best 2  [\d.]+ s",
    r"evaluate  built   test accuracy [\d.]+  [\d.]+ s",
    r"export    built   a bundle with 39 golden rows  [\d.]+ s",
    r"prepared  \S+/_prepared/\w+",
    r"report    \S+/report\.html",
    r"bundle    \S+/bundles/\w+",
]
NOTES = (
    r"engine ray, since .*|\d workers?[,:] .*|          [\d,]+ \w+( \w+)* (scored|fitted|trained).*"
    # What a machine that other work slows down may say.
    r"|waiting for .*|          Epoch \[\d/\d\], step .*"
)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two nodes; the second one has no cores, and is asked about a storage all the same."""
    with starting_head(num_cpus=4, second_node={"ROOT_ON_NODE": "elsewhere"}) as started:
        yield started


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: jobs, the package, and files that must not travel."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=ignore)
    shutil.copytree(ROOT / "src" / "batchtrain", folder / "src" / "batchtrain", ignore=ignore)
    with (folder / "src" / "batchtrain" / "version.py").open("a") as file:
        file.write(f"\nimport sys\n\nprint({SHIPPED!r}, file=sys.stderr)\n")
    for name in NOT_SHIPPED:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that both nodes see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run in this process."""
    return finish(SPEC, *QUICK, f"storage={tmp_path_factory.mktemp('local')}")


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[FakeS3, str]]:
    """A server with one bucket, and its address, which the environment does not know."""
    with serving_s3() as served:
        yield served


def options(*overrides: str) -> list[str]:
    words = (word for each in overrides for word in ("--set", each))
    return ["--spec", "jobs/specs/drug200.yaml", *words]


def digests(run: FinishedRun) -> dict[str, object]:
    """The hashes of all that a run has made."""
    report = run.report.artifact.manifest.files
    return {
        "prepared": prepared_digests(run),
        "state": run.trained.content["state_sha256"],
        "scored": {name: report[name].sha256 for name in report if SCORED.match(name)},
    }


def prepared_digests(run: FinishedRun) -> dict[str, str]:
    files = run.prepared.artifact.manifest.files
    return {name: file.sha256 for name, file in files.items()}


def assert_built_quietly(job: Job) -> None:
    """The log has our lines in their order, and nothing of anybody else."""
    ours = [line for line in job.lines if line != SHIPPED and not re.fullmatch(NOTES, line)]
    assert len(ours) == len(BUILT), job.log
    for line, expected in zip(ours, BUILT, strict=True):
        assert re.fullmatch(expected, line), job.log


def assert_only_what_is_needed_travelled(head: Head) -> None:
    [shipped] = head.folder.glob("session_latest/runtime_resources/working_dir_files/*/jobs")
    assert (shipped / "specs" / "drug200.yaml").is_file()
    assert [name for name in NOT_SHIPPED if (shipped.parent / name).exists()] == []


def assert_reused(run: FinishedRun) -> None:
    assert set(run.statuses.values()) == {"reused"}


def test_a_submitted_pipeline_leaves_what_a_run_here_leaves(
    head: Head, checkout: Path, shared: Path, local: FinishedRun
) -> None:
    job = head.submit("pipeline", options(*QUICK, f"storage={shared}"), within=checkout)

    assert (job.exit_code, job.status, job.driver_exit_code) == (0, "SUCCEEDED", 0), job.client
    assert_built_quietly(job)
    assert SHIPPED in job.lines  # else the installed package ran
    assert_only_what_is_needed_travelled(head)
    there = finish(SPEC, *QUICK, f"storage={shared}")
    assert_reused(there)
    assert digests(there) == digests(local)
    assert job.lines[-1].split() == ["bundle", str(there.bundle_folder)]


def test_two_workers_and_an_object_store_leave_the_same_bytes(
    head: Head,
    checkout: Path,
    local: FinishedRun,
    s3: tuple[FakeS3, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, endpoint = s3
    runtime_env = yaml.safe_load((checkout / "jobs" / "runtime_env.yaml").read_text())
    runtime_env["env_vars"] |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }
    (checkout / "with-s3.yaml").write_text(yaml.safe_dump(runtime_env))
    storage = "storage=s3://bucket/runs"

    job = head.submit(
        "pipeline",
        options(*QUICK, storage, "resources.workers=2"),
        within=checkout,
        env="with-s3.yaml",
    )

    assert (job.exit_code, job.driver_exit_code) == (0, 0), job.client
    assert_built_quietly(job)
    assert "2 workers, as asked" in job.lines
    assert SECRET_KEY not in job.log
    asked = {key.split("/")[-1] for method, key in server.requests if "_probe/nodes-" in key}
    assert len(asked - {"driver"}) == 1  # the second node has answered
    use_s3(monkeypatch, endpoint)
    there = finish(SPEC, *QUICK, storage)
    assert_reused(there)
    assert digests(there) == digests(local)
    assert not [key for key in server.objects if "/_probe/" in key]


@pytest.mark.long
def test_a_storage_that_is_deleted_with_the_job_is_refused_before_any_work(
    head: Head, checkout: Path
) -> None:
    job = head.submit("pipeline", options("storage=runs"), within=checkout)

    assert (job.exit_code, job.status, job.driver_exit_code) == (1, "FAILED", 2)
    said = [line for line in job.lines if line != SHIPPED]
    assert said[0].startswith("--set storage=runs  storage  expected a folder that all nodes share")
    assert "found the relative path 'runs'" in said[0]
    assert said[1:] == ["1 problem. Nothing was started."]


def test_a_run_that_fails_gives_the_job_its_exit_code(
    head: Head, checkout: Path, shared: Path, local: FinishedRun
) -> None:
    finish(SPEC, *QUICK, f"storage={shared}", last="train")  # reused, but where it runs alone
    require = "evaluation.require={log_loss: '<= 0'}"

    job = head.submit("pipeline", options(*QUICK, f"storage={shared}", require), within=checkout)

    assert (job.exit_code, job.status, job.driver_exit_code) == (1, "FAILED", 1), job.client
    assert re.match(r"ModelRejectedError: .*log_loss", job.lines[-1]), job.log
    assert "Traceback" not in job.log


@pytest.mark.long
def test_a_stopped_job_leaves_a_checkpoint_to_go_on_from(
    head: Head, checkout: Path, shared: Path
) -> None:
    long = options("training.epochs=1000000", "training.compile=false", f"storage={shared}")
    with head.submitting("train", long, within=checkout) as (job_id, log):
        # Asked for, since the line may be printed before the client follows the log.
        said = ""
        while "Epoch [1/1000000]" not in said:
            time.sleep(0.5)
            # There is no such job before the client has submitted it.
            with suppress(HTTPError):
                said = head.ask(f"jobs/{job_id}/logs")["logs"]
        # What `ray job stop` asks for. The log ends when the job does.
        head.ask(f"jobs/{job_id}/stop", method="POST")
        log.read()

    assert head.ask(f"jobs/{job_id}")["status"] == "STOPPED"
    said = head.ask(f"jobs/{job_id}/logs")["logs"]
    found = re.search(r"stopped after step \d+; .* the checkpoint is (\S+)\. Run the same", said)
    assert found is not None, said
    assert Path(found[1], "manifest.json").is_file()


NODE_LOCAL = """\
import os, sys
from pathlib import Path
import ray
from batchtrain.engines.nodes import check_storage_on_nodes
from batchtrain.engines.session import RaySession
from batchtrain.errors import ClusterError
from batchtrain.storage import FolderStorage

class NodeLocal(FolderStorage):
    # A folder that is another one on the second node, as /home may be.
    def __init__(self):
        super().__init__(Path(sys.argv[1], os.environ.get("ROOT_ON_NODE", "here")))
    def __reduce__(self):
        return type(self), ()

with RaySession(sys.argv[2]) as session:
    session.connect()
    check_storage_on_nodes(FolderStorage(Path(sys.argv[1], "here")))
    print("the shared folder is well")
    try:
        check_storage_on_nodes(NodeLocal())
    except ClusterError as error:
        print(error)
"""


@pytest.mark.long
def test_a_node_that_sees_another_folder_is_named(head: Head, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(NODE_LOCAL.replace("sys.argv[1]", repr(str(tmp_path))))

    done = head.command("python", str(script), str(tmp_path), head.address, within=tmp_path)

    first, *message = done.stdout.splitlines()
    assert first == "the shared folder is well", done.stderr
    assert re.search("found 1 of 1 other nodes that do not", message[0]), done.stdout
    assert re.fullmatch(r"  \S+ \(node \w{8}\): does not see what the driver wrote", message[1])
    assert done.stderr == ""  # nothing of Ray's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "script.py"]
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.long
def test_a_command_joins_the_cluster_whose_address_it_is_given(
    head: Head, tmp_path: Path, local: FinishedRun
) -> None:
    words = ["--set", f"storage={tmp_path}", "--set", "engine=ray", "--address", head.address]

    done = head.command("batchtrain", "prepare", str(SPEC), *words, within=tmp_path)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    prepared = finish(SPEC, f"storage={tmp_path}", last="prepare")
    assert_reused(prepared)
    assert prepared_digests(prepared) == prepared_digests(local)
