"""The benchmark of exactness runs, and what it compares differs in one thing only."""

from __future__ import annotations

import json
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from benchmarks.exactness import PARTS, RandomOrder, main
from benchmarks.exactness_loops import SMALL, GoesOn, OurTraining, PlainTraining, made_plan
from benchmarks.training_loops import made_rows

SHOWN = {
    "checkpoints": "Checkpoints against none: MLP 128-64",
    "loops": "Exactness: MLP 128-64, batch 32",
    "canonical": "One rank: MLP 128-64, batch 8192",
    "ranks": "Two ranks: MLP 128-64, batch 1024",
    "resume": "Resume: ms",
    "order": "The order of rows",
}


@pytest.fixture(scope="module")
def rows():
    return made_rows(256)


@pytest.fixture(scope="module")
def plan():
    return made_plan(256, 32)


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=[pytest.mark.long] * (part == "ranks")) for part in PARTS],
)
def test_a_quick_run_prints_its_tables_and_writes_every_measurement(
    part, capsys, tmp_path, monkeypatch
):
    # A collection takes half a second where all other tests are in memory.
    monkeypatch.setattr("benchmarks.paired.gc.collect", lambda: 0)
    path = tmp_path / "found.json"
    threads = torch.get_num_threads()

    main(["--quick", "--only", part, "--json", str(path)])

    assert SHOWN[part] in capsys.readouterr().out
    cases = json.loads(path.read_text())
    assert cases
    assert all(runs for case in cases.values() for runs in case["taken"].values())
    assert any(case["ratios"] for case in cases.values())
    assert torch.get_num_threads() == threads


def test_the_keeper_is_no_part_of_the_result(rows, plan):
    kept, free = (OurTraining(rows, plan, SMALL, keeper=keeper) for keeper in (None, GoesOn()))
    for training in (kept, free):
        training.train(epochs=2)
    assert kept.state.step == 2 * plan.steps_per_epoch
    assert kept.state.snapshot().sha256() == free.state.snapshot().sha256()


def test_a_turn_goes_on_where_the_one_before_ended(rows, plan):
    in_turns, at_once = (OurTraining(rows, plan, SMALL) for _ in range(2))
    in_turns()
    in_turns()
    at_once.train(epochs=2)
    assert in_turns.state.snapshot().sha256() == at_once.state.snapshot().sha256()


def test_the_plain_loop_learns_as_ours_does(rows, plan):
    ours, plain = OurTraining(rows, plan, SMALL), PlainTraining(rows, plan, SMALL)
    ours.train(epochs=8)
    losses = []
    for _ in range(8):
        plain()
        losses.append(plain.loss)
    found = [record["train_loss"] for record in ours.state.history[1:]]
    assert losses == pytest.approx(found, rel=0.1)
    assert losses[-1] < 0.9 * losses[0]


def test_the_other_order_serves_every_row_once(plan):
    order = RandomOrder(*astuple(replace(plan.order, num_rows=1000)))
    first, second = order.epoch(0), order.epoch(0)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert not np.array_equal(first, second)
