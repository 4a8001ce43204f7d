"""Two processes and one run, and what killed ones leave, as a person at a terminal meets them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from batchtrain.artifacts.claims import read_claims
from batchtrain.cli.app import app
from batchtrain.storage import FolderStorage

pytestmark = pytest.mark.fault

LONG = """\
version: 1
name: long
data: {source: 'sample:digits', target: target}
model: {kind: mlp, hidden: [32]}
training:
  epochs: 4000
  checkpoint: {every_steps: 100, keep: 2}
tracking: {tensorboard: false, log_every_epochs: 1}
"""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "long.yaml"
    path.write_text(LONG)
    return path


@pytest.fixture
def writer(spec: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is training the run; it is killed in the end."""
    command = [sys.executable, "-m", "batchtrain", "train", str(spec)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Epoch [20/" in line:
                break
        yield process
        process.kill()


def run_folder(spec: Path) -> Path:
    (folder,) = (spec.parent / "runs" / "long").iterdir()
    return folder


def test_r33_a_second_command_is_told_who_is_writing_and_ends(
    spec: Path, writer: subprocess.Popen[str]
) -> None:
    second = invoke("train", spec)
    assert second.exit_code == 1
    assert f"process {writer.pid} on" in second.stderr
    assert "--take-over" in second.stderr
    assert writer.poll() is None


def test_r33_a_writer_that_was_taken_over_ends_at_its_next_commit(
    spec: Path, writer: subprocess.Popen[str]
) -> None:
    command = [sys.executable, "-m", "batchtrain", "train", str(spec), "--take-over"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as taker:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 1
        assert "Another process has taken the run over" in errors
        assert taker.poll() is None
        taker.send_signal(signal.SIGINT)
        _, errors = taker.communicate(timeout=60)
    assert taker.returncode == 130
    folder = run_folder(spec)
    claims = read_claims(FolderStorage(folder.parent), folder.name)
    assert [claim.epoch for claim in claims] == [1, 2]
    assert claims[1].continues is not None
    assert claims[1].continues.epoch == 1


def test_r01_after_kill_9_the_next_command_goes_on_at_once(
    spec: Path, writer: subprocess.Popen[str]
) -> None:
    writer.kill()
    writer.wait()
    command = [sys.executable, "-m", "batchtrain", "train", str(spec)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if "Epoch [" in line)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert int(first.partition("[")[2].partition("/")[0]) > 1


def test_d25_gc_shows_and_deletes_what_killed_runs_left(spec: Path) -> None:
    made = invoke("train", spec, "--set", "training.epochs=2", "--json")
    assert made.exit_code == 0, made.output
    run = json.loads(made.stdout.splitlines()[-1])["run_dir"]
    orphan = Path(run) / "model" / "files" / "0123456789ab" / "best.safetensors"
    orphan.parent.mkdir()
    orphan.write_bytes(b"x" * 2048)
    before = sorted(path for path in (spec.parent / "runs").rglob("*") if path.is_file())

    young = invoke("gc", spec)
    assert young.exit_code == 0, young.output
    assert "0 files deleted" in young.stdout
    shown = invoke("gc", spec, "--dry-run", "--older-than", "0")
    assert "best.safetensors" in shown.stdout
    assert "1 file would be deleted, 2.0 KiB in sum" in shown.stdout
    assert before == sorted(path for path in (spec.parent / "runs").rglob("*") if path.is_file())

    gone = invoke("gc", spec.parent / "runs", "--older-than", "0", "--json")
    document = json.loads(gone.stdout.splitlines()[-1])
    assert [each["key"].rpartition("/")[2] for each in document["deleted"]] == ["best.safetensors"]
    assert not orphan.exists()
    again = invoke("train", spec, "--set", "training.epochs=2")
    assert "train     reused" in again.stdout


def test_gc_of_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = invoke("gc", tmp_path / "nothing")
    assert missing.exit_code == 1
    assert "nothing" in missing.stderr
