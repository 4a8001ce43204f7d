"""When the state is saved and when the run stops: all ranks alike, in the same step."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchtrain.errors import DivergedError
from batchtrain.spec.training import CheckpointSpec
from batchtrain.training.keeping import (
    LOOK_SECONDS,
    MOST_STEPS_BETWEEN_LOOKS,
    StateKeeper,
    next_look,
)
from batchtrain.training.ranks import OneRank

LONG = 60.0
"""Seconds after which ranks that wait for each other fail."""


@dataclass
class Clock:
    """A clock that a test sets."""

    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Losses:
    """Counts how often they are read; one that diverges raises then."""

    events: list[Any] = field(default_factory=list)
    diverges: bool = False

    def flush(self) -> None:
        self.events.append("flush")
        if self.diverges:
            raise DivergedError


@dataclass
class State:
    """Only its step matters here; its snapshot is the step."""

    step: int = 0
    ended_by: str = ""
    seconds: float = 0.0

    @property
    def place(self) -> int:
        return self.step

    def snapshot(self) -> int:
        return self.step


@dataclass
class FakeSaver:
    """Remembers what it was asked to save; it is busy as long as a test says so."""

    events: list[Any] = field(default_factory=list)
    is_idle: bool = True

    def save(self, snapshot: Any, *, wait: bool) -> None:
        self.events.append((snapshot, wait))

    @property
    def steps(self) -> list[int]:
        return [event[0] for event in self.events if event != "flush"]


@dataclass
class Bench:
    """A keeper of one rank and all that it asks."""

    rules: CheckpointSpec
    clock: Clock = field(default_factory=Clock)
    saver: FakeSaver = field(default_factory=FakeSaver)
    state: State = field(default_factory=State)
    is_stopping: bool = False

    def __post_init__(self) -> None:
        self.losses = Losses(self.saver.events)
        self.keeper: Any = StateKeeper(
            self.rules, OneRank(), self.saver, lambda: self.is_stopping, self.clock
        )

    def steps(self, count: int, *, seconds_each: float = 0.0) -> bool:
        """Take steps; whether the run goes on after the last of them."""
        goes_on = True
        for _ in range(count):
            self.state.step += 1
            self.clock.time += seconds_each
            goes_on = self.keeper.goes_on(self.state, self.losses)
        return goes_on


# ----------------------------------------------------------------------------------------------
# One rank


def test_one_rank_saves_every_so_many_global_steps_and_does_not_wait_for_it() -> None:
    bench = Bench(CheckpointSpec(every_steps=4, every_seconds=None))
    assert bench.steps(13)
    assert [event for event in bench.saver.events if event != "flush"] == [
        (4, False),
        (8, False),
        (12, False),
    ]


def test_a_resumed_run_saves_at_the_same_steps_as_one_that_was_not_stopped() -> None:
    bench = Bench(CheckpointSpec(every_steps=4, every_seconds=None), state=State(6))
    bench.steps(7)
    assert bench.saver.steps == [8, 12]


def test_seconds_count_from_the_start_and_then_from_the_save_before() -> None:
    bench = Bench(CheckpointSpec(every_steps=None, every_seconds=10))
    bench.steps(9, seconds_each=1)
    assert bench.saver.steps == []
    bench.steps(10, seconds_each=1)
    assert bench.saver.steps == [10]
    bench.steps(1, seconds_each=1)
    assert bench.saver.steps == [10, 20]


def test_a_save_by_steps_puts_off_the_one_by_seconds() -> None:
    bench = Bench(CheckpointSpec(every_steps=8, every_seconds=10))
    bench.steps(17, seconds_each=1)
    assert bench.saver.steps == [8, 16]


def test_while_the_writer_is_busy_seconds_wait_and_steps_do_not() -> None:
    bench = Bench(CheckpointSpec(every_steps=25, every_seconds=10))
    bench.saver.is_idle = False
    bench.steps(24, seconds_each=1)
    assert bench.saver.steps == []
    bench.steps(1, seconds_each=1)
    assert bench.saver.steps == [25]
    bench.steps(13, seconds_each=1)
    assert bench.saver.steps == [25]
    bench.saver.is_idle = True
    bench.steps(1, seconds_each=1)
    assert bench.saver.steps == [25, 39]


def test_without_rules_only_a_stop_saves_and_it_waits_until_all_is_published() -> None:
    bench = Bench(CheckpointSpec(every_steps=None, every_seconds=None))
    assert bench.steps(500, seconds_each=1000)
    assert bench.saver.events == []
    bench.is_stopping = True
    assert not bench.steps(1)
    assert bench.saver.events == ["flush", (501, True)]


def test_a_stop_in_a_step_that_is_to_be_saved_saves_it_once_and_waits() -> None:
    bench = Bench(CheckpointSpec(every_steps=3))
    bench.steps(2)
    bench.is_stopping = True
    assert not bench.steps(1)
    assert bench.saver.events == ["flush", (3, True)]


@pytest.mark.parametrize("is_stopping", [False, True])
def test_r23_losses_are_read_before_a_state_is_saved(is_stopping: bool) -> None:
    bench = Bench(CheckpointSpec(every_steps=1))
    bench.is_stopping = is_stopping
    bench.losses.diverges = True
    with pytest.raises(DivergedError):
        bench.steps(1)
    assert bench.saver.events == ["flush"]


# ----------------------------------------------------------------------------------------------
# Several ranks


class Table:
    """Where the ranks of a test lay down what they gather, all at the same time."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=LONG)
        self.laid: list[str] = [""] * size


