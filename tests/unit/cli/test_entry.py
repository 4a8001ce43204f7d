"""What runs in a job: it does what was sent, and nothing that was changed on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from batchtrain.cli import entry, running
from batchtrain.errors import TrainingError, UnsafeInputError
from batchtrain.spec.load import load_spec
from batchtrain.storage import FolderStorage
from batchtrain.submission.building import SubmitOptions, build_request
from batchtrain.submission.profile import Profile
from batchtrain.submission.request import ID_VARIABLE, JobRequest
from batchtrain.submission.results import JobResult, publish_result, read_result
from batchtrain.submission.shipping import ship, stage_files

Stage = Callable[..., JobRequest]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stage(tiny_spec: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Puts a job into the working directory, as a backend does."""

    def stage(command: str = "prepare") -> JobRequest:
        loaded = load_spec(tiny_spec, [f"storage={tmp_path / 'runs'}"])
        shipment = ship(loaded, ship_package=False)
        options = SubmitOptions(command=command)  # type: ignore[arg-type] # checked by the entry
        request = build_request(loaded, shipment, Profile(), options, {})
        stage_files(request, work)
        monkeypatch.setenv(ID_VARIABLE, request.submission_id)
        return request

    return stage


def sha256_of(request: JobRequest) -> str:
    return request.entrypoint.split()[-1]


def published(request: JobRequest, folder: Path) -> JobResult | None:
    return read_result(FolderStorage(folder / "runs"), request.submission_id)


def test_a_job_does_what_was_asked_and_publishes_it(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, before = stage(), time.time()

    assert entry.main([sha256_of(request)]) == 0

    assert "prepare   built   60 rows" in capsys.readouterr().out
    result = published(request, tmp_path)
    assert result is not None
    assert (result.exit_code, result.request) == (0, sha256_of(request))
    assert list(result.made) == ["prepare"]
    assert result.started is not None
    assert before <= result.started <= time.time()
    assert Path(tmp_path, "runs", result.made["prepare"]["key"], "manifest.json").is_file()


def test_the_exit_code_of_a_job_is_that_of_its_command(
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = stage("run")
    # What an earlier start has said does not count any more.
    publish_result(FolderStorage(tmp_path / "runs"), JobResult(request.submission_id, "", 0))

    def fail(*_: object, **__: object) -> None:
        assert published(request, tmp_path) is None
        raise TrainingError("expected a number, found none")

    monkeypatch.setattr(running, "run_and_show", fail)

    assert entry.main([sha256_of(request)]) == 1

    assert capsys.readouterr().err == "TrainingError: expected a number, found none\n"
    result = published(request, tmp_path)
    assert result is not None
    assert (result.exit_code, result.error, result.made) == (1, "TrainingError", {})


def test_a_stopped_job_says_so(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = stage("run")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_and_show", stop)

    assert entry.main([sha256_of(request)]) == 130
    result = published(request, tmp_path)
    assert result is not None
    assert result.exit_code == 130


@pytest.mark.parametrize("name", ["request", "job/tiny.yaml", "job/tiny.csv"])
@pytest.mark.parametrize("change", ["other bytes", "gone"])
def test_what_was_changed_on_the_way_is_refused(
    name: str, change: str, stage: Stage, work: Path, tmp_path: Path
) -> None:
    sha256 = sha256_of(stage())
    path = work / (f"request-{sha256}.json" if name == "request" else name)
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")

    with pytest.raises(UnsafeInputError, match="sent with the job"):
        entry.read_request(work, sha256)
    assert entry.main([sha256]) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["../request"], ["0" * 63], ["0" * 64 + "\n"], ["$(id)"]]
)
def test_what_is_no_hash_is_refused(words: list[str], work: Path) -> None:
    assert entry.main(words) == 2
    assert list(work.iterdir()) == []


def test_a_request_of_another_version_is_refused(
    stage: Stage, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = sha256_of(stage())
    monkeypatch.setattr(entry, "FORMAT", 2)
    with pytest.raises(UnsafeInputError, match="another version"):
        entry.read_request(work, sha256)


def test_a_fault_of_ours_keeps_its_traceback_and_is_published(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = stage("run")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(running, "run_and_show", fail)
    with pytest.raises(ZeroDivisionError):
        entry.main([sha256_of(request)])
    result = published(request, tmp_path)
    assert result is not None
    assert (result.exit_code, result.error) == (1, "ZeroDivisionError")


def test_leaving_a_command_early_is_its_exit_code(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = stage("run")

    def leave(*_: object, **__: object) -> None:
        raise typer.Exit(3)

    monkeypatch.setattr(running, "run_and_show", leave)
    assert entry.main([sha256_of(request)]) == 3
