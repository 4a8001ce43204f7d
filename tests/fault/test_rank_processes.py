"""The failure of one rank ends the whole run within seconds, with that rank's error."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from batchtrain import points
from batchtrain.errors import (
    DivergedError,
    InterruptedRunError,
    RankFailedError,
    RankLostError,
    RankStuckError,
)
from batchtrain.testing.gloo import join_gloo, run_gloo
from batchtrain.testing.processes import Limits, Report, listen_too, run_processes
from batchtrain.training.interrupt import stop_on_signals
from batchtrain.training.ranks import GlooRanks

pytestmark = pytest.mark.fault

SECONDS_TO_VANISH = 30.0

Target = Callable[[int, Report], Any]


class Heard:
    """What the ranks said, in the order in which it came."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Any]] = []

    def __call__(self, rank: int, value: Any) -> None:
        self.messages.append((rank, value))

    @property
    def pids(self) -> list[int]:
        return [value["pid"] for _, value in self.messages if "pid" in value]

    @property
    def notes(self) -> list[str]:
        return [value["note"] for _, value in self.messages if "note" in value]

    def has_from(self, size: int, value: Any) -> bool:
        return sum(said == value for _, said in self.messages) == size


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_until_gone(pids: list[int]) -> None:
    """A process that was killed is there until its parent has read its exit code."""
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.01)


