"""Every example and every entry point of `jobs/` on a cluster with a token, as they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from batchtrain.tables.samples import write_sample
from tests.cluster.head import BIN, Head, Job, starting_head
from tests.cluster.test_cluster import assert_reused, digests
from tests.support.runs import SPECS, FinishedRun, finish

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(600),
]

ROOT = SPECS.parents[1]
SEARCHES = sorted(path.stem for path in SPECS.glob("tune-*.yaml"))
EXAMPLES = sorted({path.stem for path in SPECS.glob("*.yaml")} - {*SEARCHES})
FEW_TRIALS = ("--set", "search.trials=8")
COMPARED_SEARCH = "tune-drug200"

AT_ONCE = 3
"""Clients beside each other; their jobs wait for the cores of the cluster."""

BUSY = "The job waits until others are done"
"""What is said, on a line of its own, where no core is free at the moment."""

LIMIT_S = 400
STAGES = ["prepare", "train", "evaluate", "export"]
QUICK = "training.epochs=2"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two nodes, with as many cores as jobs that are followed at once."""
    with starting_head(num_cpus=1, second_node={}, second_cpus=AT_ONCE - 1) as started:
        yield started


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ray job submit --working-dir .` sends."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("jobs", "src/batchtrain"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def submitted(head: Head, spec: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`batchtrain submit` of a spec, followed to its end."""
    return subprocess.run(
        [BIN / "batchtrain", "submit", spec, *words, "--address", head.dashboard],
        env=head.environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def submit_all(
    head: Head, names: Sequence[str], *words: str, within: Path = SPECS
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Submit specs, some at once; all of them have to end well, as one job each."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = pool.map(lambda name: submitted(head, within / f"{name}.yaml", words), names)
        done = dict(zip(names, runs, strict=True))
    assert {name: run.stderr for name, run in done.items() if run.returncode} == {}
    warnings = {line for run in done.values() for line in run.stderr.splitlines()}
    assert [line for line in warnings if not line.endswith(BUSY)] == []
    # Besides there are probes of the storage, and what the jobs themselves are to Ray.
    jobs = [job for job in head.ask("jobs/") if "run" in (job["metadata"] or {})]
    ended = [
        (job["metadata"]["run"], job["status"], job["driver_exit_code"])
        for job in jobs
        if job["type"] == "SUBMISSION" and job["metadata"]["run"] in names
    ]
    assert sorted(ended) == [(name, "SUCCEEDED", 0) for name in sorted(names)]
    return done


def test_every_example_is_submitted_as_it_is(head: Head, tmp_path: Path) -> None:
    done = submit_all(head, EXAMPLES, "--set", f"storage={tmp_path / 'there'}")

    for name in EXAMPLES:
        there, here = (
            finish(SPECS / f"{name}.yaml", f"storage={tmp_path / place}")
            for place in ("there", "here")
        )
        assert_reused(there)
        assert digests(there) == digests(here), name
        assert done[name].stdout.split()[-1] == str(there.bundle_folder)


def test_as_many_searches_as_cores_are_submitted_at_once(head: Head, tmp_path: Path) -> None:
    """Were each to hold a core, none would get one for its trials."""
    words = ("--command", "tune", *FEW_TRIALS)
    there, here = tmp_path / "there", tmp_path / "here"
    assert len(SEARCHES) >= AT_ONCE

    submit_all(head, SEARCHES, *words, "--set", f"storage={there}")

    local = [f"{SPECS / COMPARED_SEARCH}.yaml", *FEW_TRIALS, "--set", f"storage={here}"]
    subprocess.run([BIN / "batchtrain", "tune", *local], check=True, capture_output=True)
    [table], [expected] = (
        list((storage / COMPARED_SEARCH).glob("search-*/table.json")) for storage in (there, here)
    )
    assert table.read_bytes() == expected.read_bytes()


def test_as_many_runs_with_ranks_as_cores_are_submitted_at_once(head: Head, tmp_path: Path) -> None:
    """Were each to hold a core, none would get those of its ranks."""
    spec = yaml.safe_load((SPECS / "drug200.yaml").read_text())
    names = [f"run-{number}" for number in range(AT_ONCE)]
    for name in names:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**spec, "name": name}))
    words = [QUICK, "resources.workers=2", "engine=ray", f"storage={tmp_path / 'there'}"]

    submit_all(head, names, *(word for each in words for word in ("--set", each)), within=tmp_path)


def test_every_entry_point_ends_well_as_a_plain_job_of_ray(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    local = finish(SPECS / "drug200.yaml", QUICK, f"storage={tmp_path / 'local'}")
    table = tmp_path / "drug200.csv"
    write_sample("drug200", table)

    def job(name: str, spec: str, storage: str, *overrides: str) -> Job:
        sets = [f"storage={tmp_path / storage}", QUICK, *overrides]
        words = [word for each in sets for word in ("--set", each)]
        words = ["--spec", f"jobs/specs/{spec}.yaml", *words]
        return head.submit(name, words, within=checkout, limit_s=LIMIT_S)

    def one_after_another() -> list[Job]:
        return [job(stage, "drug200", "stages") for stage in STAGES]

    def predict() -> Job:
        words = ["--bundle", str(local.bundle_folder), "--data", str(table)]
        words += ["--out", str(out(tmp_path))]
        return head.submit("predict", words, within=checkout, limit_s=LIMIT_S)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        stages = pool.submit(one_after_another)
        others = [
            pool.submit(job, "pipeline", "drug200", "pipeline"),
            pool.submit(job, "tune", "tune-drug200", "search", "search.trials=4"),
            pool.submit(predict),
        ]
        jobs = [*stages.result(), *(each.result() for each in others)]

    assert_all_succeeded(jobs)
    for storage in ("stages", "pipeline"):
        there = finish(SPECS / "drug200.yaml", QUICK, f"storage={tmp_path / storage}")
        assert_reused(there)
        assert digests(there) == digests(local)
    assert out(tmp_path).read_bytes() == predicted_here(local, table, tmp_path / "here.parquet")


def out(folder: Path) -> Path:
    """Where the job that predicts writes to."""
    return folder / "there.parquet"


def predicted_here(run: FinishedRun, table: Path, path: Path) -> bytes:
    """The same predictions by a command on this machine."""
    words = [str(run.bundle_folder), str(table), "--out", str(path)]
    subprocess.run([BIN / "batchtrain", "predict", *words], check=True, capture_output=True)
    return path.read_bytes()


def assert_all_succeeded(jobs: Sequence[Job]) -> None:
    ends = [(job.exit_code, job.status, job.driver_exit_code) for job in jobs]
    assert ends == [(0, "SUCCEEDED", 0)] * len(jobs), [job.log for job in jobs]
