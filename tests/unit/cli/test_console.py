"""What a log shows of a run: lines now and then, with how fast it goes and how long it takes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from batchtrain.cli.console import ConsoleProgress, Pace, in_words


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def record(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 0.5, "valid_loss": 0.25, "lr": 0.001}


def test_a_pace_counts_from_where_it_was_first_heard(clock: Clock) -> None:
    pace = Pace(clock)
    assert (pace.rate("rows"), pace.left(100)) == ([], [])
    pace.hear(40)  # a run that went on from there
    assert (pace.rate("rows"), pace.left(100)) == ([], [])
    clock.now += 2
    pace.hear(60)
    assert (pace.rate("rows"), pace.left(100)) == (["10 rows/s"], ["4 s left"])
    assert pace.left(None) == []
    pace.hear(100)
    assert pace.left(100) == []
    pace.hear(10)  # of another attempt, which began before
    assert pace.rate("rows") == []


def test_a_span_is_told_in_the_unit_that_suits_it() -> None:
    spans = [0.4, 89, 90, 3570, 3600, 4000, 36_000, 200_000]
    said = ["0 s", "89 s", "2 min", "1 h 0 min", "1 h 0 min", "1 h 7 min", "10 h", "56 h"]
    assert [in_words(span) for span in spans] == said


def test_a_log_has_epochs_with_their_pace_and_long_work_every_few_seconds(clock: Clock) -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written), every_epochs=2, clock=clock)
    progress.stage_started("train")
    for epoch in range(4):
        progress.epoch_finished(record(epoch), 4)
        clock.now += 3
    progress.working("rows trained", 1_000, 9_000)  # only the first one of its kind
    clock.now += 2
    progress.working("rows trained", 2_000, 9_000)  # too soon after the line before
    clock.now += 8
    progress.working("rows trained", 3_000, 9_000)
    progress.epoch_finished(record(4), 4)
    progress.stage_finished("train", "built", "4 epochs", 23.0)
    assert written.getvalue().splitlines() == [
        "          Epoch [1/4], Loss: 0.5000, valid 0.2500, lr 0.001, 9 s left",
        "          Epoch [2/4], Loss: 0.5000, valid 0.2500, lr 0.001, 6 s left",
        "          1,000 of 9,000 rows trained",
        "          3,000 of 9,000 rows trained, 200 rows/s, 30 s left",
        "          Epoch [4/4], Loss: 0.5000, valid 0.2500, lr 0.001, 200 rows/s",
        "train     built   4 epochs  23.0 s",
    ]


def test_a_stage_does_not_inherit_the_pace_of_the_one_before(clock: Clock) -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written), every_epochs=1, clock=clock)
    for _ in range(2):
        progress.stage_started("evaluate")
        progress.working("train rows scored", 0, 100)
        clock.now += 10
        progress.working("train rows scored", 50, 100)
        clock.now += 1000
    assert (
        written.getvalue()
        .splitlines()[0]
        .endswith("50 of 100 train rows scored, 5 rows/s, 10 s left")
    )
    assert written.getvalue().splitlines()[-1].endswith("5 rows/s, 10 s left")
