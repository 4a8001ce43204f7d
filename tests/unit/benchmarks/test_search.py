"""The benchmark of searches: what needs no Ray runs, and its arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import search, search_child, search_packing
from benchmarks.search import LONG, LONGER, PARTS, Search, main
from benchmarks.search_child import BARE, HERE, PACKED, WAYS
from benchmarks.search_packing import CASES, GPU_CASES, Case, chosen_size, measure_packing


def test_rates_are_compared_round_by_round_whatever_the_number_of_trials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The bare one has fewer trials; its seconds are scaled by them."""
    order: list[str] = []

    def run(words: list[str]) -> str:
        way, trials = words[2], int(words[3])
        seconds = 0.1 * trials if way == PACKED else 5.0 * trials
        order.append(way)
        # The machine is twice as slow in the second round.
        return json.dumps({"seconds": seconds * (1 + (len(order) > 6)), "trials": trials})

    monkeypatch.setattr(search, "_run", run)
    path = tmp_path / "found.json"
    main(["--only", "warm", "--rounds", "2", "--trials", "64", "--json", str(path)])
    shown = capsys.readouterr().out
    assert "50.0 (50.0 to 50.0)" in shown
    assert "load" in shown
    taken = json.loads(path.read_text())["warm"]
    assert list(taken) == [*WAYS, LONG]
    assert {name: runs[0]["trials"] for name, runs in taken.items()} == {
        **dict.fromkeys(WAYS, 64),
        BARE: 16,
        LONG: 64 * LONGER,
    }
    assert [Search(**each).rate for each in taken[PACKED]] == [600.0, 300.0]
    assert order[:6] == order[:5:-1]


def test_a_cold_command_is_the_one_that_people_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, dict[str, object]] = {}

    def run(words: list[str]) -> str:
        if "tune" in words:
            spec = yaml.safe_load(Path(words[3]).read_text())
            seen["/".join(words[5:])] = spec["search"]
        else:
            assert Path(words[1]).read_text().startswith('"Age","Sex"')
            seen[BARE] = {"trials": int(words[2])}
        return ""

    monkeypatch.setattr(search, "_run", run)
    main(["--only", "cold", "--rounds", "1", "--trials", "4", "--bare-trials", "2"])
    assert len(seen) == len(WAYS)
    assert [each["trials"] for each in seen.values()] == [2, 4, 4, 4, 4]
    assert "--set/engine=ray/--set/search.pack=1" in seen
    assert "whole commands" in capsys.readouterr().out


@pytest.mark.parametrize("way", [HERE, PACKED])
def test_a_search_in_this_process_is_timed_and_finds_the_same(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(search_child, "WARM_TRIALS", 1)
    threads = torch.get_num_threads()
    try:
        found = search_child.timed(way, 3, 1, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found["trials"] == 3
    assert found["seconds"] > 0
    # Alone or packed, it is the same search.
    assert found["loss"] == pytest.approx(1.1546, abs=0.001)


def test_packs_are_compared_with_a_trial_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    monkeypatch.setattr(search_packing, "LEAST_SECONDS", 0.0)
    case = Case((4,), 8, sizes=(2, 3))
    found = measure_packing([case], rounds=1, steps=2)
    assert list(found) == ["4, batch 8"]
    assert found["4, batch 8"]["ratios"].keys() == {2, 3}
    assert all(each["smallest"] > 0 for each in found["4, batch 8"]["ratios"].values())
    assert found["4, batch 8"]["auto"] == chosen_size(case) > 1
    assert "packs of 3" in capsys.readouterr().out
    assert chosen_size(CASES[-1]) == 1
    assert [each.name for each in GPU_CASES] == [each.name for each in CASES]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(search_packing, "measure_packing", lambda *_args, **_options: {})
    threads = torch.get_num_threads()
    try:
        main(["--only", "crossover", "--gpu"])
    finally:
        torch.set_num_threads(threads)
    assert "no GPU here" in capsys.readouterr().out
    assert set(PARTS) == {"warm", "cold", "crossover"}
