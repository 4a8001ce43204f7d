"""Where a training ends: after its epochs, its steps or its time; the same on all ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from batchtrain.spec.training import CheckpointSpec
from batchtrain.training.deciding import why_ended
from batchtrain.training.keeping import LOOK_SECONDS, StateKeeper
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import Snapshot, TrainState, weights_of
from tests.support.builders import mixed_table, run, spec_for
from tests.support.loops import LoopRun, StopAfter, written

NEVER = CheckpointSpec(every_seconds=None)


@dataclass
class Clock:
    """A clock that each look at it moves on."""

    time: float = 1000.0
    tick: float = 0.0

    def __call__(self) -> float:
        self.time += self.tick
        return self.time


@dataclass
class Saver:
    """Remembers what it was asked to save."""

    saved: list[Snapshot] = field(default_factory=list)
    is_idle: bool = True

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        self.saved.append(snapshot)


# --- steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_steps", "steps", "epoch_ends", "ended_by"),
    [
        (1, 1, [0, 1], "max_steps"),
        (5, 5, [0, 5], "max_steps"),
        (7, 7, [0, 5, 7], "max_steps"),
        (14, 14, [0, 5, 10, 14], "max_steps"),
        (15, 15, [0, 5, 10, 15], "epochs"),
        (99, 15, [0, 5, 10, 15], "epochs"),
        (None, 15, [0, 5, 10, 15], "epochs"),
    ],
)
def test_the_last_epoch_is_measured_and_recorded_wherever_it_ends(
    max_steps: int | None, steps: int, epoch_ends: list[int], ended_by: str
) -> None:
    training = LoopRun({"max_steps": max_steps})
    state = training.whole()
    assert state.step == steps == len(training.heard.losses)
    assert [record["step"] for record in state.history] == epoch_ends
    assert [record["epoch"] for record in state.history] == list(range(len(epoch_ends)))
    assert why_ended(state, training.plan) == ended_by
    last = [loss for step, loss in training.heard.losses if step >= epoch_ends[-2]]
    assert state.history[-1]["train_loss"] == pytest.approx(sum(last) / len(last))
    assert all("valid_loss" in record for record in state.history)
    before = written(state)
    assert training.go(state)
    assert written(state) == before


def test_the_steps_are_those_of_a_run_without_a_limit() -> None:
    limited = LoopRun({"max_steps": 7}).whole()
    free = LoopRun({})
    state = free.new_state()
    free.go(state, StopAfter(7))
    for name, value in weights_of(state.model).items():
        assert torch.equal(value, weights_of(limited.model)[name])


@pytest.mark.parametrize("stops", [(6,), (7,), (3, 4), (5,)])
def test_a_resume_ends_at_the_same_step(stops: tuple[int, ...]) -> None:
    training = LoopRun({"max_steps": 7})
    assert written(training.in_parts(*stops)) == written(training.whole())


def test_early_stopping_in_the_last_step_is_early_stopping() -> None:
    training = LoopRun({"max_steps": 10, "early_stopping": {"patience": 1, "min_delta": 1e9}})
    state = training.whole()
    assert why_ended(state, training.plan) == state.ended_by == "early_stopping"
    assert state.step == 10


def test_the_trained_model_says_why_it_ended(tmp_path: Path) -> None:
    loaded = spec_for(
        tmp_path, mixed_table(90), training={"epochs": 3, "batch_size": 16, "max_steps": 6}
    )
    trained = run(loaded, last="train").trained
    assert trained is not None
    assert trained.content["ended_by"] == "max_steps"
    assert (trained.content["steps"], trained.content["epochs"]) == (6, 2)
    assert [record["step"] for record in trained.history()] == [0, 4, 6]


# --- time -------------------------------------------------------------------------------------


def timed(clock: Clock, seconds: float, **options: Any) -> StateKeeper:
    return StateKeeper(
        options.pop("rules", NEVER),
        OneRank(),
        options.pop("saver", Saver()),
        options.pop("stop", lambda: False),
        clock,
        max_seconds=seconds,
        **options,
    )


def test_when_the_time_is_up_the_epoch_is_measured_and_the_run_ends() -> None:
    clock, saver = Clock(), Saver()
    training = LoopRun({"max_time": 10.0})
    state = training.new_state()

    def look(of: TrainState) -> None:
        clock.time += 1.4

    keeper = timed(clock, 10.0, saver=saver)
    after = StopAfter(looks=look)
    both = Both(after, keeper)
    assert training.go(state, both)
    # 8 steps take 11.2 seconds.
    assert state.step == 8
    assert [record["step"] for record in state.history] == [0, 5, 8]
    assert why_ended(state, training.plan) == "max_time"
    assert saver.saved == []
    copy = training.new_state()
    copy.load_bytes(*written(state), where="memory")
    assert training.go(copy)
    assert copy.step == 8


@dataclass
class Both:
    """Two keepers, one after the other."""

    first: Any
    second: Any

    def goes_on(self, state: TrainState, losses: Any) -> bool:
        return self.first.goes_on(state, losses) and self.second.goes_on(state, losses)


def test_the_seconds_of_all_attempts_count_and_are_no_part_of_the_exact_state() -> None:
    clock, saver = Clock(tick=0.1), Saver()
    training = LoopRun({"max_time": 100.0})
    state = training.new_state()
    keeper = timed(clock, 100.0, saver=saver, stop=lambda: clock.time >= 1000.5, seconds_before=70)
    assert not training.go(state, keeper)
    (snapshot,) = saver.saved
    assert snapshot.document["seconds"] == pytest.approx(70.5, abs=0.5)
    other = training.new_state()
    other.load_bytes(*snapshot.to_bytes(), where="memory")
    assert other.seconds == snapshot.document["seconds"]
    other.seconds = 0.0
    assert other.snapshot().sha256() == snapshot.sha256()
    clock.tick = 0.0
    late = timed(Clock(), 100.0, seconds_before=100.0)
    assert training.go(other, late)
    assert other.step == state.step + 1


def test_nobody_keeps_the_time_where_nobody_asks() -> None:
    saver = Saver()
    keeper = StateKeeper(CheckpointSpec(every_steps=1), OneRank(), saver, lambda: False)
    training = LoopRun({})
    training.go(training.new_state(), keeper)
    assert {snapshot.document["seconds"] for snapshot in saver.saved} == {0.0}


def test_a_stop_in_the_moment_when_the_time_is_up_is_a_stop() -> None:
    saver = Saver()
    training = LoopRun({"max_time": 1.0})
    state = training.new_state()
    assert not training.go(state, timed(Clock(), 0.0, saver=saver, stop=lambda: True))
    assert (state.step, state.ended_by) == (1, "")
    assert [snapshot.step for snapshot in saver.saved] == [1]


@dataclass
class ThreadRank:
    """One of several ranks that are threads of this process."""

    rank: int
    values: list[Any]
    barrier: Barrier

    @property
    def size(self) -> int:
        return len(self.values)

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(60)
        found = list(self.values)
        self.barrier.wait(60)
        return found

    def gather_tensor(self, value: Any) -> list[Any]:
        return self.gather(value)


@dataclass
class Place:
    """The part of a state that a keeper looks at."""

    place: int = 0
    ended_by: str = ""

    def snapshot(self) -> Any:
        raise AssertionError("nothing is to be saved")


def test_all_ranks_end_in_the_same_step_by_the_clock_of_rank_0() -> None:
    values: list[Any] = [None] * 3
    barrier = Barrier(3)

    def one(rank: int) -> int:
        # The others' clocks are far ahead.
        clock = Clock(1000.0 + 1e6 * rank)
        saver: Any = Saver() if rank == 0 else None
        keeper: Any = StateKeeper(
            NEVER, ThreadRank(rank, values, barrier), saver, lambda: False, clock, max_seconds=10.0
        )
        state = Place()
        while not state.ended_by:
            state.place += 1
            clock.time += LOOK_SECONDS
            assert keeper.goes_on(state, None)
        assert state.ended_by == "max_time"
        return state.place

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(one, range(3))) == {40}
