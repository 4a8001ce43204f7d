"""`cluster/local.sh` without Ray: whose files it takes for its own, and whose it leaves alone."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "local.sh"
MARKER = ".made-by-local-sh"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as the script asks for."""
    with tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH whose python can do nothing, so that no cluster can start."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


def local_sh(*words: str, path: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], env={"PATH": path}, cwd=cwd, capture_output=True, text=True
    )


def content(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.mark.parametrize("name", ["thesis.txt", ".git", "head", "node-1", "app.log", "own.pid"])
def test_start_takes_no_folder_that_holds_files_of_others(
    name: str, folder: Path, path: str
) -> None:
    (folder / name).mkdir()
    (folder / name / "kept").write_text("mine")
    done = local_sh("start", "--folder", str(folder), path=path)
    assert done.returncode == 1
    assert f"expected a folder that is new or empty, found {folder}/{name}" in done.stderr
    assert content(folder) == [name, f"{name}/kept"]


def test_start_takes_a_folder_with_the_logs_of_an_earlier_cluster(folder: Path, path: str) -> None:
    for name in ("head.log", "node-1.log"):
        (folder / name).write_text("old")
    done = local_sh("start", "--folder", str(folder), path=path)
    # It comes as far as to look for Ray.
    assert "has no ray" in done.stderr


def test_a_start_that_fails_leaves_nothing_but_logs(
    folder: Path, path: str, tmp_path: Path
) -> None:
    # All that is asked before the folder is taken goes well, and making the token fails.
    (tmp_path / "python").write_text('#!/bin/sh\ncase "$2" in *secrets*) exit 1 ;; esac\n')
    (folder / "head.log").write_text("old")
    done = local_sh("start", "--folder", str(folder), path=path)
    assert done.returncode == 1
    assert f"cannot write {folder}/secret/token" in done.stderr
    assert content(folder) == ["head.log"]


@pytest.mark.parametrize("command", ["stop", "status", "env"])
def test_where_nothing_was_started_nothing_is_deleted_or_believed(
    command: str, folder: Path, path: str
) -> None:
    for name in ("thesis.txt", "env", "head.pid", "secret", "node-1"):
        (folder / name).write_text("mine")
    before = content(folder)
    done = local_sh(command, "--folder", ".", path=path, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no cluster was started in {folder}\n" in done.stderr
    assert content(folder) == before


def test_a_folder_of_somebody_else_is_not_believed(folder: Path, path: str) -> None:
    target = folder / "theirs"
    target.mkdir()
    for name in (MARKER, "env"):
        (target / name).write_text("export RAY_ADDRESS=theirs")
    (folder / "link").symlink_to(target)
    for command in ("env", "stop"):
        done = local_sh(command, "--folder", f"{folder}/link", path=path)
        assert (done.returncode, done.stdout) == (1, "")
    assert content(target) == [MARKER, "env"]


def test_stop_deletes_what_start_made_and_nothing_else(folder: Path, path: str) -> None:
    mine = ["app.log", "app.pid", "head.log", "node-1.log", "node-modules", "node-x.pid", "secrets"]
    made = ["env", "head.pid", "node-1.pid", "node-12.pid", MARKER]
    for name in [*mine, *made]:
        (folder / name).write_text("999999999")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter").write_text("mine")
    for name in ("head", "node-1", "node-12", "secret"):
        (folder / name).mkdir()
        (folder / name / "logs").symlink_to(folder / "thesis")

    # However the folder is spelled.
    done = local_sh("stop", "--folder", f"../{folder.name}/./", path=path, cwd=folder)

    assert done.returncode == 0, done.stderr
    assert content(folder) == sorted([*mine, "thesis", "thesis/chapter"])
    assert "no cluster was started" in local_sh("stop", "--folder", str(folder), path=path).stderr


def test_a_folder_without_a_name_is_refused(path: str, folder: Path) -> None:
    done = local_sh("stop", "--folder", "", path=path, cwd=folder)
    assert done.returncode == 1
    assert "expected a folder after --folder" in done.stderr
