"""A log that is followed: each line once, and nothing that a terminal would obey."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import ClusterError
from batchtrain.submission.following import LONGEST_LINE, NewLines, follow, neutral
from batchtrain.submission.request import JobStatus
from tests.support.jobs import FakeJobs, nothing


@given(st.lists(st.text("ab1 \n", max_size=8), max_size=12))
def test_however_a_log_grows_each_line_is_given_once(pieces: list[str]) -> None:
    lines, whole, given = NewLines(), "", []
    for piece in pieces:
        whole += piece
        given += list(lines.take(whole))
    given += list(lines.take(whole, is_whole=True))

    assert given == whole.removesuffix("\n").split("\n") if whole else given == []


def test_a_line_that_is_not_finished_waits() -> None:
    lines = NewLines()
    assert list(lines.take("one\ntw")) == ["one"]
    assert list(lines.take("one\ntwo\n7\n7\n")) == ["two", "7", "7"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("bell\x07 \x9b31m", "bell\\x07 \\x9b31m"),
        ("left \u202e right", "left \\u202e right"),
        ("tab\tstays, ümlaut too", "tab\tstays, ümlaut too"),
    ],
)
def test_j11_no_terminal_obeys_a_line(line: str, shown: str) -> None:
    assert neutral(line) == shown


def test_j11_a_long_line_is_cut() -> None:
    rest = 10**6 - LONGEST_LINE
    assert neutral("x" * 10**6) == f"{'x' * LONGEST_LINE} ... ({rest} more characters)"


def test_of_a_bar_that_is_drawn_anew_the_last_state_counts() -> None:
    assert list(NewLines().take("1 %\r50 %\r100 %\r\ndone\n")) == ["100 %", "done"]


class Growing(FakeJobs):
    """A job whose log and state are another thing at each look."""

    def __init__(self, *looks: JobStatus | Exception, logs: list[str | Exception]) -> None:
        super().__init__()
        self._looks = list(looks)
        self._texts = logs

    def status(self, submission_id: str) -> JobStatus:
        found = self._looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def log(self, submission_id: str) -> str:
        found = self._texts.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


PENDING, RUNNING = JobStatus("x", "pending"), JobStatus("x", "running")
DONE = JobStatus("x", "succeeded", exit_code=0)


def test_a_job_is_followed_to_its_end_over_a_gap() -> None:
    gone = ClusterError("no answer")
    backend = Growing(PENDING, RUNNING, gone, gone, DONE, logs=["", "a\nb", "a\nb\nc"])
    said: list[str] = []
    states: list[str] = []

    ended = follow(
        backend,
        "x",
        said.append,
        changed=lambda status: states.append(status.state),
        sleep=nothing,
        clock=lambda: 0.0,
    )

    assert (said, states) == (["a", "b", "c"], ["pending", "running", "succeeded"])
    assert ended is DONE


def test_a_backend_that_never_answers_is_an_error_at_once() -> None:
    with pytest.raises(ClusterError, match="no answer"):
        follow(Growing(ClusterError("no answer"), logs=[]), "x", print, sleep=nothing)


def test_a_backend_that_stops_answering_is_an_error_in_the_end() -> None:
    seconds = iter(range(0, 1000, 25))
    backend = Growing(RUNNING, *[ClusterError("no answer")] * 9, logs=[""])

    with pytest.raises(ClusterError, match="no answer"):
        follow(backend, "x", print, sleep=nothing, clock=lambda: float(next(seconds)))


NO_LOG = ClusterError("status code 500")


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ([NO_LOG] * 5, []),
        (["a\n", NO_LOG, NO_LOG, NO_LOG, NO_LOG], ["a"]),
        (["a\n", NO_LOG, "a\nb\n", "a\nb\nc\n"], ["a", "b", "c"]),
        (["a\n", "a\nb\n", "a\nb\nc\n", NO_LOG, "a\nb\nc\nd"], ["a", "b", "c", "d"]),
    ],
)
def test_j11_a_log_that_cannot_be_read_is_told_once_and_hides_no_end(
    logs: list[str | Exception], shown: list[str]
) -> None:
    backend = Growing(RUNNING, RUNNING, RUNNING, DONE, logs=logs)
    said: list[str] = []
    hours = iter(range(0, 10**6, 3600))

    ended = follow(backend, "x", said.append, sleep=nothing, clock=lambda: float(next(hours)))

    assert ended is DONE
    notes = [line for line in said if line.startswith("note: the log of x cannot be read now: ")]
    assert len(notes) == 1
    assert [line for line in said if line not in notes] == shown


def test_the_larger_a_log_is_the_less_often_it_is_asked_for() -> None:
    now = 0.0
    asked: list[float] = []

    class Large(Growing):
        def log(self, submission_id: str) -> str:
            asked.append(now)
            return "x" * 10_000_000

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    backend = Large(*[RUNNING] * 30, DONE, logs=[])
    follow(backend, "x", lambda _line: None, sleep=sleep, clock=lambda: now)

    # The state is asked for as before; the log each ten seconds, and at the end.
    assert all(after - before > 9.9 for before, after in pairwise(asked[:-1]))
    assert 4 <= len(asked) <= 8
    assert asked[-1] == now