@dataclass
class ThreadRanks:
    """One of several ranks that are threads of this process."""

    rank: int
    table: Table
    gathered: int = 0

    @property
    def size(self) -> int:
        return len(self.table.laid)

    def gather(self, value: Any) -> list[Any]:
        self.table.laid[self.rank] = json.dumps(value)
        self.table.barrier.wait()
        found = [json.loads(each) for each in self.table.laid]
        # Nobody lays down the next value before all have read this one.
        self.table.barrier.wait()
        self.gathered += 1
        return found

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        raise AssertionError("what the ranks agree on is no tensor")


def together(size: int, rank_does: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What each rank gives; a rank that raises or returns early ends the others."""
    table = Table(size)

    def one(rank: int) -> Any:
        try:
            return rank_does(ThreadRanks(rank, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return [each.result() for each in [threads.submit(one, rank) for rank in range(size)]]


@dataclass(frozen=True)
class Story:
    """What happens to a run of several ranks.

    Attributes:
        rules: When to save.
        seconds: For each rank how long each step takes, over and over.
        stop_at: For each rank the step after which it is asked to stop; None for never.
        first: The step that the run goes on from.
        steps: How many there are to take.
        busy: The steps, over and over, in which the writer is busy.
    """

    rules: CheckpointSpec
    seconds: Sequence[Sequence[float]]
    stop_at: Sequence[int | None]
    first: int
    steps: int
    busy: Sequence[bool]


@dataclass(frozen=True)
class Told:
    """What one rank was told.

    Attributes:
        goes_on: What it was told after each step.
        flushed: The steps in which it read the losses.
        saved: The steps that it saved.
        gathered: How often it met the others.
    """

    goes_on: list[bool]
    flushed: list[int]
    saved: list[int]
    gathered: int


def tell(story: Story) -> list[Told]:
    """Live through a story; what each rank was told."""

    def rank_does(ranks: ThreadRanks) -> Told:
        clock, state = Clock(), State(story.first)
        losses, saver = Losses(), FakeSaver()
        flushed: list[int] = []
        stop_at = story.stop_at[ranks.rank]
        keeper: Any = StateKeeper(
            story.rules,
            ranks,
            saver if ranks.rank == 0 else None,
            lambda: stop_at is not None and state.step >= stop_at,
            clock,
        )
        goes_on: list[bool] = []
        durations = story.seconds[ranks.rank]
        while len(goes_on) < story.steps and all(goes_on):
            clock.time += durations[len(goes_on) % len(durations)]
            saver.is_idle = not story.busy[len(goes_on) % len(story.busy)]
            state.step += 1
            losses.events.clear()
            goes_on.append(keeper.goes_on(state, losses))
            flushed += [state.step for _ in losses.events]
        return Told(goes_on, flushed, saver.steps, ranks.gathered)

    return together(len(story.seconds), rank_does)


SECONDS = st.sampled_from([0.0, 1e-9, 1e-4, 0.01, 0.2, LOOK_SECONDS, 3.0, 1000.0])


@st.composite
def stories(draw: st.DrawFn) -> Story:
    size = draw(st.integers(1, 4))
    first, steps = draw(st.integers(0, 300)), draw(st.integers(1, 400))
    stops = st.none() | st.integers(first + 1, first + steps)
    return Story(
        rules=CheckpointSpec(
            every_steps=draw(st.none() | st.integers(1, 50)),
            every_seconds=draw(st.none() | st.sampled_from([1e-6, 0.5, 60.0])),
        ),
        seconds=[draw(st.lists(SECONDS, min_size=1, max_size=5)) for _ in range(size)],
        stop_at=[draw(stops) for _ in range(size)],
        first=first,
        steps=steps,
        busy=draw(st.lists(st.booleans(), min_size=1, max_size=4)),
    )


@settings(max_examples=60)
@given(stories())
@example(
    Story(CheckpointSpec(every_steps=7), [[0.0], [1000.0]], [None, 200], 0, 400, [False]),
).via("rank 0's clock stands still, and the other rank is asked to stop")
def test_all_ranks_are_told_the_same_in_the_same_step(story: Story) -> None:
    told = tell(story)
    # Nobody met the others once more or less often.
    assert {(tuple(each.goes_on), tuple(each.flushed), each.gathered) for each in told} == {
        (tuple(told[0].goes_on), tuple(told[0].flushed), told[0].gathered)
    }
    assert [each.saved for each in told[1:]] == [[]] * (len(told) - 1)
    # What is saved was read on all ranks right before, and nothing is read for another reason.
    assert told[0].saved == told[0].flushed
    last = story.first + len(told[0].goes_on)
    taken = range(story.first + 1, last + 1)
    if story.rules.every_steps is not None:
        due = {step for step in taken if step % story.rules.every_steps == 0}
        assert due <= set(told[0].saved)
        if story.rules.every_seconds is None:
            assert set(told[0].saved) <= due | {last}
    asked = min((step for step in story.stop_at if step is not None), default=None)
    if told[0].goes_on[-1]:
        # A stop that nobody has heard of is one that came after the latest look.
        assert asked is None or last - asked < MOST_STEPS_BETWEEN_LOOKS
    else:
        assert asked is not None
        assert asked <= last < asked + MOST_STEPS_BETWEEN_LOOKS
        assert told[0].saved[-1] == last
        if story.rules.every_steps is not None:
            assert last - asked < story.rules.every_steps


def test_a_slow_run_answers_a_stop_of_any_rank_after_the_step() -> None:
    for asked in range(3):
        stop_at = [30 if rank == asked else None for rank in range(3)]
        told = tell(Story(CheckpointSpec(), [[1.0]] * 3, stop_at, 0, 100, [False]))
        assert [len(each.goes_on) for each in told] == [30, 30, 30]
        assert [each.goes_on[-1] for each in told] == [False] * 3


def test_fast_steps_are_taken_in_peace() -> None:
    story = Story(CheckpointSpec(), [[0.001]] * 3, [None] * 3, 0, 1000, [False])
    told = tell(story)
    # Each second has four looks, and there is a first one to learn the pace.
    assert told[0].gathered <= 1 + 1 + 4


@given(
    step=st.integers(0, 10**9),
    seconds=st.floats(0, 1e6, allow_nan=False),
    every_steps=st.none() | st.integers(1, 10**6),
)
def test_the_next_look_is_later_and_never_past_a_step_that_is_to_be_saved(
    step: int, seconds: float, every_steps: int | None
) -> None:
    look_at = next_look(step, seconds, CheckpointSpec(every_steps=every_steps))
    assert step < look_at <= step + MOST_STEPS_BETWEEN_LOOKS
    # A step that is slow itself is waited for, and no more than that.
    assert look_at == step + 1 or (look_at - step) * seconds <= LOOK_SECONDS
    if every_steps is not None:
        skipped = range(step + 1, look_at)
        assert not any(each % every_steps == 0 for each in skipped)
