"""What a driver makes of its ranks and of what Ray says of them, without Ray."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train import ControllerError, WorkerGroupError

from batchtrain import points
from batchtrain.artifacts import RunLayout, remove_artifacts
from batchtrain.errors import (
    ArtifactMissingError,
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
from batchtrain.progress import Progress
from batchtrain.storage import FolderStorage
from batchtrain.training import ray_launcher, ray_rank
from batchtrain.training.launched import SentProgress, hear_progress, last_state
from batchtrain.training.placement import Placement
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import OneRank
from batchtrain.training.ray_board import Board
from batchtrain.training.ray_rank import RankConfig, log_key, train_ray_rank
from batchtrain.training.supervision import GroupLimits
from batchtrain.training.train import OneProcess
from tests.support.builders import MemoryStorage, mixed_table, run, spec_for
from tests.support.ranks import Told

PATIENCE = 60.0

TWO = Placement(2, 1, 0, "2 workers, as asked")


def test_what_a_rank_says_of_its_training_arrives_as_it_was() -> None:
    told = Told()
    sent = SentProgress(lambda value: hear_progress(json.loads(json.dumps(value)), told))
    sent.note("an odd column")
    sent.epoch_finished({"epoch": 2, "valid_loss": 0.1 + 0.2}, 3)
    assert told.notes == ["an odd column"]
    assert told.records == [{"epoch": 2, "valid_loss": 0.1 + 0.2}]


@dataclass
class Keeping(OneProcess):
    """Trains here, as a rank does that another process launched, and remembers its task."""

    tasks: list[TrainTask] = field(default_factory=list)

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> Any:
        """See `Launcher`."""
        self.tasks.append(task)
        state = train_rank(task, OneRank(), progress, stop_requested, save_last=True)
        found = last_state(task)
        assert found.snapshot().sha256() == state.snapshot().sha256()
        with pytest.raises(ArtifactMissingError, match="no checkpoint of this attempt"):
            last_state(replace(task, claim=task.claim + 1))
        remove_artifacts(task.layout.storage, task.layout.checkpoints)
        with pytest.raises(ArtifactMissingError, match="no checkpoint of this attempt"):
            last_state(task)
        return state


def test_the_last_state_is_that_of_this_attempt_or_an_error(tmp_path: Path) -> None:
    from batchtrain.pipeline import run_spec  # noqa: PLC0415 - as the others of its kind

    launcher = Keeping()
    run_spec(spec_for(tmp_path, mixed_table(60)), last="train", launcher=launcher)
    assert len(launcher.tasks) == 1


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
        self.take = SimpleNamespace(remote=lambda: self.board.take)
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
    limits: GroupLimits = GroupLimits()
    is_stopped: bool = False
    folders: list[Path] = field(default_factory=list)

    def run(self, fit: Fit, stop_requested: Callable[[], bool] = lambda: False) -> None:
        """One attempt."""
        near = SimpleNamespace(
            get=self.board.get, kill=self.board.kill, available_resources=lambda: {"CPU": 0.5}
        )
        self.patch.setattr(ray_launcher, "ray", near)
        self.patch.setattr(ray_launcher, "open_board", lambda: self.board)
        self.patch.setattr(ray_launcher, "_placement_groups", frozenset)

        def trainer(_attempt: Any, folder: str) -> Any:
            self.folders.append(Path(folder))
            return SimpleNamespace(fit=lambda: fit(self.board))

        self.patch.setattr(ray_launcher._Attempt, "_trainer", trainer)
        task: Any = SimpleNamespace(layout=self.layout, claim=3, token="0123456789")
        attempt = ray_launcher._Attempt(TWO, task, self.told, self.limits, None)
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
    monkeypatch.setattr(ray_launcher, "DUMP_SECONDS", 0.3)
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
    monkeypatch.setattr(ray_launcher, "DUMP_SECONDS", 0.0)
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
    monkeypatch.setattr(ray_launcher, "WAIT_NOTE_SECONDS", 0.0)
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


@dataclass
class Rank:
    """Runs `train_ray_rank` as the only rank, in this process."""

    task: TrainTask
    board: NearBoard = field(default_factory=NearBoard)

    def run(self, listener: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
        """All that it says, but for heartbeats; what it raises comes out after it was kept."""
        config: Any = RankConfig(self.task, self.board, lambda _rank, _claim: listener)
        try:
            train_ray_rank({"rank_config": config})
        finally:
            points.listen(None)
            said = [json.loads(text) for _rank, text in self.board.board.take()]
            self.said = [message for message in said if message["kind"] != "heartbeat"]
        return self.said

    def fails(self, listener: Callable[[str], None]) -> Failure:
        """It ends with an error, which it has told."""
        with pytest.raises(RuntimeError, match="rank 0 failed"):
            self.run(listener)
        assert self.said[-1]["kind"] == "failed"
        return Failure.from_json(self.said[-1]["value"])

    @property
    def log(self) -> str:
        """What its log holds."""
        return self.task.layout.storage.read(log_key(self.task, 0)).decode()


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rank:
    task: list[TrainTask] = []

    @dataclass
    class Taking(OneProcess):
        def __call__(self, given: TrainTask, *_: Any) -> Any:
            task.append(given)
            raise ClusterError("that is all")

    from batchtrain.pipeline import run_spec  # noqa: PLC0415

    with pytest.raises(ClusterError, match="that is all"):
        run_spec(spec_for(tmp_path, mixed_table(60)), last="train", launcher=Taking())
    found = Rank(task[0])
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray_rank.ray.train, "get_context", lambda: context)
    monkeypatch.setattr("batchtrain.training.ray_board.ray", SimpleNamespace(get=found.board.get))
    monkeypatch.setattr(ray_rank, "rank_shards", lambda *_: None)
    return found


def test_a_rank_says_that_it_is_there_how_far_it_is_and_that_it_is_done(rank: Rank) -> None:
    said = rank.run()
    kinds = [message["kind"] for message in said]
    assert (kinds[0], kinds[-1]) == ("joined", "returned")
    assert set(kinds[1:-1]) == {"report"}
    epochs = [message["value"]["epoch"]["epoch"] for message in said[1:-1]]
    assert epochs == [0, 1, 2, 3]
    assert "rank 0 of 1" in rank.log


def raising(point: str, error: BaseException) -> Callable[[str], None]:
    def listener(name: str) -> None:
        if name == point:
            print("this is printed by the model")
            raise error

    return listener


class SilentError(RuntimeError):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("these rows are not to my taste"),
        ValueError("no file \udcff"),
        SilentError(),
        SystemExit(0),
        KeyboardInterrupt(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_r24_whatever_a_rank_raises_the_driver_is_told(rank: Rank, error: BaseException) -> None:
    out, err = sys.stdout, sys.stderr
    failure = rank.fails(raising("step.forward", error))
    assert failure.type_name == type(error).__name__
    assert not failure.is_collateral
    assert "this is printed by the model" in rank.log
    assert type(error).__name__ in rank.log
    assert (sys.stdout, sys.stderr) == (out, err)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_r01_what_the_network_says_of_another_rank_is_told_as_such(rank: Rank) -> None:
    error = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert rank.fails(raising("step.backward", error)).is_collateral


def test_r26_a_log_that_cannot_be_opened_is_a_told_error(rank: Rank) -> None:
    storage = rank.task.layout.storage
    storage.write(log_key(rank.task, 0).rpartition("/")[0], b"a file in the place of the folder")
    failure = rank.fails(lambda _name: None)
    assert failure.type_name in {"NotADirectoryError", "FileExistsError", "StorageError"}


def test_a_log_on_a_store_is_there_after_the_end(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_rank, "local_folder", lambda _storage: None)
    rank.run()
    assert "rank 0 of 1" in rank.log


def test_r27_a_log_that_cannot_be_uploaded_does_not_cost_the_training(
    rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLogs(MemoryStorage):
        def write(self, key: str, data: bytes) -> None:
            if "/logs/" in key:
                raise OSError(28, "No space left on device")
            super().write(key, data)

    storage = NoLogs()
    inner = rank.task.layout.storage
    for key in inner.list(""):
        storage.files[key] = inner.read(key)
    rank.task = replace(rank.task, layout=replace(rank.task.layout, storage=storage))
    assert rank.run()[-1]["kind"] == "returned"


def test_what_a_model_does_with_its_output_works_as_anywhere(rank: Rank) -> None:
    found: list[Any] = []

    def listener(name: str) -> None:
        if name == "step.forward" and not found:
            sys.stdout.writelines(["a line\n"])
            found.append((sys.stdout.encoding, sys.stderr.writable(), sys.stdout.closed))
            sys.stderr.flush()

    rank.run(listener)
    assert found
    assert "a line" in rank.log


def test_a_run_after_it_is_not_disturbed(rank: Rank, tmp_path: Path) -> None:
    rank.fails(raising("step.forward", ValueError("no")))
    (tmp_path / "after").mkdir()
    assert run(spec_for(tmp_path / "after", mixed_table(60)), last="train").trained is not None
