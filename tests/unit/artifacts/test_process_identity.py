"""Which process is meant: numbers are used again, and what cannot be seen is not called dead."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchtrain.artifacts import process_identity
from batchtrain.artifacts.process_identity import ProcessIdentity, this_process


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `/proc` of our own, empty at first: this process looks like one that it hides."""
    monkeypatch.setattr(process_identity, "PROC", tmp_path)
    return tmp_path


def ended_process() -> int:
    """The number of a process that has ended and was fetched by its parent."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert child.wait() == 0
    return child.pid


def test_this_process_is_here_and_alive() -> None:
    assert this_process() == this_process()
    assert this_process().is_here()
    assert not this_process().is_known_dead()


def test_an_ended_process_is_dead() -> None:
    assert replace(this_process(), pid=ended_process()).is_known_dead()


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    _, started = process_identity._state_and_start(child.pid)
    process = replace(this_process(), pid=child.pid, started=started)
    assert not process.is_known_dead()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ends, and is not fetched
    assert process.is_known_dead()
    child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_a_later_process_with_the_same_number_is_another() -> None:
    process = this_process()
    assert process.started is not None
    assert replace(process, started=process.started - 1).is_known_dead()


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace"])
def test_a_process_of_elsewhere_is_never_called_dead(field: str) -> None:
    process = replace(this_process(), pid=ended_process())
    elsewhere = replace(process, **{field: "another"})
    assert not elsewhere.is_here()
    assert not elsewhere.is_known_dead()


def test_where_a_system_does_not_number_its_starts_only_the_heartbeat_decides(proc: Path) -> None:
    process = this_process()
    assert (process.boot_id, process.pid_namespace, process.started) == ("", "", None)
    # Another machine may have the same name.
    assert not replace(process, pid=ended_process()).is_known_dead()


def test_a_process_that_proc_hides_is_not_called_dead(proc: Path) -> None:
    assert not replace(this_process(), started=5).is_known_dead()


def test_a_process_of_another_user_is_not_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        assert number == 0
        raise PermissionError(pid)

    process = this_process()
    monkeypatch.setattr(os, "kill", refuse)
    assert not process.is_known_dead()


@pytest.mark.parametrize(("state", "is_dead"), [("S", False), ("Z", True), ("X", True)])
def test_a_program_may_have_any_name(proc: Path, state: str, is_dead: bool) -> None:
    pid = os.getpid()
    folder = proc / str(pid)
    folder.mkdir()
    rest = " ".join(str(number) for number in range(4, 53))  # the start time is field 22
    boot = proc / "sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("this one\n")
    (folder / "stat").write_text(f"{pid} (a) R 1 (Z) {state} {rest}\n", encoding="utf-8")
    assert this_process().started == 22
    assert this_process().is_known_dead() is is_dead


@pytest.mark.parametrize("pid", [0, -1, 2**31])
def test_a_number_that_means_a_group_of_processes_is_refused(pid: int) -> None:
    with pytest.raises(ValueError, match="process number"):
        ProcessIdentity("host", "", "", pid, None)
