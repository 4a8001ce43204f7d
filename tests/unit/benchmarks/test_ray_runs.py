"""The benchmark of runs on Ray: what needs no Ray runs, and its arithmetic is right."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest
import torch

from batchtrain import points
from benchmarks.paired import Spread
from benchmarks.ray_effort import FULL, QUICK, Found, found_of, in_turns, ratios
from benchmarks.ray_marks import DRIVER, PHASES, Phases, StepNotes, read_marks, write_marks
from benchmarks.ray_runs import PARTS, main
from benchmarks.ray_stages import write_wide_table

DRIVER_MARKS = {
    "prepare": 2.0,
    "prepared": 3.0,
    "ray asked": 3.0,
    "ray started": 7.0,
    "launch": 8.0,
    "launched": 40.0,
    "closing": 44.0,
    "stages": {"prepare": [2.0, 3.0], "train": [3.0, 41.0]},
    "peak_bytes": 5,
}
RANK_MARKS = [
    {"joined": 12.0, "first": 15.0, "last": 36.0},
    {"joined": 13.0, "first": 14.0, "last": 35.0},
]


def test_a_quick_run_prints_its_table_and_writes_every_measurement(capsys, tmp_path, monkeypatch):
    # A collection takes half a second where all other tests are in memory.
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    path = tmp_path / "found.json"
    threads = torch.get_num_threads()

    main(["--quick", "--only", "rows", "--json", str(path)])

    printed = capsys.readouterr().out
    assert "One process, no Ray: MLP 128-64, batch 1024" in printed
    assert "load" in printed
    document = json.loads(path.read_text())
    assert list(document) == ["rows"]
    assert all(document["rows"]["taken"].values())
    ratio = document["rows"]["ratios"]["20,000 rows, 1 lane, 1 window: streaming / resident"]
    assert 0 < ratio["smallest"] <= ratio["median"] <= ratio["largest"]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (FULL.rounds, FULL.epochs, False)),
        (["--rounds", "5", "--epochs", "100"], (5, 100, False)),
        (["--quick"], (QUICK.rounds, QUICK.epochs, True)),
    ],
)
def test_the_parts_that_are_asked_for_get_the_effort_that_is_asked_for(
    arguments, expected, monkeypatch
):
    called = []

    def part(effort):
        called.append((effort.rounds, effort.epochs, effort.is_quick))
        return Found({}, {})

    monkeypatch.setitem(PARTS, "workers", part)
    monkeypatch.setitem(PARTS, "stages", part)
    main([*arguments, "--only", "workers", "stages"])
    assert called == [expected, expected]


def test_a_part_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_the_phases_of_a_run_add_up_to_its_time():
    phases = Phases.of({**DRIVER_MARKS, "began": 0.0, "ended": 50.0}, RANK_MARKS)
    assert dict(zip(PHASES, phases.seconds, strict=True)) == {
        "imports, spec": 2.0,
        "ray start": 4.0,
        "prepare": 1.0,
        "torch, placement": 1.0,
        "workers join": 5.0,
        "rows, model": 2.0,
        "training": 21.0,
        "tail": 4.0,
        "later stages": 4.0,
        "shutdown, exit": 6.0,
    }
    assert phases.to_first_step == 15.0
    assert phases.after_last_step == 14.0
    assert phases.whole == 50.0
    assert phases.stage_seconds == {"prepare": 1.0, "train": 34.0}


def test_what_a_run_did_not_come_to_takes_no_time():
    marks = {"began": 10.0, "prepare": 11.0, "prepared": 14.0, "closing": 14.0, "ended": 15.0}
    phases = Phases.of(marks, [])
    assert phases.seconds == (1.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def test_ray_started_by_a_stage_is_no_part_of_that_stage():
    marks = {
        "began": 0.0,
        "prepare": 1.0,
        "ray asked": 2.0,
        "ray started": 5.0,
        "prepared": 7.0,
        "ended": 8.0,
        "stages": {"prepare": [1.0, 7.0]},
    }
    phases = Phases.of(marks, [])
    assert phases.seconds[:3] == (1.0, 3.0, 3.0)
    assert phases.stage_seconds == {"prepare": 3.0}


def test_a_rank_notes_its_first_and_its_last_step(tmp_path, monkeypatch):
    clock = accumulate([100.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr("benchmarks.ray_marks.time.time", lambda: next(clock))
    points.listen(StepNotes(tmp_path / "rank-0.json"))
    try:
        for name in ("step.rows", "step.optimizer", "step.optimizer", "step.optimizer"):
            points.passed(name)
        points.passed("epoch.finished")
    finally:
        points.listen(None)
    found = json.loads((tmp_path / "rank-0.json").read_text())
    assert found == {"joined": 100.0, "first": 101.0, "last": 103.0}


def test_the_marks_of_all_processes_are_read_from_their_folder(tmp_path):
    write_marks(tmp_path, DRIVER, DRIVER_MARKS)
    for rank, marks in enumerate(RANK_MARKS):
        write_marks(tmp_path, f"rank-{rank}", marks)
    found = read_marks(tmp_path, began=0.0, ended=50.0)
    assert found == Phases.of({**DRIVER_MARKS, "began": 0.0, "ended": 50.0}, RANK_MARKS)


def test_contenders_run_to_and_fro_and_ratios_are_taken_round_by_round():
    order = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    taken = in_turns(contenders, FULL)
    assert "".join(order) == "a" + "ab" + "ba" + "ab"
    assert taken == {"a": [2, 5, 6], "b": [3, 4, 7]}
    assert ratios(taken, "a", "b") == Spread(2 / 3, 6 / 7, 5 / 4)
    assert found_of({}, []).to_json() == {"taken": {}, "ratios": {}}


def test_the_table_of_the_stages_is_the_same_each_time(tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    for path in (first, second):
        write_wide_table(path, 250)
    assert first.read_bytes() == second.read_bytes()
    lines = first.read_text().splitlines()
    assert len(lines) == 251
    assert lines[0].count(",") == 16
