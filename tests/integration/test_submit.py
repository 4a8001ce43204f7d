"""`batchtrain submit --backend local`: a whole run in a process of its own."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchtrain.cli.app import app
from tests.support.runs import finish

SCORED = re.compile(r"metrics\.json|predictions/.*")


def batchtrain(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def submit(spec: Path, *words: str) -> Result:
    return batchtrain("submit", str(spec), "--backend", "local", *words)


def test_a_submitted_run_leaves_what_a_run_here_leaves(tiny_spec: Path, tmp_path: Path) -> None:
    here = finish(tiny_spec, f"storage={tmp_path / 'here'}")

    # Relative, as in most specs: it counts from the spec, and not from where the job works.
    done = submit(tiny_spec, "--set", "storage=there", "--json")

    assert done.exit_code == 0, done.output
    job = json.loads(done.stdout.splitlines()[-1])
    assert (job["state"], job["exit_code"]) == ("succeeded", 0)
    there = finish(tiny_spec, "storage=there")
    assert set(there.statuses.values()) == {"reused"}
    assert job["places"]["bundle"] == str(there.bundle_folder)
    assert there.trained.content["state_sha256"] == here.trained.content["state_sha256"]
    for run in (here, there):
        assert len(list(filter(SCORED.match, run.report.artifact.manifest.files))) > 1
    assert {
        name: file.sha256
        for name, file in there.report.artifact.manifest.files.items()
        if SCORED.match(name)
    } == {
        name: file.sha256
        for name, file in here.report.artifact.manifest.files.items()
        if SCORED.match(name)
    }
    storage = str(tmp_path / "there")
    listed = batchtrain("list", "--backend", "local", "--address", storage)
    assert listed.stdout.split()[:2] == [job["submission_id"], "succeeded"]


@pytest.mark.long
def test_stopping_a_coordinator_stops_its_stage_and_it_goes_on_from_there(
    tiny_spec: Path,
) -> None:
    words = ("--stages", "separate", "--set", "training.epochs=100000", "--set", "storage=there")
    where = ("--backend", "local", "--address", str(tiny_spec.parent / "there"))
    name = submit(tiny_spec, *words, "--detach").stdout.split()[1]
    while "Epoch [1/" not in batchtrain("logs", name, *where).stdout:
        time.sleep(0.2)

    assert batchtrain("stop", name, *where).exit_code == 0

    jobs = json.loads(batchtrain("list", "--json", *where).stdout)["jobs"]
    assert {job["submission_id"]: (job["state"], job["exit_code"]) for job in jobs} == {
        f"{name}-train": ("stopped", 130),
        f"{name}-prepare": ("succeeded", 0),
        name: ("stopped", 130),
    }
    again = submit(tiny_spec, *words, "--detach").stdout.split()[1]
    assert again == f"{name}-2"
    while "train     started" not in (said := batchtrain("logs", again, *where).stdout):
        time.sleep(0.2)
    assert f"started: {name}-prepare-2" in said
    assert "prepare   reused" in said
    assert f"started: {name}-train-2" in said
    assert batchtrain("stop", again, *where).exit_code == 0
