"""What a rank and its driver say to each other, without Ray: the board is an object at hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.training import ray_board
from batchtrain.training.ray_board import ANSWER_SECONDS, ENDED, ORPHANED, Board, BoardClient
from batchtrain.training.supervision import GroupWatch
from batchtrain.training.watch import PointCounter

PATIENCE = 60.0
"""Seconds after which an event counts as one that never comes."""

OFTEN, NEVER = 0.01, 1e9


@dataclass
class Answer:
    """What a call of an actor gives."""

    call: Callable[[], Any]


@dataclass
class NearBoard:
    """A `Board` in this process, which can be cut off and made to wait."""

    board: Board = field(default_factory=Board)
    said: list[dict[str, Any]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    lost: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    gate: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self.say = SimpleNamespace(remote=self._say)

    def _say(self, rank: int, messages: list[str]) -> Answer:
        orders = self.board.say(rank, messages)
        with self.changed:
            self.said += map(json.loads, messages)
            self.changed.notify_all()
        return Answer(lambda: json.loads(json.dumps(orders)))

    def get(self, answer: Answer, *, timeout: float) -> Any:
        """What stands for `ray.get`."""
        self.timeouts.append(timeout)
        self.waiting.set()
        assert self.gate.wait(PATIENCE)
        if self.lost is not None:
            raise self.lost
        return answer.call()

    def kinds(self) -> list[str]:
        """What was said so far."""
        with self.changed:
            return [message["kind"] for message in self.said]

    def wait_for(self, kind: str, number: int = 1) -> list[dict[str, Any]]:
        """Wait until so many messages of a kind have come; gives all of that kind."""

        def found() -> list[dict[str, Any]]:
            return [message for message in self.said if message["kind"] == kind]

        with self.changed:
            assert self.changed.wait_for(lambda: len(found()) >= number, PATIENCE)
            return found()


@dataclass
class Exits:
    """What `os._exit` was called with; the thread that calls it ends."""

    codes: list[int] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.called.set()
        raise SystemExit

    def code(self) -> int:
        """Wait for the end of the process."""
        assert self.called.wait(PATIENCE)
        (code,) = self.codes
        return code


@dataclass
class Clock:
    """The time of day, which somebody may set."""

    offset: float = 0.0

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.offset


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> NearBoard:
    near = NearBoard()
    monkeypatch.setattr(ray_board, "ray", SimpleNamespace(get=near.get))
    return near


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Exits:
    found = Exits()
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            others(args)

    monkeypatch.setattr(ray_board, "os", SimpleNamespace(_exit=found))
    monkeypatch.setattr(threading, "excepthook", hook)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(ray_board, "time", found)
    return found


@pytest.fixture
def client(
    board: NearBoard, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., BoardClient]]:
    """Makes clients of the board; none of their threads outlives the test."""
    made: list[BoardClient] = []

    def make(*, every: float = NEVER, counter: PointCounter | None = None) -> BoardClient:
        monkeypatch.setattr(ray_board, "HEARTBEAT_SECONDS", every)
        made.append(BoardClient(board, 1, counter or PointCounter()))
        return made[-1]

    yield make
    board.gate.set()
    for each in made:
        each.close()
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


Make = Callable[..., BoardClient]


def test_r21_heartbeats_tick_at_moments_that_all_ranks_share(
    client: Make, board: NearBoard, clock: Clock
) -> None:
    client(every=OFTEN)
    ticks = [message["value"] for message in board.wait_for("heartbeat", 5)]
    assert ticks == sorted(set(ticks))
    assert abs(ticks[-1] * OFTEN - clock.time()) < PATIENCE


def test_a_message_is_sent_at_once_and_not_with_the_next_heartbeat(
    client: Make, board: NearBoard
) -> None:
    client(every=NEVER).say("report", {"note": "now"})
    (message,) = board.wait_for("report")
    assert message["value"] == {"note": "now"}
    assert board.board.take(0) == [(1, json.dumps(message))]


def test_r21_a_message_has_the_points_that_were_passed_when_it_was_said(
    client: Make, board: NearBoard
) -> None:
    counter = PointCounter()
    speaker = client(counter=counter)
    counter("step.forward")
    board.gate.clear()
    speaker.say("report", 1)
    assert board.waiting.wait(PATIENCE)
    speaker.say("report", 2)
    counter("step.backward")
    board.gate.set()
    _first, second = board.wait_for("report", 2)
    assert (second["passed"], second["last"], second["beside"]) == (1, "step.forward", 0)


def test_messages_come_in_the_order_in_which_they_were_said(client: Make, board: NearBoard) -> None:
    speaker = client(every=OFTEN)
    for number in range(500):
        speaker.say("report", number)
    speaker.close()
    found = [message["value"] for message in board.said if message["kind"] == "report"]
    assert found == list(range(500))


def test_close_sends_what_is_left_and_nothing_is_said_after_it(
    client: Make, board: NearBoard
) -> None:
    speaker = client(every=OFTEN)
    board.gate.clear()
    speaker.say("report", 0)
    assert board.waiting.wait(PATIENCE)
    for number in range(1, 5):
        speaker.say("report", number)
    speaker.say("returned", {})
    threading.Timer(0, board.gate.set).start()
    speaker.close()
    kinds = [kind for kind in board.kinds() if kind != "heartbeat"]
    assert kinds == ["report"] * 5 + ["returned"]
    count = len(board.kinds())
    speaker.say("report", "late")
    speaker.close()
    assert len(board.kinds()) == count


def test_many_threads_may_speak(client: Make, board: NearBoard) -> None:
    speaker = client(every=OFTEN)
    threads = [
        threading.Thread(target=lambda n=n: [speaker.say("report", [n, i]) for i in range(50)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    speaker.close()
    found = [message["value"] for message in board.said if message["kind"] == "report"]
    assert len(found) == 200
    for number in range(4):
        assert [i for n, i in found if n == number] == list(range(50))


def test_what_is_not_json_is_an_error_of_the_speaker_alone(client: Make, board: NearBoard) -> None:
    speaker = client(every=OFTEN)
    with pytest.raises(TypeError):
        speaker.say("report", {1, 2})
    board.wait_for("heartbeat", 2)
    assert "report" not in board.kinds()


def test_r20_a_stop_is_heard_with_the_next_answer(client: Make, board: NearBoard) -> None:
    speaker = client(every=OFTEN)
    board.wait_for("heartbeat")
    assert not speaker.stop_requested()
    board.board.order("stop")
    # The answer to one of these says it, and it is there before the one after is said.
    board.wait_for("heartbeat", len(board.kinds()) + 3)
    assert speaker.stop_requested()


def test_r21_the_stacks_of_all_threads_are_said_once(
    client: Make, board: NearBoard, exits: Exits
) -> None:
    client(every=OFTEN)
    board.board.order("dump")
    (stacks,) = board.wait_for("stacks")
    assert "wait_for" in stacks["value"]  # this very thread
    assert "ray_board.py" in stacks["value"]
    count = len(board.kinds())
    board.wait_for("heartbeat", count + 3)
    assert board.kinds().count("stacks") == 1
    assert exits.codes == []


def test_r21_a_rank_ends_at_once_when_told_to_and_what_it_said_is_there(
    client: Make, board: NearBoard, exits: Exits
) -> None:
    speaker = client()
    board.board.order("end")
    speaker.say("report", "last")
    assert exits.code() == ENDED
    assert board.kinds() == ["report"]


@pytest.mark.parametrize(
    "lost",
    [RuntimeError("the actor is dead"), TimeoutError("no answer"), ConnectionError("no driver")],
)
def test_r15_a_rank_whose_driver_is_gone_ends_itself(
    client: Make, board: NearBoard, exits: Exits, lost: Exception
) -> None:
    board.lost = lost
    client(every=OFTEN)
    assert exits.code() == ORPHANED
    assert board.timeouts == [ANSWER_SECONDS]


def test_r21_a_rank_that_cannot_write_its_stack_still_ends_when_told_to(
    client: Make, board: NearBoard, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray_board, "_stacks", full)
    client(every=OFTEN)
    board.board.order("dump")
    count = len(board.kinds())
    board.wait_for("heartbeat", count + 3)
    board.board.order("end")
    assert exits.code() == ENDED


@pytest.mark.parametrize("seconds", [-3600.0, -1.0, 1.0, 3600.0])
def test_r32_a_clock_that_is_set_does_not_silence_a_rank(
    client: Make, board: NearBoard, clock: Clock, seconds: float
) -> None:
    client(every=OFTEN)
    board.wait_for("heartbeat", 2)
    clock.offset = seconds
    count = len(board.kinds())
    board.wait_for("heartbeat", count + 5)


def test_all_that_is_said_the_driver_understands(client: Make, board: NearBoard) -> None:
    watch = GroupWatch(2)
    watch.hear(0, {"kind": "joined", "value": {"pid": 1, "host": "h"}, **PointCounter().standing()})
    speaker = client(every=OFTEN)
    speaker.say("joined", {"pid": 2, "host": "h"})
    board.wait_for("heartbeat", 2)
    speaker.say("report", {"note": "hello"})
    speaker.say("returned", {})
    speaker.close()
    for rank, message in board.board.take(0):
        assert watch.hear(rank, json.loads(message)) is None
    assert watch.has_begun
    assert watch.standing(1).startswith("process 2 on h")


CALLS = st.one_of(
    st.tuples(st.integers(0, 3), st.lists(st.integers(), max_size=5)),
    st.just("take"),
    st.sampled_from(["stop", "dump", "end"]),
)


def test_what_did_not_arrive_is_given_again() -> None:
    board = Board()
    board.say(0, ["a", "b"])
    assert board.take(0) == [(0, "a"), (0, "b")]
    board.say(1, ["c"])
    assert board.take(0) == [(0, "a"), (0, "b"), (1, "c")]
    assert board.take(2) == [(1, "c")]


@given(st.lists(CALLS, max_size=40))
def test_a_board_loses_nothing_and_forgets_no_order(calls: list[Any]) -> None:
    board = Board()
    said: dict[int, list[str]] = {}
    taken: dict[int, list[str]] = {}
    ordered: set[str] = set()
    known = 0
    for call in [*calls, "take"]:
        if call == "take":
            for rank, message in board.take(known):
                known += 1
                taken.setdefault(rank, []).append(message)
        elif isinstance(call, str):
            board.order(call)
            ordered.add(call)
        else:
            rank, numbers = call
            messages = list(map(str, numbers))
            assert board.say(rank, messages) == dict.fromkeys(ordered, True)
            said.setdefault(rank, []).extend(messages)
    assert taken == {rank: messages for rank, messages in said.items() if messages}
    assert board.take(known) == []
