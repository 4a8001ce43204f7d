"""One rank in a worker of Ray, from its first word to its last; the worker is this process."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchtrain import points
from batchtrain.errors import ClusterError
from batchtrain.failures import Failure
from batchtrain.pipeline import run_spec
from batchtrain.training import ray_rank
from batchtrain.training.rank import TrainTask
from batchtrain.training.ray_board import Board
from batchtrain.training.ray_rank import RankConfig, log_key, train_ray_rank
from batchtrain.training.train import OneProcess
from tests.support.builders import MemoryStorage, mixed_table, run, spec_for


@dataclass
class NearBoard:
    """A board in this process."""

    board: Board = field(default_factory=Board)

    def __post_init__(self) -> None:
        self.say = SimpleNamespace(remote=lambda *said: lambda: self.board.say(*said))

    def get(self, call: Callable[[], Any], *, timeout: float) -> Any:
        """What stands for `ray.get`."""
        assert timeout > 0
        return call()


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
            said = [json.loads(text) for _rank, text in self.board.board.take(0)]
            self.said = [message for message in said if message["kind"] != "heartbeat"]
        return self.said

    def fails(self, listener: Callable[[str], None]) -> Failure:
        """It ends with an error, which it has told."""
        with pytest.raises(RuntimeError, match="rank 0 raised an error"):
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
    values = [message["value"] for message in said[1:-1]]
    assert [value["epoch"]["epoch"] for value in values if "epoch" in value] == [0, 1, 2, 3]
    assert "rank 0 of 1" in rank.log


def raising(point: str, error: BaseException) -> Callable[[str], None]:
    def listener(name: str) -> None:
        if name == point:
            sys.stdout.write("this is printed by the model\n")
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
            sys.stdout.write("a line\n")
            found.append((sys.stdout.encoding, sys.stderr.writable(), sys.stdout.closed))
            sys.stderr.flush()

    rank.run(listener)
    assert found
    assert "a line" in rank.log


def test_a_run_after_it_is_not_disturbed(rank: Rank, tmp_path: Path) -> None:
    rank.fails(raising("step.forward", ValueError("no")))
    (tmp_path / "after").mkdir()
    assert run(spec_for(tmp_path / "after", mixed_table(60)), last="train").trained is not None
