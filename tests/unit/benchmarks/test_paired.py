"""Ratios are taken round by round, and the rounds run the contenders to and fro."""

from __future__ import annotations

import json

import pytest

from benchmarks.paired import Spread, Taken, compare, run_in_turns, show, timed, write_json


def taken(*wall_s: float) -> list[Taken]:
    return [Taken(wall_s=each, cpu_s=each / 2) for each in wall_s]


def test_a_spread_is_smallest_median_and_largest():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0)
    assert Spread.of([4.0, 1.0, 3.0, 2.0]).median == 2.5
    assert f"{Spread.of([1.0, 2.0, 4.0]):.1f}" == "2.0 (1.0 to 4.0)"


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one run"):
        Spread.of([])


def test_the_ratio_is_taken_round_by_round_and_not_of_the_medians():
    # The machine is ten times slower in the second round, for both.
    runs = {"ours": taken(1.0, 10.0, 1.0), "bare": taken(2.0, 20.0, 3.0)}
    found = compare(runs, ours="ours", theirs="bare", as_speed=True)
    assert found.wall == Spread(2.0, 2.0, 3.0)
    assert found.rounds == 3


def test_speed_and_duration_are_each_other_inverted():
    runs = {"ours": taken(1.0), "bare": taken(4.0)}
    assert compare(runs, ours="ours", theirs="bare", as_speed=True).wall.median == 4.0
    assert compare(runs, ours="ours", theirs="bare", as_speed=False).wall.median == 0.25


def test_the_two_clocks_are_kept_apart():
    runs = {"ours": [Taken(wall_s=2.0, cpu_s=1.0)], "bare": [Taken(wall_s=2.0, cpu_s=3.0)]}
    found = compare(runs, ours="ours", theirs="bare", as_speed=True)
    assert (found.wall.median, found.cpu.median) == (1.0, 3.0)


def test_contenders_with_different_numbers_of_rounds_are_not_compared():
    with pytest.raises(ValueError, match="shorter"):
        compare({"a": taken(1.0), "b": taken(1.0, 2.0)}, ours="a", theirs="b", as_speed=True)


def test_contenders_run_to_and_fro_and_the_warm_up_does_not_count(monkeypatch):
    # A collection takes half a second where all other tests are in memory.
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    order: list[str] = []

    def contender(name):
        def run():
            order.append(name)
            return Taken(wall_s=float(len(order)), cpu_s=0.0)

        return run

    found = run_in_turns({name: contender(name) for name in "abc"}, rounds=2, warm_up=1)

    assert "".join(order) == "cba" + "abc" + "cba"
    assert [run.wall_s for run in found["a"]] == [4.0, 9.0]
    assert [run.wall_s for run in found["c"]] == [6.0, 7.0]


def test_what_is_timed_runs_once():
    calls: list[int] = []
    run = timed(lambda: calls.append(1))
    assert calls == [1]
    assert run.wall_s >= 0


def test_a_table_in_a_log_is_not_cut(capsys):
    show("title", ["", "first", "second"], [["a contender with a name", "1" * 40, "2" * 40]])
    printed = capsys.readouterr().out
    assert "1" * 40 in printed
    assert "2" * 40 in printed


def test_every_measurement_is_written_beside_the_ratios(tmp_path):
    runs = {"ours": taken(1.0, 2.0), "bare": taken(2.0, 2.0)}
    found = compare(runs, ours="ours", theirs="bare", as_speed=True)
    path = tmp_path / "found.json"
    write_json(path, {"case": runs}, {"case": [found]})
    document = json.loads(path.read_text())["case"]
    assert [run["wall_s"] for run in document["taken"]["ours"]] == [1.0, 2.0]
    assert document["ratios"][0]["wall"] == {"smallest": 1.0, "median": 1.5, "largest": 2.0}
