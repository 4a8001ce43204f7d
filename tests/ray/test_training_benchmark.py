"""The benchmark of training runs, and what it compares learns the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.training import CASES, LIGHTNING, main
from benchmarks.training_loops import OurLoop, loss_of, made_rows

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_a_quick_run_prints_its_tables_and_writes_every_measurement(
    capsys, tmp_path, monkeypatch, ray_session
):
    ray_session.connect()
    # A collection takes half a second where all other tests are in memory.
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    path = tmp_path / "found.json"
    threads = torch.get_num_threads()

    main(["--rounds", "1", "--share", "0.001", "--loops-only", "--json", str(path)])

    shown = capsys.readouterr().out
    assert shown.count(": times as fast") == len(CASES)
    taken = [case["taken"] for case in json.loads(path.read_text()).values()]
    assert [set(found) - {LIGHTNING} for found in taken] == [
        set(case.loops) - {LIGHTNING} for case in CASES
    ]
    assert all(runs for found in taken for runs in found.values())
    assert torch.get_num_threads() == threads


def test_compiled_and_plain_loops_learn_the_same():
    case = replace(CASES[1], num_rows=512)
    rows, plan = made_rows(case.num_rows), case.plan()
    losses = []
    for compiled in (False, True):
        loop = OurLoop(rows, plan, compiled=compiled)
        loop()
        losses.append(loss_of(loop.layers, rows))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
