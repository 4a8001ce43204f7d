"""The entry points of `jobs/`, without a cluster: each is its command, under 15 lines."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from batchtrain.tables import write_sample
from tests.support.runs import SPECS, FinishedRun

JOBS = SPECS.parent
ENTRY_POINTS = {
    "prepare": "Prepare the rows of a spec.",
    "train": "Train the model of a spec",
    "evaluate": "Measure the model of a spec",
    "export": "Export the bundle of an accepted model",
    "predict": "Predict on a table",
    "tune": "Search for the best values",
    "pipeline": "Prepare, train, evaluate and export",
}
MAX_LINES = 15

RunJob = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunJob:
    """Run an entry point in this process: its exit code, standard output and standard error."""

    def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, said.out, said.err

    return run


def test_every_entry_point_is_short_and_there_are_no_others() -> None:
    lengths = {path.stem: len(path.read_text().splitlines()) for path in JOBS.glob("*.py")}
    assert set(lengths) == set(ENTRY_POINTS)
    assert max(lengths.values()) <= MAX_LINES


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_takes_everything_by_name(run_job: RunJob, name: str) -> None:
    code, out, _ = run_job(name, "--help")
    text = " ".join(out.split())
    assert code == 0
    assert ENTRY_POINTS[name] in text
    assert ("--bundle" if name == "predict" else "--spec") in text
    assert "--address" in text
    assert f"Usage: {name}.py [OPTIONS]" in text


def test_a_pipeline_runs_as_the_command_does(drug200: FinishedRun, storage: Path) -> None:
    words = ["--spec", "jobs/specs/drug200.yaml", "--set", f"storage={storage}"]
    done = subprocess.run(
        [sys.executable, "jobs/pipeline.py", *words, "--set", "engine=embedded"],
        cwd=JOBS.parent,
        env={**os.environ, "PYTHONPATH": str(JOBS.parent / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()[:4]] == [
        [name, "reused"] for name in ("prepare", "train", "evaluate", "export")
    ]
    assert done.stdout.splitlines()[-1].split() == ["bundle", str(drug200.bundle_folder)]


@pytest.mark.parametrize("last", ["prepare", "train", "evaluate", "export"])
def test_a_stage_ends_with_its_own(
    run_job: RunJob, drug200: FinishedRun, storage: Path, last: str
) -> None:
    spec = SPECS / "drug200.yaml"
    code, out, err = run_job(last, "--spec", spec, "--set", f"storage={storage}")
    stages = [line.split()[0] for line in out.splitlines() if " reused " in line]
    assert (code, err, stages[-1]) == (0, "", last)


def test_a_prediction_is_written_where_it_is_asked_for(
    run_job: RunJob, drug200: FinishedRun, tmp_path: Path
) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "out.parquet"
    write_sample("drug200", rows)
    words = ["--bundle", drug200.bundle_folder, "--data", rows, "--out", out]
    code, said, _ = run_job("predict", *words)
    assert (code, said.splitlines()[-1]) == (0, f"200 predictions in {out}")
    assert pq.read_table(out).num_rows == 200


def test_what_is_wrong_gives_the_exit_code_of_the_command(
    run_job: RunJob, drug200: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS / "drug200.yaml"
    code, _, err = run_job("pipeline", "--spec", spec, "--set", "training.epochs=none")
    assert (code, "training.epochs" in err) == (2, True)
    code, _, err = run_job("pipeline")
    assert (code, "--spec" in err) == (2, True)

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # from here on it runs as a job
    words = ["--bundle", drug200.bundle_folder, "--data", "sample:drug200", "--out", "out.csv"]
    code, _, err = run_job("predict", *words)
    assert (code, "deletes the working directory of a job" in err) == (2, True)
    code, _, err = run_job("pipeline", "--spec", spec)
    assert (code, "expected a folder that all nodes share" in err) == (2, True)
    assert f"{spec}:" in err


def test_the_runtime_environment_leaves_secrets_and_results_behind() -> None:
    document = yaml.safe_load((JOBS / "runtime_env.yaml").read_text())
    assert set(document) == {"py_modules", "excludes", "env_vars"}
    assert {".git", ".env", ".venv", "/data", "/runs"} <= set(document["excludes"])
    [module] = document["py_modules"]
    assert (JOBS.parent / module / "__init__.py").is_file()
    assert all(isinstance(value, str) for value in document["env_vars"].values())
