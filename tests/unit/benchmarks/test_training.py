"""The benchmark of training runs, and what it compares learns the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.training import CASES, COMPILED, LOGGED, OURS, main
from benchmarks.training_loops import OurLoop, loss_of, made_rows


@pytest.mark.slow
@pytest.mark.long
def test_a_quick_run_prints_its_tables_and_writes_every_measurement(capsys, tmp_path, monkeypatch):
    # A collection takes half a second where all other tests are in memory.
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    path = tmp_path / "found.json"
    threads = torch.get_num_threads()

    main(["--rounds", "1", "--share", "0.0001", "--json", str(path)])

    shown = capsys.readouterr().out
    for case in CASES:
        assert f"{case.name}: times as fast" in shown
    cases = json.loads(path.read_text())
    assert set(cases) == {case.name for case in CASES}
    assert all({OURS, LOGGED, COMPILED} < set(case["taken"]) for case in cases.values())
    assert torch.get_num_threads() == threads


@pytest.mark.slow
@pytest.mark.long
def test_compiled_and_plain_loops_learn_the_same():
    case = replace(CASES[1], num_rows=512)
    rows, plan = made_rows(case.num_rows), case.plan()
    losses = []
    for compiled in (False, True):
        loop = OurLoop(rows, plan, compiled=compiled)
        loop()
        losses.append(loss_of(loop.layers, rows))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