def count_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Collects messages; at the end no process that told its pid, and no pipe, may be left."""
    heard = Heard()
    run_processes(return_rank, 1)  # the server that forks has its own pipes
    before = count_open_files()
    yield heard
    wait_until_gone(heard.pids)
    assert count_open_files() == before


def return_rank(rank: int, report: Report) -> int:
    return rank


def wait_for_ever(report: Report) -> None:
    report({"pid": os.getpid()})
    threading.Event().wait()


# --- what comes back --------------------------------------------------------------------------


def describe_process(rank: int, report: Report, *, factor: int) -> dict[str, Any]:
    report({"pid": os.getpid()})
    report({"step": rank * factor})
    value = os.environ["FOR_THE_RANKS"]
    return {"rank": rank, "cwd": str(Path.cwd()), "value": value, "nan": float("nan")}


def test_results_come_in_the_order_of_the_ranks_from_processes_like_their_parent(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOR_THE_RANKS", "yes")
    found = run_processes(partial(describe_process, factor=10), 3, on_message=heard)
    assert [each["rank"] for each in found] == [0, 1, 2]
    assert {each["cwd"] for each in found} == {str(tmp_path)}
    assert {each["value"] for each in found} == {"yes"}
    assert all(each["nan"] != each["nan"] for each in found)
    assert [(rank, {"step": rank * 10}) in heard.messages for rank in range(3)] == [True] * 3
    assert len(set(heard.pids)) == 3
    assert os.getpid() not in heard.pids


def sum_ranks(ranks: GlooRanks, report: Report) -> float:
    total = torch.tensor([float(ranks.rank + 1)])
    dist.all_reduce(total)
    return total.item()


def test_gloo_ranks_meet_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stacks = tmp_path / "stacks"
    assert run_gloo(sum_ranks, 3, on_message=heard, stacks=stacks) == [6.0] * 3
    assert list(tmp_path.iterdir()) == []
    assert heard.messages == []


SCRIPT_WITHOUT_GUARD = """
from batchtrain.testing.processes import run_processes
from tests.fault.test_rank_processes import return_rank
print(run_processes(return_rank, 2))
"""


def test_a_script_without_a_main_guard_and_files_that_shadow_modules_do_no_harm(
    tmp_path: Path,
) -> None:
    script, folder = tmp_path / "my_script.py", tmp_path / "folder"
    script.write_text(SCRIPT_WITHOUT_GUARD)
    folder.mkdir()
    for name in ("queue.py", "torch.py", "statistics.py"):
        (folder / name).write_text("raise SystemExit('the wrong module')")
    found = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.stdout, found.stderr) == ("[0, 1]\n", "")


# --- a rank raises ----------------------------------------------------------------------------


def raise_on_one(ranks: GlooRanks, report: Report, *, error: BaseException) -> None:
    report({"pid": os.getpid()})
    ranks.gather("all are here")
    if ranks.rank == 1:
        raise error
    for _ in range(1000):
        ranks.gather("the others go on")


def test_r24_an_error_on_one_rank_ends_all_with_its_traceback(heard: Heard) -> None:
    target = partial(raise_on_one, error=ValueError("a bad batch"))
    with pytest.raises(RankFailedError, match="rank 1 of 3 to go on") as caught:
        run_gloo(target, 3, on_message=heard)
    assert "ValueError: a bad batch" in str(caught.value)
    assert "in raise_on_one" in str(caught.value)
    assert len(heard.pids) == 3


def test_r23_an_error_of_ours_stays_what_it_is(heard: Heard) -> None:
    target = partial(raise_on_one, error=DivergedError("expected a finite loss, found nan"))
    with pytest.raises(DivergedError, match=r"^rank 1: expected a finite loss, found nan$"):
        run_gloo(target, 2, on_message=heard)


def test_r24_a_rank_that_calls_exit_has_failed(heard: Heard) -> None:
    with pytest.raises(RankFailedError, match=r"rank 1 of 2 .* found SystemExit: 0"):
        run_gloo(partial(raise_on_one, error=SystemExit(0)), 2, on_message=heard)


def raise_on_all(ranks: GlooRanks, report: Report) -> None:
    ranks.gather("all are here")
    raise DivergedError("step 7")


def test_r23_where_all_ranks_say_the_same_the_lowest_is_named(heard: Heard) -> None:
    with pytest.raises(DivergedError, match=r"^rank 0: step 7$"):
        run_gloo(raise_on_all, 3, on_message=heard)


def return_something_else(rank: int, report: Report) -> object:
    return object()


def test_r24_a_result_that_is_not_json_is_an_error() -> None:
    with pytest.raises(RankFailedError, match="TypeError: Object of type object is not JSON"):
        run_processes(return_something_else, 1)


# --- a rank is gone ---------------------------------------------------------------------------


def end_on_one(ranks: GlooRanks, report: Report, *, end: Callable[[], None]) -> None:
    points.passed("step.forward")
    report({"pid": os.getpid()})
    ranks.gather("all are here")
    if ranks.rank == 1:
        end()
    for _ in range(1000):
        ranks.gather("the others go on")


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_r01_a_killed_rank_ends_the_run(size: int, heard: Heard) -> None:
    with pytest.raises(RankLostError, match=rf"rank 1 of {size} .* killed by SIGKILL"):
        run_gloo(partial(end_on_one, end=kill_this_process), size, on_message=heard)
    assert len(heard.pids) == size


def test_r01_a_rank_that_exits_without_a_word_ends_the_run(heard: Heard) -> None:
    with pytest.raises(RankLostError, match=r"rank 1 of 3 .* ended with exit code 3"):
        run_gloo(partial(end_on_one, end=partial(os._exit, 3)), 3, on_message=heard)


def crash() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def test_r01_a_crash_leaves_a_stack(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(RankLostError, match="SIGSEGV") as caught:
        run_gloo(partial(end_on_one, end=crash), 2, on_message=heard, stacks=tmp_path)
    assert str(tmp_path / "rank-1.txt") in str(caught.value)
    assert "in crash" in (tmp_path / "rank-1.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["rank-1.txt"]


# --- a rank returns early ---------------------------------------------------------------------


def return_early(ranks: GlooRanks, report: Report) -> None:
    report({"pid": os.getpid()})
    for _ in range(5 if ranks.rank == 1 else 6):
        ranks.gather("a step")


def test_r24_a_rank_that_returns_early_is_named(tmp_path: Path, heard: Heard) -> None:
    limits = Limits(early_return_seconds=1.0)
    with pytest.raises(RankFailedError, match="rank 1 returned before the others") as caught:
        run_gloo(return_early, 3, on_message=heard, limits=limits, stacks=tmp_path)
    assert str(tmp_path / "rank-0.txt") in str(caught.value)
    assert "in return_early" in (tmp_path / "rank-2.txt").read_text()


def leave_early(ranks: GlooRanks, report: Report) -> None:
    report({"pid": os.getpid()})
    ranks.gather("all are here")
    if ranks.rank == 1:
        dist.destroy_process_group()
        return
    ranks.gather("a step")


def test_r24_a_rank_that_leaves_and_returns_is_to_blame_for_what_others_say(heard: Heard) -> None:
    with pytest.raises(RankFailedError, match="rank 1 returned before the others"):
        run_gloo(leave_early, 3, on_message=heard)


# --- a rank is stuck or slow ------------------------------------------------------------------


def stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    # Where another thread takes the signal, this one gets some way before it is stopped too.
    signal.pause()


def test_r21_a_stopped_rank_is_found_and_its_stack_is_saved(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(RankStuckError, match=r"rank 1 of 3 .* its heartbeats stopped") as caught:
        run_gloo(
            partial(end_on_one, end=stop_this_process),
            3,
            on_message=heard,
            limits=Limits(stuck_seconds=5),
            stacks=tmp_path,
        )
    assert "the last 'step.forward'" in str(caught.value)
    assert str(tmp_path / "rank-1.txt") in str(caught.value)
    assert "in stop_this_process" in (tmp_path / "rank-1.txt").read_text()


def wait_on_one(ranks: GlooRanks, report: Report) -> None:
    report({"pid": os.getpid()})
    ranks.gather("all are here")
    points.passed("step.rows")
    if ranks.rank == 2:
        wait_for_ever(report)
    points.passed("step.forward")
    ranks.gather("a step")


def test_r21_a_rank_that_waits_for_ever_is_found_by_its_points(
    tmp_path: Path, heard: Heard
) -> None:
    with pytest.raises(RankStuckError, match=r"rank 2 of 3 .* behind all others") as caught:
        run_gloo(wait_on_one, 3, on_message=heard, limits=Limits(stuck_seconds=5), stacks=tmp_path)
    assert "the last 'step.rows'" in str(caught.value)
    assert "in wait_for_ever" in (tmp_path / "rank-2.txt").read_text()


def be_slow(ranks: GlooRanks, report: Report) -> int:
    for _ in range(16):
        if ranks.rank == 1:
            time.sleep(0.3)  # this is what a slow rank is
        points.passed("step.forward")
        ranks.gather("a step")
    return ranks.rank


def test_r21_a_slow_rank_is_reported_and_not_killed(heard: Heard) -> None:
    limits = Limits(slow_heartbeats=4)
    assert run_gloo(be_slow, 3, on_message=heard, limits=limits) == [0, 1, 2]
    assert [note[:24] for note in heard.notes] == ["rank 1 is the slowest: t"]


def listen_and_pass(rank: int, report: Report) -> list[str]:
    names: list[str] = []
    listen_too(names.append)
    for _ in range(3):
        points.passed("one")
    threading.Event().wait(0.01)
    return names


def test_a_rank_may_listen_to_its_own_points() -> None:
    assert run_processes(listen_and_pass, 1) == [["one"] * 3]


# --- ranks that cannot meet -------------------------------------------------------------------


def fail_to_join_once(store: Path, rank: int, *rest: Any, marker: Path) -> None:
    if rank == 1 and not marker.exists():
        marker.touch()
        raise RuntimeError("Gloo connectFullMesh failed with Connection refused")
    join_gloo(store, rank, *rest)


def test_r22_ranks_that_cannot_join_are_started_once_more(tmp_path: Path, heard: Heard) -> None:
    join = partial(fail_to_join_once, marker=tmp_path / "failed once")
    assert run_gloo(sum_ranks, 3, on_message=heard, join=join) == [6.0] * 3
    assert len(heard.notes) == 1
    assert "could not join and are started again" in heard.notes[0]


def refuse_to_join(store: Path, rank: int, *rest: Any) -> None:
    if rank == 1:
        raise OSError(98, "Address already in use")
    join_gloo(store, rank, *rest)


def test_r22_if_they_still_cannot_the_rank_is_named(heard: Heard) -> None:
    with pytest.raises(RankFailedError, match=r"rank 1 of 3 .*Address already in use"):
        run_gloo(sum_ranks, 3, on_message=heard, join=refuse_to_join)


def come_too_late(store: Path, rank: int, *rest: Any) -> None:
    if rank == 1:
        threading.Event().wait()
    join_gloo(store, rank, *rest, join_seconds=1.0)


def test_r22_a_rank_that_never_comes_is_named(heard: Heard) -> None:
    with pytest.raises(RankStuckError, match=r"rank 1 of 3 .*the others gave up waiting"):
        run_gloo(sum_ranks, 3, on_message=heard, join=come_too_late)


# --- somebody asks for a stop -----------------------------------------------------------------


def work_until_asked(ranks: GlooRanks, report: Report, *, end: Callable[..., Any]) -> Any:
    with stop_on_signals() as request:
        report({"pid": os.getpid()})
        report("ready")
        while not any(ranks.gather(request.requested)):
            pass
        # What a terminal sends to all of its processes must not be a second request.
        os.kill(os.getpid(), signal.SIGINT)
        return end(ranks, report)


def return_stopped(ranks: GlooRanks, report: Report) -> str:
    return "stopped"


def save_and_raise(ranks: GlooRanks, report: Report) -> None:
    if ranks.rank == 0:
        time.sleep(0.5)  # longer than the grace of the test, as writing a checkpoint is
        report({"saved": True})
    raise InterruptedRunError(f"stopped, says {ranks.rank}")


def test_ranks_that_are_asked_to_stop_may_return(heard: Heard) -> None:
    target = partial(work_until_asked, end=return_stopped)
    found = run_gloo(target, 3, on_message=heard, stop_requested=lambda: heard.has_from(3, "ready"))
    assert found == ["stopped"] * 3


def test_r20_an_interrupted_rank_does_not_cut_the_last_checkpoint(heard: Heard) -> None:
    with pytest.raises(InterruptedRunError, match=r"^rank 1: stopped, says 1$"):
        run_gloo(
            partial(work_until_asked, end=save_and_raise),
            2,
            on_message=heard,
            limits=Limits(grace_seconds=0.1),
            stop_requested=lambda: heard.has_from(2, "ready"),
        )
    assert (0, {"saved": True}) in heard.messages


def ignore_all(rank: int, report: Report) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report("ready")
    wait_for_ever(report)


def test_r20_ranks_that_do_not_stop_are_killed(heard: Heard) -> None:
    with pytest.raises(InterruptedRunError, match=r"to stop within 0\.5 s") as caught:
        run_processes(
            ignore_all,
            2,
            on_message=heard,
            limits=Limits(stop_seconds=0.5),
            stop_requested=lambda: heard.has_from(2, "ready"),
        )
    assert "rank 1: no point passed yet" in str(caught.value)


def only_wait(rank: int, report: Report) -> None:
    report("ready")
    wait_for_ever(report)


def test_r20_a_rank_that_cannot_answer_yet_is_interrupted_not_lost(heard: Heard) -> None:
    with pytest.raises(InterruptedRunError, match="stopped before rank"):
        run_processes(
            only_wait, 2, on_message=heard, stop_requested=lambda: heard.has_from(2, "ready")
        )


def test_whatever_the_parent_meets_no_rank_is_left(heard: Heard) -> None:
    def interrupt(rank: int, value: Any) -> None:
        heard(rank, value)
        if len(heard.pids) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_processes(only_wait_quietly, 3, on_message=interrupt)


def only_wait_quietly(rank: int, report: Report) -> None:
    wait_for_ever(report)


DRIVER = """
from batchtrain.testing.processes import run_processes
from tests.fault.test_rank_processes import only_wait_quietly
run_processes(only_wait_quietly, 3, on_message=lambda _, value: print(value["pid"], flush=True))
"""


def test_r15_ranks_end_when_their_parent_is_killed() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=environ, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        pids = [int(driver.stdout.readline()) for _ in range(3)]
        assert all(map(is_alive, pids))
        driver.kill()
    wait_until_gone(pids)
