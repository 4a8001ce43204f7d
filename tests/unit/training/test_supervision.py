"""What the driver makes of what its ranks say, with a clock that the test sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import InterruptedRunError, RankLostError, RankStuckError, StorageError
from batchtrain.failures import CollateralError, Failure
from batchtrain.training.supervision import GroupLimits, GroupWatch, Verdict

LIMITS = GroupLimits(
    stuck_seconds=100, silent_seconds=12, early_return_seconds=30, slow_heartbeats=10
)


@dataclass
class Group:
    """Ranks that talk, and the time that passes meanwhile."""

    size: int
    now: float = 1000.0
    counts: dict[int, int] = field(default_factory=dict)
    beside: dict[int, int] = field(default_factory=dict)
    tick: int = 0

    def __post_init__(self) -> None:
        self.watch = GroupWatch(self.size, LIMITS, clock=lambda: self.now)

    def say(self, rank: int, kind: str, value: Any = None) -> str | None:
        """A message, as JSON has it."""
        message = {
            "kind": kind,
            "value": value,
            "passed": self.counts.get(rank, 0),
            "last": "step.forward" if self.counts.get(rank) else "",
            "beside": self.beside.get(rank, 0),
        }
        return self.watch.hear(rank, json.loads(json.dumps(message)))

    def join(self, ranks: Sequence[int] | None = None) -> None:
        """Ranks say that they are there."""
        for rank in range(self.size) if ranks is None else ranks:
            self.say(rank, "joined", {"host": f"host{rank}", "pid": 100 + rank})

    def fail(self, rank: int, error: BaseException) -> None:
        """A rank says how it failed."""
        self.say(rank, "failed", Failure.of(error).to_json())

    def live(
        self,
        seconds: float,
        *,
        silent: Sequence[int] = (),
        still: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> Verdict | None:
        """So many seconds of heartbeats; the first verdict, if there is one.

        Args:
            seconds: How many.
            silent: Those who say nothing.
            still: Those who pass no point.
            writing: Those of them who pass points beside the training.
        """
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            self.tick += 1
            for rank in range(self.size):
                if rank not in still:
                    self.counts[rank] = self.counts.get(rank, 0) + 1
                if rank in writing:
                    self.beside[rank] = self.beside.get(rank, 0) + 1
                if rank not in silent:
                    self.say(rank, "heartbeat", self.tick)
            verdict = self.watch.verdict()
            if verdict is not None:
                return verdict
        return None


@pytest.fixture
def three() -> Group:
    group = Group(3)
    group.join()
    return group


def test_r21_ranks_that_go_on_are_left_alone(three: Group) -> None:
    assert three.live(1000) is None


def test_r01_a_silent_rank_is_found_within_15_s_and_named_with_its_place(three: Group) -> None:
    assert three.live(20) is None
    began = three.now
    verdict = three.live(60, silent=[1], still=[0, 1, 2])
    assert verdict is not None
    assert three.now - began <= 15
    assert (verdict.rank, verdict.is_silent) == (1, True)
    assert "process 101 on host1, 40 points, the last 'step.forward'" in verdict.reason
    assert three.watch.standing(1) in verdict.reason


def test_r01_of_two_silent_ranks_the_first_is_named(three: Group) -> None:
    assert three.live(5, silent=[2]) is None
    verdict = three.live(60, silent=[1, 2])
    assert verdict is not None
    assert verdict.rank == 2


def test_r21_a_rank_that_stands_still_is_found_at_its_limit(three: Group) -> None:
    three.live(20)
    three.live(1, still=[1])  # the others wait for it from here on
    began = three.now
    verdict = three.live(500, still=[0, 1, 2])
    assert verdict is not None
    assert LIMITS.stuck_seconds < three.now - began <= LIMITS.stuck_seconds + 5
    assert (verdict.rank, verdict.is_silent) == (1, False)
    assert "it is behind all others" in verdict.reason


def test_r21_a_rank_that_writes_a_checkpoint_is_not_stuck(three: Group) -> None:
    three.live(20)
    assert three.live(1000, still=[0, 1, 2], writing=[0]) is None


def test_r21_a_rank_that_holds_the_interpreter_is_silent_before_it_is_stuck(three: Group) -> None:
    three.live(20)
    verdict = three.live(500, silent=[2], still=[0, 1, 2])
    assert verdict is not None
    assert (verdict.rank, verdict.is_silent) == (2, True)


def test_r24_a_rank_that_returns_early_is_found_before_the_others_count_as_stuck(
    three: Group,
) -> None:
    three.live(20)
    three.say(0, "returned", {})
    began = three.now
    verdict = three.live(500, silent=[0], still=[0, 1, 2])
    assert verdict is not None
    assert LIMITS.early_return_seconds < three.now - began <= LIMITS.early_return_seconds + 5
    assert verdict.rank == 1
    assert "another rank has returned already" in verdict.reason


def test_r24_a_rank_that_has_returned_may_be_silent_while_the_others_work(three: Group) -> None:
    three.live(20)
    three.say(0, "returned", {})
    assert three.live(500, silent=[0]) is None


def test_when_all_have_returned_nobody_is_waited_for(three: Group) -> None:
    for rank in range(3):
        assert not three.watch.all_returned
        three.say(rank, "returned", {})
    assert three.watch.all_returned
    assert three.live(500, silent=[0, 1, 2]) is None
    assert three.watch.blamed() is None


def test_before_anybody_has_joined_there_is_no_verdict() -> None:
    group = Group(2)
    group.now += 10_000
    assert group.watch.verdict() is None
    assert not group.watch.has_begun
    assert group.watch.standing(1) == "nothing was heard of it"


def test_r22_a_rank_that_never_joins_is_named_at_the_limit_for_stuck_ones() -> None:
    group = Group(3)
    group.join([0, 2])
    began = group.now
    verdict = None
    while verdict is None and group.now < began + 500:
        group.now += 0.5
        for rank in (0, 2):
            group.say(rank, "heartbeat", round(2 * group.now))
        verdict = group.watch.verdict()
    assert verdict is not None
    assert LIMITS.stuck_seconds < group.now - began <= LIMITS.stuck_seconds + 5
    assert verdict.rank == 1
    assert "not joined" in verdict.reason
    assert isinstance(verdict.to_error(3, "logs"), RankLostError)


def test_a_late_rank_that_joins_is_fine() -> None:
    group = Group(2)
    group.join([0])
    for _ in range(150):
        group.now += 0.5
        group.say(0, "heartbeat", round(2 * group.now))
        assert group.watch.verdict() is None
    group.join([1])
    assert group.watch.has_begun
    assert group.live(500) is None


@pytest.mark.parametrize("seconds", [6, 60, 3600])
def test_r21_a_pause_of_the_driver_is_nobodys_silence(three: Group, seconds: float) -> None:
    three.live(20)
    three.now += seconds  # Ctrl-Z, then fg; what was said meanwhile is not taken yet
    assert three.watch.verdict() is None
    assert three.live(60) is None


def test_r21_what_is_silent_after_a_pause_is_found_all_the_same(three: Group) -> None:
    three.live(20)
    three.now += 3600
    verdict = three.live(60, silent=[1])
    assert verdict is not None
    assert verdict.rank == 1


def test_r24_once_a_rank_has_failed_only_the_failure_counts(three: Group) -> None:
    three.live(20)
    three.fail(1, ValueError("no"))
    assert three.live(500, silent=[0, 1, 2]) is None
    assert three.watch.failed == [1]


def test_r24_messages_of_a_rank_after_its_failure_change_nothing(three: Group) -> None:
    three.fail(1, ValueError("no"))
    three.say(1, "heartbeat", 1)
    three.say(1, "stacks", "...")
    three.say(1, "report", {"note": "late"})
    assert three.live(500) is None
    rank, failure = three.watch.blamed() or (-1, None)
    assert rank == 1
    assert failure is not None
    assert failure.text == "no"
    assert three.watch.words(1) == "no"


def test_r24_who_fails_because_another_is_gone_is_not_blamed(three: Group) -> None:
    three.fail(2, CollateralError("Connection closed by peer"))
    three.fail(0, CollateralError("Connection closed by peer"))
    assert three.watch.blamed() is None
    three.fail(1, ValueError("these rows are not to my taste"))
    rank, failure = three.watch.blamed() or (-1, None)
    assert rank == 1
    assert failure is not None
    assert failure.type_name == "ValueError"


def test_r23_where_all_say_the_same_the_lowest_rank_is_named(three: Group) -> None:
    for rank in (2, 0, 1):
        three.fail(rank, ValueError("NaN in step 3"))
    rank, _failure = three.watch.blamed() or (-1, None)
    assert rank == 0


def test_r24_of_two_faults_the_first_is_named(three: Group) -> None:
    three.fail(2, ValueError("first"))
    three.fail(0, ValueError("second"))
    rank, failure = three.watch.blamed() or (-1, None)
    assert rank == 2
    assert failure is not None
    assert failure.text == "first"


def test_r20_a_rank_that_could_not_save_is_named_before_those_that_stopped(three: Group) -> None:
    stopped = InterruptedRunError("stopped after step 7, and the checkpoint is there")
    three.fail(1, stopped)
    three.fail(2, stopped)
    three.fail(0, StorageError("the disk is full"))
    rank, failure = three.watch.blamed() or (-1, None)
    assert rank == 0
    assert failure is not None
    assert failure.own == "StorageError"


def test_r20_where_all_stopped_it_is_an_interruption(three: Group) -> None:
    for rank in (1, 2, 0):
        three.fail(rank, InterruptedRunError("stopped after step 7"))
    rank, failure = three.watch.blamed() or (-1, None)
    assert rank == 0
    assert failure is not None
    assert failure.is_interruption


def test_r21_a_slow_rank_is_reported_once_and_not_ended(three: Group) -> None:
    notes = []
    for step in range(100):
        three.now += 0.5
        for rank in range(3):
            three.counts[rank] = step + (rank != 1)
            notes.append(three.say(rank, "heartbeat", step))
        assert three.watch.verdict() is None
    (note,) = [note for note in notes if note is not None]
    assert note.startswith("rank 1 is the slowest")


def test_nobody_is_slow_once_a_rank_has_returned(three: Group) -> None:
    three.say(0, "returned", {})
    for step in range(100):
        for rank in (1, 2):
            three.counts[rank] = step + rank
            assert three.say(rank, "heartbeat", step) is None


def test_where_a_rank_is_is_said_as_soon_as_it_is_known() -> None:
    group = Group(1)
    group.say(0, "heartbeat", 1)
    assert group.watch.standing(0) == "not joined yet, no point passed yet"
    group.join()
    assert group.watch.standing(0) == "process 100 on host0, no point passed yet"
    group.counts[0] = 1
    group.say(0, "heartbeat", 2)
    assert group.watch.standing(0) == "process 100 on host0, 1 point, the last 'step.forward'"


@pytest.mark.parametrize(("is_silent", "kind"), [(True, RankLostError), (False, RankStuckError)])
def test_a_verdict_names_rank_cause_and_logs(is_silent: bool, kind: type) -> None:
    error = Verdict(2, "no rank passed a point for 300 s", is_silent).to_error(4, "/runs/x/logs")
    assert type(error) is kind
    for words in ("rank 2 of 4", "no rank passed a point for 300 s", "/runs/x/logs", "again"):
        assert words in str(error)


FAILURES = [
    ValueError("a"),
    ValueError("b"),
    CollateralError("gone"),
    InterruptedRunError("stopped"),
    KeyboardInterrupt(),
]

STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.5, 4.0, 6.0, 13.0, 31.0, 101.0])),
    st.tuples(st.just("joined"), st.integers(0, 2)),
    st.tuples(st.just("heartbeat"), st.integers(0, 2)),
    st.tuples(st.just("stands"), st.integers(0, 2)),
    st.tuples(st.just("report"), st.integers(0, 2)),
    st.tuples(st.just("stacks"), st.integers(0, 2)),
    st.tuples(st.just("returned"), st.integers(0, 2)),
    st.tuples(st.just("failed"), st.tuples(st.integers(0, 2), st.sampled_from(FAILURES))),
)


VALUES = {"joined": {"host": "h", "pid": 1}, "report": {"note": "x"}, "stacks": "..."}


@dataclass
class Expected:
    """What is known of the ranks without looking into the watch."""

    group: Group
    heard: dict[int, float] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    moved: float = 1000.0

    def take(self, what: str, value: Any) -> None:
        """One thing happens."""
        group, before = self.group, self.group.now
        if what == "wait":
            group.now += value
            if group.now - before > 5:  # a pause of the driver
                self.moved = group.now
                self.heard = dict.fromkeys(self.heard, group.now)
            return
        rank, error = value if what == "failed" else (value, None)
        if error is not None:
            group.fail(rank, error)
        elif what == "stands":
            group.say(rank, "heartbeat", group.tick)
        else:
            group.counts[rank] = group.counts.get(rank, 0) + 1
            group.say(rank, what, VALUES.get(what, group.tick))
        self.heard[rank] = group.now
        if what != "stands":
            self.moved = group.now
        if what in {"returned", "failed"}:
            self.over.add(rank)

    def check(self, verdict: Verdict) -> None:
        """A rank is ended only for a reason."""
        now, watch = self.group.now, self.group.watch
        assert not watch.failed
        assert verdict.rank not in self.over
        assert str(verdict.to_error(3, "logs"))
        if verdict.rank in self.heard and verdict.is_silent:
            assert now - self.heard[verdict.rank] > LIMITS.silent_seconds
        else:
            limit = LIMITS.early_return_seconds if self.over else LIMITS.stuck_seconds
            assert now - self.moved > limit


@given(st.lists(STEPS, max_size=60))
def test_r21_whatever_is_said_in_whatever_order_nobody_is_ended_without_a_reason(
    steps: list[tuple[str, Any]],
) -> None:
    group = Group(3)
    expected = Expected(group)
    for what, value in steps:
        expected.take(what, value)
        verdict = group.watch.verdict()
        if verdict is not None:
            expected.check(verdict)
        assert all(group.watch.standing(rank) for rank in range(3))
        assert group.watch.has_begun == (len(expected.heard) == 3)
        blamed = group.watch.blamed()
        assert blamed is None or blamed[0] in group.watch.failed
        assert blamed is None or not blamed[1].is_collateral


def test_a_rank_that_said_nothing_of_its_end_is_unheard() -> None:
    watch = GroupWatch(4)
    standing = {"passed": 1, "last": "step.rows", "beside": 0}
    for rank in (0, 1, 2):
        watch.hear(rank, {"kind": "joined", "value": {"pid": 1, "host": "h"}, **standing})
    assert watch.unheard == [0, 1, 2, 3]
    watch.hear(0, {"kind": "returned", "value": {}, **standing})
    lost = Failure.of(CollateralError("connection reset"))
    watch.hear(2, {"kind": "failed", "value": lost.to_json(), **standing})
    assert watch.unheard == [1, 3]
