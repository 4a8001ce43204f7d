"""What a person sees of a search: lines in a log, a table on a terminal, and the end of it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from batchtrain.cli.console import ConsoleProgress
from batchtrain.cli.search_result import show_search
from batchtrain.cli.search_view import SearchView, search_line
from batchtrain.progress import Progress, SearchStanding, SeenTrial
from batchtrain.tuning.standing import SearchWatch
from batchtrain.tuning.trials import Goal, TrialRecord, best_trial, ranked

GOALS = [Goal("valid_loss", "min")]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(
    number: int, loss: float | None, state: Any = "finished", rows: int = 100
) -> TrialRecord:
    values = {"training.optimizer.lr": 0.01 * (number + 1), "model.hidden": [8, 4]}
    return TrialRecord(number, state, values, 10, 9, {"valid_loss": loss}, rows=rows)


def lines(written: io.StringIO) -> list[str]:
    return [line.strip() for line in written.getvalue().splitlines()]


def test_a_watch_counts_rows_for_the_pace_and_not_what_an_earlier_call_did() -> None:
    clock = Clock()
    watch = SearchWatch(GOALS, trials=10, trial_rows=100, clock=clock)
    before = [record(0, 0.5), record(1, 0.4, "stopped", rows=40)]
    first = watch.standing(before)
    assert (first.trials_per_minute, first.seconds_left, first.over) == (None, None, 2)
    assert (first.rows, first.total_rows) == (140, 140 + 8 * 100)
    clock.now += 30
    found = watch.standing([*before, record(2, 0.3)], ["trial 3, epoch 2 of 10"], running_rows=20)
    # 120 rows in 30 s; 260 of 940 are done (the trial that was stopped takes no more).
    assert found.rows == 260
    assert found.total_rows == 940
    assert found.seconds_left == pytest.approx((940 - 260) * 30 / 120)
    assert found.trials_per_minute == pytest.approx(2.0)
    assert found.counts == {"finished": 2, "stopped": 1}
    # The one that was stopped comes last, as where the best is chosen.
    assert [each.number for each in found.best] == [2, 0, 1]
    assert watch.standing([record(n, 1.0) for n in range(10)]).seconds_left == 0


def test_the_first_of_those_that_are_shown_is_the_best_as_the_search_has_it() -> None:
    nan = float("nan")
    found = [record(3, 0.5), record(1, 0.5), record(0, nan), record(2, 0.1, "failed")]
    assert [each.number for each in ranked(found, GOALS)] == [1, 3]
    best = best_trial(found, GOALS)
    assert best is not None
    assert best.number == 1


def test_a_log_has_a_line_for_each_new_best_and_now_and_then_one_of_all() -> None:
    clock, written = Clock(), io.StringIO()
    progress = ConsoleProgress(Console(file=written), 1, clock=clock)
    watch = SearchWatch(GOALS, trials=40, trial_rows=100, clock=clock)
    progress.stage_started("search")
    records, losses = [], [0.5, None, 0.25, *[0.3] * 37]
    for number, loss in enumerate(losses):
        records.append(record(number, loss, "failed" if loss is None else "finished"))
        progress.searching(watch.standing(records))
        progress.searching(watch.standing(records))
        clock.now += 3
    said = lines(written)
    assert said[:2] == [
        "best so far: trial 0, valid_loss 0.5000 (lr 0.01, hidden 8-4)",
        "best so far: trial 2, valid_loss 0.2500 (lr 0.03, hidden 8-4)",
    ]
    assert said[2] == (
        "5 of 40 trials: 4 finished, 1 failed, best valid_loss 0.2500, 500 rows, 20 trials/min, "
        "at most 2 min left"
    )
    assert all("best valid_loss 0.2500" in line for line in said[2:])
    assert 4 <= len(said) <= 6  # it gets quieter
    assert "\x1b" not in written.getvalue()


def test_nothing_hostile_in_a_value_reaches_a_log() -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written), 1)
    progress.stage_started("search")
    values = {"model.activation": "[red]x\x1b[31m\n"}
    best = SeenTrial(0, "finished", 1, {"valid_loss": 1.0}, values)
    progress.searching(SearchStanding(1, {"finished": 1}, best=(best,)))
    assert "\x1b" not in written.getvalue()
    assert r"[red]x\x1b[31m\n" in written.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_has_a_table_with_the_best_and_what_runs(width: int) -> None:
    clock = Clock()
    watch = SearchWatch(GOALS, trials=64, trial_rows=100, clock=clock)
    records = [record(0, 0.5), record(1, 0.25), record(2, None, "failed")]
    watch.standing(records[:1])
    clock.now += 60
    running = ["pack of 32 trials, epoch 40 of 100", *[f"trial {n}, epoch 1" for n in range(9)]]
    view = SearchView(watch.standing(records, running), clock)
    clock.now += 5
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(view)
    said = captured.get().splitlines()
    assert max(map(len, said)) <= width
    assert "3 of 64 trials: 2 finished, 1 failed" in said[0]
    # It has gone on for five seconds since it was heard.
    assert "65 s, 300 rows, 2 trials/min, at most 30 min left" in said[1]
    text = re.sub(r"\s+", " ", captured.get())
    assert "running pack of 32 trials, epoch 40 of 100" in text
    assert "and 6 more" in text
    assert "best trial 1, valid_loss 0.2500 (lr 0.02, hidden 8-4)" in text
    table = said[-2:]
    assert [line.split()[:5] for line in table] == [
        ["1", "finished", "10", "0.2500", "lr"],
        ["0", "finished", "10", "0.5000", "lr"],
    ]


def test_a_terminal_draws_the_table_once_and_lines_go_above_it() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system="standard")
    progress = ConsoleProgress(console, 1)
    progress.stage_started("search")
    assert progress._bar is not None
    for number in range(3):
        progress.searching(SearchStanding(3, {"finished": number}))
    assert (progress._bar, progress._live is None) == (None, False)
    progress.note("a word")
    progress.stage_finished("search", "built", "3 trials", 1.0)
    assert progress._live is None
    assert "a word" in written.getvalue()


def test_who_does_not_listen_hears_nothing() -> None:
    Progress().searching(SearchStanding(None, {}))
    assert search_line(SearchStanding(None, {})) == "0 trials"


def document(**more: Any) -> dict[str, Any]:
    trials = [record(number, 0.1 * (number + 1)) for number in range(12)]
    trials += [
        TrialRecord(n, "failed", {}, 1, error=f"the loss is {'x' if n == 15 else 'no number'}")
        for n in (13, 14, 15)
    ]
    return {
        "name": "small",
        "goals": [{"metric": "valid_loss", "mode": "min"}],
        "paths": ["training.optimizer.lr", "model.hidden"],
        "distributions": {},
        "algorithm": "random",
        "scheduler": "none",
        "trials": [each.to_json() for each in trials],
        "best": 0,
        "front": [],
        "packed": {"packs": 2, "trials": 11, "alone": 1, "why_not": {"it has its own steps": 1}},
        "rows": 1200,
        "best_run": {"links": {}, "metrics": {"test_accuracy": 0.9123456, "test_auroc": None}},
        **more,
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_end_has_the_ten_best_the_errors_the_packs_and_where_all_is(width: int) -> None:
    written = io.StringIO()
    places = {"page": f"/somewhere/{'long/' * 30}search.html"}
    show_search(document(), Console(file=written, width=width), places=places)
    said = [line.rstrip() for line in written.getvalue().splitlines()]
    table = [line.split() for line in said if re.match(r" +\d+ ", line)]
    assert [row[0] for row in table] == [str(number) for number in range(10)]
    text = re.sub(r"\s+", " ", written.getvalue())
    assert "15 trials: 12 finished, 3 failed; 1,200 rows trained" in text
    assert "the table has the best 10 of 12 with a score" in text
    assert "packed 11 trials in 2 packs" in text
    assert "alone 1 trial: it has its own steps" in text
    assert "failed trials 13, 14: the loss is no number trial 15: the loss is x" in text
    assert "best trial 0; run by itself: test_accuracy 0.9123, test_auroc undefined" in text
    assert said[-1] == f"page      {places['page']}"  # whole, to be copied
    assert "\x1b" not in written.getvalue()


def test_the_end_of_a_search_without_a_score_says_so() -> None:
    written = io.StringIO()
    failed = [TrialRecord(0, "failed", {}, 0, error="no").to_json()]
    empty = document(trials=failed, best=None, packed=None, best_run=None, rows=0)
    show_search(empty, Console(file=written, width=80))
    text = re.sub(r"\s+", " ", written.getvalue())
    assert "failed trial 0: no best no trial has a score" in text
