"""A log that is followed: each line once, and nothing that a terminal would obey."""

from __future__ import annotations

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

    def __init__(self, *looks: JobStatus | Exception, logs: list[str]) -> None:
        super().__init__()
        self._looks = list(looks)
        self._texts = logs

    def status(self, submission_id: str) -> JobStatus:
        found = self._looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def log(self, submission_id: str) -> str:
        return self._texts.pop(0)


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
