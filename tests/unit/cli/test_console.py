"""What a person sees of a run: lines now and then in a log, a bar below them on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from batchtrain.cli.console import ConsoleProgress, Pace, in_words
from batchtrain.progress import TrainingStanding


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": 0, "lr": 0.001, "train_loss": 0.5, "valid_loss": 0.25, **more}


def standing(rows: int, *, epochs: int = 4, loss: float | None = None) -> TrainingStanding:
    """So many rows of epochs of 1000 rows in 10 steps."""
    return TrainingStanding(
        epoch=min(rows // 1000, epochs - 1) + 1,
        epochs=epochs,
        step=rows % 1000 // 100,
        steps=10,
        rows=rows,
        epoch_rows=1000,
        total_rows=1000 * epochs,
        loss=loss,
    )


def logged(clock: Clock, every_epochs: int = 1) -> tuple[ConsoleProgress, io.StringIO]:
    written = io.StringIO()
    return ConsoleProgress(Console(file=written), every_epochs, clock=clock), written


def lines(written: io.StringIO) -> list[str]:
    return [line.strip() for line in written.getvalue().splitlines()]


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


def test_a_pace_forgets_what_was_longer_ago_than_a_minute(clock: Clock) -> None:
    pace = Pace(clock)
    for _second in range(130):  # the first minute, with compilation, was slow
        pace.hear(int(min(clock.now - 100, 60) + 1000 * max(clock.now - 160, 0)))
        clock.now += 1
    assert pace.rate("rows") == ["1,000 rows/s"]


def test_a_slow_pace_has_digits_too(clock: Clock) -> None:
    pace = Pace(clock)
    pace.hear(0)
    clock.now += 8
    pace.hear(2)
    assert pace.rate("rows") == ["0.25 rows/s"]


def test_a_span_is_told_in_the_unit_that_suits_it() -> None:
    spans = [0.4, 89, 90, 3570, 3600, 4000, 36_000, 200_000]
    said = ["0 s", "89 s", "2 min", "1 h 0 min", "1 h 0 min", "1 h 7 min", "10 h", "56 h"]
    assert [in_words(span) for span in spans] == said


def test_each_epoch_of_a_log_has_losses_score_rows_a_second_and_the_time_left(
    clock: Clock,
) -> None:
    progress, written = logged(clock)
    progress.stage_started("train")
    progress.training(standing(0))
    for epoch in range(5):
        progress.epoch_finished(record(epoch, valid_accuracy=0.852), 4)
        clock.now += 2
    progress.stage_finished("train", "built", "4 epochs", 8.0)
    assert lines(written) == [
        "Epoch [1/4], Loss: 0.5000, valid 0.2500, 85.2 %, lr 0.001, 500 rows/s, 6 s left",
        "Epoch [2/4], Loss: 0.5000, valid 0.2500, 85.2 %, lr 0.001, 500 rows/s, 4 s left",
        "Epoch [3/4], Loss: 0.5000, valid 0.2500, 85.2 %, lr 0.001, 500 rows/s, 2 s left",
        "Epoch [4/4], Loss: 0.5000, valid 0.2500, 85.2 %, lr 0.001, 500 rows/s",
        "train     built   4 epochs  8.0 s",
    ]


def test_a_resumed_run_does_not_count_the_rows_before_it(clock: Clock) -> None:
    progress, written = logged(clock)
    progress.stage_started("train")
    progress.training(standing(2500))
    clock.now += 5
    progress.epoch_finished(record(3), 4)
    assert lines(written)[0].endswith("100 rows/s, 10 s left")


def test_a_long_epoch_of_a_log_is_alive_and_gets_quieter(clock: Clock) -> None:
    progress, written = logged(clock)
    progress.stage_started("train")
    begun = clock.now
    said = []
    for second in range(300):
        clock.now = begun + second
        before = len(lines(written))
        progress.training(standing(second * 3, loss=0.75))
        said += [second] * (len(lines(written)) - before)
    assert said == [6, 17, 38, 79, 140, 201, 262]
    assert lines(written)[0] == "Epoch [1/4], step 0 of 10, loss 0.7500, 3 rows/s, 22 min left"
    assert lines(written)[4].startswith("Epoch [1/4], step 4 of 10, loss 0.7500")


def test_a_log_says_nothing_of_the_next_epoch_before_the_line_of_the_one_before(
    clock: Clock,
) -> None:
    progress, written = logged(clock)
    progress.stage_started("train")
    clock.now += 60
    progress.training(replace(standing(10, loss=0.75), epoch=2, step=0))
    assert lines(written) == []
    progress.epoch_finished(record(1), 4)
    assert lines(written)[0].startswith("Epoch [1/4], Loss")


def test_a_log_says_an_epoch_that_took_long_although_it_was_not_due(clock: Clock) -> None:
    progress, written = logged(clock, every_epochs=100)
    progress.stage_started("train")
    for epoch in range(1, 5):
        progress.epoch_finished(record(epoch), 1000)
        clock.now += 10 if epoch == 2 else 1
    assert [line[:14] for line in lines(written)] == ["Epoch [1/1000]", "Epoch [3/1000]"]


def test_the_epoch_with_which_a_training_stops_early_is_said(clock: Clock) -> None:
    progress, written = logged(clock, every_epochs=10)
    progress.stage_started("train")
    for epoch in range(13):
        progress.epoch_finished(record(epoch), 100)
    progress.stage_finished("train", "built", "12 epochs, stopped early", 1.0)
    said = [line.split(",")[0] for line in lines(written)[:-1]]
    assert said == [f"Epoch [{epoch}/100]" for epoch in (1, 10, 12)]


def test_a_stage_does_not_inherit_the_pace_of_the_one_before(clock: Clock) -> None:
    progress, written = logged(clock)
    for _ in range(2):
        progress.stage_started("evaluate")
        progress.working("train rows scored", 0, 100)
        clock.now += 10
        progress.working("train rows scored", 50, 100)
        clock.now += 1000
    said = lines(written)
    assert said[0] == "50 of 100 train rows scored, 5 rows/s, 10 s left"
    assert said[-1].endswith("5 rows/s, 10 s left")


def test_scores_steps_left_out_and_small_losses_are_shown_as_they_are() -> None:
    progress, written = logged(Clock())
    more = {"valid_r2": 0.875, "valid_f1_macro": 0.5, "train_accuracy": 0.5, "left_out_steps": 2}
    progress.epoch_finished(record(1, **more) | {"train_loss": 1.5e-5}, 1)
    (line,) = lines(written)
    assert line.startswith("Epoch [1/1], Loss: 1.500e-05, train 50.0 %, valid 0.2500, R2 0.8750, ")
    assert line.endswith(", f1_macro 0.5000, lr 0.001, 2 steps left out")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_has_a_bar_that_fits_on_one_line_below_the_lines(
    clock: Clock, width: int
) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, color_system="standard")
    progress = ConsoleProgress(console, every_epochs=1, clock=clock)
    progress.stage_started("train")
    assert progress._bar is not None
    progress.training(standing(0))
    clock.now += 2
    progress.training(standing(1500, loss=0.5))
    alone = Console(file=io.StringIO(), width=width)
    with alone.capture() as captured:
        alone.print(progress._bar.get_renderable())
    (bar,) = captured.get().splitlines()
    assert bar.startswith("train")
    assert "750 rows/s, 3 s left" in bar
    if width == 140:
        assert "Epoch [2/4], step 5 of 10, loss 0.5000" in bar
    progress.epoch_finished(record(2), 4)
    progress.close()
    assert "Epoch [2/4], Loss: 0.5000" in written.getvalue()


def test_what_is_no_terminal_gets_neither_colour_nor_bar(clock: Clock) -> None:
    progress, written = logged(clock)
    progress.stage_started("train")
    assert progress._bar is None
    progress.epoch_finished(record(1), 1)
    progress.note("[bold]as it is[/]\x1b[31m")
    progress.stage_finished("train", "built", "1 epoch", 1.0)
    assert "\x1b" not in written.getvalue()
    assert lines(written)[1] == r"[bold]as it is[/]\x1b[31m"
