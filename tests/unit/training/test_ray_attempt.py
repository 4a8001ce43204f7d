"""What a driver makes of its ranks and of what Ray says of them, without Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train import ControllerError, WorkerGroupError

from batchtrain.artifacts import RunLayout
from batchtrain.errors import (
    BatchtrainError,
    ClusterError,
    InterruptedRunError,
    LauncherLostError,
    RankFailedError,
    RankLostError,
    RankMemoryError,
    RankStuckError,
)
from batchtrain.failures import CollateralError, Failure
from batchtrain.storage import FolderStorage
from batchtrain.training import ray_attempt
from batchtrain.training.placement import Placement
from batchtrain.training.ray_attempt import RayAttempt
from batchtrain.training.ray_board import Board
from batchtrain.training.supervision import DEFAULT_LIMITS, GroupLimits
from tests.support.ranks import Told

PATIENCE = 60.0

TWO = Placement(2, 1, 0, "2 workers, as asked")


@dataclass
class NearBoard:
    """The board of an attempt, in this process; it can be lost, and lose an answer."""

    board: Board = field(default_factory=Board)
    is_lost: bool = False
    loses_answers: int = 0
    is_killed: bool = False
    ordered: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.say = SimpleNamespace(remote=lambda *said: lambda: self.board.say(*said))
        self.take = SimpleNamespace(remote=lambda known: partial(self.board.take, known))
        self.order = SimpleNamespace(remote=lambda name: lambda: self._order(name))

    def _order(self, name: str) -> None:
        with self.ordered:
            self.board.order(name)
            self.ordered.notify_all()

    def get(self, call: Callable[[], Any], *, timeout: float) -> Any:
        """What stands for `ray.get`."""
        assert timeout > 0
        if self.is_lost:
            raise ActorDiedError
        found = call()
        if self.loses_answers and found:
            self.loses_answers -= 1
            raise GetTimeoutError
        return found

    def kill(self, board: Any) -> None:
        """What stands for `ray.kill`."""
        assert board is self
        self.is_killed = True

    def tell(self, rank: int, kind: str, value: Any = None, *, passed: int = 0) -> None:
        """What a rank says."""
        message = {"kind": kind, "value": value, "passed": passed, "last": "", "beside": 0}
        self.board.say(rank, [json.dumps(message)])

    def join(self, *ranks: int) -> None:
        """Ranks are there."""
        for rank in ranks:
            self.tell(rank, "joined", {"host": "host", "pid": 100 + rank})

    def fail(self, rank: int, error: BaseException) -> None:
        """A rank says how it failed."""
        self.tell(rank, "failed", Failure.of(error).to_json())

    def wait_for(self, order: str) -> None:
        """Wait until something was ordered."""
        with self.ordered:
            assert self.ordered.wait_for(lambda: order in self.board._orders, PATIENCE)


Fit = Callable[[NearBoard], None]


@dataclass
class Driver:
    """Runs attempts whose ranks and whose Ray are one function, `fit`."""

    layout: RunLayout
    patch: pytest.MonkeyPatch
    told: Told = field(default_factory=Told)
    board: NearBoard = field(default_factory=NearBoard)
    limits: GroupLimits = DEFAULT_LIMITS
    folders: list[Path] = field(default_factory=list)

    def run(self, fit: Fit, stop_requested: Callable[[], bool] = lambda: False) -> None:
        """One attempt."""
        near = SimpleNamespace(
            get=self.board.get, kill=self.board.kill, available_resources=lambda: {"CPU": 0.5}
        )
        self.patch.setattr(ray_attempt, "ray", near)
        self.patch.setattr(ray_attempt, "open_board", lambda: self.board)
        self.patch.setattr(ray_attempt, "placement_groups", frozenset)
        self.patch.setattr(ray_attempt, "is_within_an_actor", lambda: False)

        def trainer(_config: Any, _placement: Any, folder: str, **_timeout: float) -> Any:
            self.folders.append(Path(folder))
            return SimpleNamespace(fit=lambda: fit(self.board))

        self.patch.setattr(ray_attempt, "make_trainer", trainer)
        task: Any = SimpleNamespace(layout=self.layout, claim=3)
        attempt = RayAttempt(TWO, task, self.told, self.limits, None)
        try:
            attempt.run(stop_requested)
        finally:
            assert self.board.is_killed
            assert not any(folder.exists() for folder in self.folders)

    def fails(
        self, fit: Fit, stop_requested: Callable[[], bool] = lambda: False
    ) -> BatchtrainError:
        """One attempt that ends with an error of ours."""
        with pytest.raises(BatchtrainError) as caught:
            self.run(fit, stop_requested)
        return caught.value


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(RunLayout(FolderStorage(tmp_path), "small", "0123456789ab"), monkeypatch)


def finish(board: NearBoard) -> None:
    board.join(0, 1)
    board.tell(0, "report", {"note": "hello"})
    for rank in (0, 1):
        board.tell(rank, "returned", {})


def test_when_all_ranks_return_nothing_is_raised_and_all_was_heard(driver: Driver) -> None:
    # All of it comes after the last look at the board but one.
    driver.run(finish)
    assert driver.told.notes == ["hello"]


@pytest.mark.parametrize("error", [ActorDiedError(), WorkerGroupError("x", {0: ValueError("x")})])
def test_r13_what_befalls_ray_when_all_ranks_have_returned_does_not_matter(
    driver: Driver, error: Exception
) -> None:
    def fit(board: NearBoard) -> None:
        finish(board)
        raise error

    driver.run(fit)


def test_r21_a_training_that_ray_saw_finish_is_finished_though_an_answer_was_lost(
    driver: Driver,
) -> None:
    driver.board.loses_answers = 1
    driver.run(finish)


def died(text: str) -> Exception:
    """What Ray says of a worker that ended without a word."""
    return RuntimeError(f"A worker health check failed.\n{text}")


GLOO = CollateralError("RuntimeError: Connection closed by peer [::1]:4242")

MEMORY = "1 worker(s) were killed due to the node running low on memory."
NODE = "The actor died because its node has died. Node Id: 0123"


@pytest.mark.parametrize(
    ("said", "error", "kind", "words"),
    [
        pytest.param(
            {}, WorkerGroupError("x", {1: died("SIGKILL")}), RankLostError,
            ["rank 1 of 2", "its process is gone", "process 101 on host"], id="killed",
        ),
        pytest.param(
            {0: GLOO}, WorkerGroupError("x", {0: ValueError("x"), 1: died("SIGKILL")}),
            RankLostError, ["rank 1 of 2", "its process is gone"], id="killed and noticed",
        ),
        pytest.param(
            {}, WorkerGroupError("x", {1: died(NODE)}), RankLostError,
            ["rank 1 of 2", "its node is gone"], id="node",
        ),
        pytest.param(
            {}, WorkerGroupError("x", {0: died(MEMORY)}), RankMemoryError,
            ["rank 0 of 2", "memory ran out", "resources.rows: streaming"], id="memory",
        ),
        pytest.param(
            {0: GLOO, 1: GLOO}, WorkerGroupError("x", {0: ValueError("x"), 1: ValueError("x")}),
            RankLostError, ["lost touch", "Connection closed by peer"], id="network",
        ),
        pytest.param(
            {1: ValueError("not to my taste")}, WorkerGroupError("x", {1: RuntimeError("x")}),
            RankFailedError, ["rank 1 of 2", "ValueError: not to my taste", "rank-1.log"],
            id="user",
        ),
        pytest.param(
            {0: GLOO, 1: ValueError("not to my taste")},
            WorkerGroupError("x", {0: RuntimeError("x"), 1: RuntimeError("x")}),
            RankFailedError, ["rank 1 of 2"], id="user and noticed",
        ),
        pytest.param(
            {}, ActorDiedError(), LauncherLostError, ["Ray Train's controller"], id="controller",
        ),
        pytest.param(
            {}, ControllerError(RuntimeError("EADDRINUSE\nmore")), LauncherLostError,
            ["to start 2 ranks", "EADDRINUSE"], id="start",
        ),
        pytest.param(
            {}, TypeError("cannot pickle"), ClusterError, ["TypeError", "cannot pickle"],
            id="anything",
        ),
    ],
)  # fmt: skip
def test_r12_what_ray_says_becomes_an_error_that_names_rank_and_cause(
    driver: Driver,
    said: Mapping[int, BaseException],
    error: Exception,
    kind: type,
    words: list[str],
) -> None:
    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        for rank, failure in said.items():
            board.fail(rank, failure)
        raise error

    found = driver.fails(fit)
    assert type(found) is kind
    for each in words:
        assert each in str(found)
    assert f"{driver.layout.logs}/attempt-3" in str(found)
    assert len(str(found).splitlines()) <= 3


def test_r13_a_board_that_is_lost_is_told_apart(driver: Driver) -> None:
    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.is_lost = True
        raise WorkerGroupError("x", {0: died("exit code 75"), 1: died("exit code 75")})

    found = driver.fails(fit)
    assert type(found) is LauncherLostError
    assert "the board of its ranks" in str(found)


def test_r20_a_stop_before_the_ranks_have_begun_is_answered_at_once(driver: Driver) -> None:
    ended = threading.Event()

    def fit(_board: NearBoard) -> None:
        assert ended.wait(PATIENCE)  # the cluster has no room

    found = driver.fails(fit, lambda: True)
    ended.set()
    assert type(found) is InterruptedRunError
    assert "again" in str(found)


def joined_and_heard(driver: Driver) -> Callable[[], bool]:
    """Asks for a stop as soon as the driver knows of both ranks."""
    return lambda: "both" in driver.told.notes


def test_r20_a_stop_reaches_the_ranks_and_their_answer_the_caller(driver: Driver) -> None:
    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.tell(0, "report", {"note": "both"})
        board.wait_for("stop")
        for rank in (1, 0):
            board.fail(rank, InterruptedRunError("stopped after step 7"))
        raise WorkerGroupError("x", {0: RuntimeError("x"), 1: RuntimeError("x")})

    found = driver.fails(fit, joined_and_heard(driver))
    assert type(found) is InterruptedRunError
    assert "stopped after step 7" in str(found)
    assert "end" not in driver.board.board._orders


def test_r20_ranks_that_do_not_stop_are_ended(driver: Driver) -> None:
    driver.limits = GroupLimits(stop_seconds=0.2)

    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.tell(0, "report", {"note": "both"})
        board.wait_for("end")
        raise WorkerGroupError("x", {0: died("exit code 76"), 1: died("exit code 76")})

    found = driver.fails(fit, joined_and_heard(driver))
    assert type(found) is InterruptedRunError
    assert "within 0.2 s" in str(found)


def test_r20_a_rank_that_is_lost_after_a_stop_was_asked_for_is_not_said_to_be_slow(
    driver: Driver,
) -> None:
    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.tell(0, "report", {"note": "both"})
        board.wait_for("stop")
        raise WorkerGroupError("x", {1: died("SIGKILL")})

    found = driver.fails(fit, joined_and_heard(driver))
    assert type(found) is RankLostError
    assert "rank 1" in str(found)


def test_r20_a_training_that_ends_while_a_stop_was_asked_for_is_done(driver: Driver) -> None:
    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.tell(0, "report", {"note": "both"})
        board.wait_for("stop")
        finish(board)

    driver.run(fit, joined_and_heard(driver))


def test_r21_stuck_ranks_leave_their_stacks_before_they_are_ended(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_attempt, "DUMP_SECONDS", 0.3)
    driver.limits = GroupLimits(stuck_seconds=0.2)

    def fit(board: NearBoard) -> None:
        board.join(0, 1)
        board.wait_for("dump")
        for rank in (0, 1):
            board.tell(rank, "stacks", f"Thread of rank {rank}")
        board.wait_for("end")
        raise WorkerGroupError("x", {0: died("exit code 76"), 1: died("exit code 76")})

    found = driver.fails(fit)
    assert type(found) is RankStuckError
    assert "no rank passed a point" in str(found)
    for rank in (0, 1):
        key = f"{driver.layout.logs}/attempt-3/rank-{rank}.stacks.txt"
        assert driver.layout.storage.read(key) == f"Thread of rank {rank}".encode()


def test_r22_a_rank_that_does_not_join_is_named(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_attempt, "DUMP_SECONDS", 0.0)
    driver.limits = GroupLimits(stuck_seconds=0.2)

    def fit(board: NearBoard) -> None:
        board.join(0)
        board.wait_for("end")
        raise WorkerGroupError("x", {0: died("exit code 76")})

    found = driver.fails(fit)
    assert type(found) is RankLostError
    assert "rank 1 of 2" in str(found)
    assert "not joined" in str(found)


def test_j15_what_the_run_waits_for_is_said_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_attempt, "WAIT_NOTE_SECONDS", 0.0)
    noted = threading.Event()

    def fit(board: NearBoard) -> None:
        assert noted.wait(PATIENCE)
        finish(board)

    def look() -> bool:
        if driver.told.notes:
            noted.set()
        return False

    driver.run(fit, look)
    assert driver.told.notes == [
        "waiting for 2 workers with 1 CPUs each; the cluster has 0.5 CPUs and 0 GPUs free",
        "hello",
    ]
