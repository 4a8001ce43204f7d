"""Two workers of Ray on two cores against one on one core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.training.ranks import OneRank, Ranks
from benchmarks.exactness_loops import SMALL, OurTraining, made_plan
from benchmarks.paired import Contender, Spread, Taken, compare, run_in_turns, show, timed
from benchmarks.ray_effort import Effort, Found, found_of
from benchmarks.ray_workers import ray_here, run_in_workers
from benchmarks.training_loops import made_rows

__all__ = ["measure_workers"]

NUM_ROWS = 524_288
GOALS = {1024: "", 8192: "1.3"}
ROUNDS = 7

ONE, TWO, APART = "one worker", "two workers", "two, no exchange"
EXCHANGE = "exchange alone"


def measure_workers(effort: Effort) -> Found:
    """Rows per second from inside the loop, at a small and a large batch."""
    num_rows = max(effort.rows(NUM_ROWS), 2 * max(GOALS))
    rounds = 1 if effort.is_quick else ROUNDS
    with ray_here(2):
        documents = run_in_workers(partial(_measured, num_rows=num_rows, rounds=rounds), 2)
    taken_of_all, ratios_of_all, lines, notes = {}, {}, [], []
    for batch_rows, goal in GOALS.items():
        document = documents[str(batch_rows)]
        taken = {name: [Taken(**run) for run in runs] for name, runs in document.items()}
        found = [compare(taken, ours=each, theirs=ONE, as_speed=True) for each in (TWO, APART)]
        case = f"batch {batch_rows}"
        for each in found:
            speeds = [num_rows / _median_s(taken[name]) for name in (each.ours, ONE)]
            lines.append(
                [
                    f"{case}: {each.ours} / {ONE}",
                    f"{each.wall:.2f}",
                    *[f"{speed:,.0f}" for speed in speeds],
                    goal if each.ours == TWO else "",
                ]
            )
        steps = made_plan(num_rows, batch_rows).steps_per_epoch
        us = {name: f"{1e6 * _median_s(runs) / steps:,.0f}" for name, runs in taken.items()}
        notes.append(f"{case}: {us[EXCHANGE]} of {us[TWO]} us, one worker {us[ONE]} us")
        part = found_of(taken, found)
        taken_of_all |= {f"{case}: {name}": runs for name, runs in part.taken.items()}
        ratios_of_all |= {f"{case}: {name}": spread for name, spread in part.ratios.items()}
    title = f"Two Ray workers on two cores, gloo: {SMALL.name}, {num_rows:,} rows, times as fast"
    show(title, ["", "on the clock", "rows/s", "rows/s of one", "goal"], lines)
    print(
        "A turn is an epoch, and all turns are taken in the same two workers; while one trains "
        'alone, the other waits. "no\nexchange": each trains on its own rows in batches of half '
        "the size and hears nothing of the other, which is the most\nthat two can do on this "
        "machine today.\n"
        f"The exchange of gradients alone, of a step of two workers. {'; '.join(notes)}\n"
    )
    return Found(taken_of_all, ratios_of_all)


def _measured(
    ranks: Ranks, *, num_rows: int, rounds: int
) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Both batches, on one rank; all ranks return the same."""
    rows = made_rows(num_rows)
    found = {}
    for batch_rows in GOALS:
        together = {
            name: partial(_together, contender, ranks)
            for name, contender in _contenders(rows, batch_rows, ranks).items()
        }
        taken = run_in_turns(together, rounds=rounds)
        found[batch_rows] = {name: [asdict(run) for run in runs] for name, runs in taken.items()}
    return found


def _contenders(rows: SplitRows, batch_rows: int, ranks: Ranks) -> dict[str, Contender]:
    num_rows = len(rows)
    plan = made_plan(num_rows, batch_rows)
    one = OurTraining(rows, plan, SMALL, ranks=OneRank())
    half = num_rows // ranks.size
    own = rows[slice(ranks.rank * half, (ranks.rank + 1) * half)]
    apart = made_plan(half, batch_rows // ranks.size)
    return {
        ONE: one if ranks.rank == 0 else _waits,
        TWO: OurTraining(rows, plan, SMALL, ranks=ranks),
        APART: OurTraining(own, apart, SMALL, ranks=OneRank()),
        EXCHANGE: partial(timed, partial(_exchange, plan.steps_per_epoch)),
    }


def _exchange(steps: int) -> None:
    """Sum as many numbers as there are gradients, once for each step."""
    num_gradients = sum(parameter.numel() for parameter in SMALL.build().parameters())
    gradients = torch.zeros(num_gradients)
    for _ in range(steps):
        dist.all_reduce(gradients)


def _median_s(runs: Sequence[Taken]) -> float:
    return Spread.of([run.wall_s for run in runs]).median


def _waits() -> Taken:
    return Taken(0.0, 0.0)


def _together(contender: Callable[[], Taken], ranks: Ranks) -> Taken:
    """Run a contender on all ranks at once: the time of the slowest, the CPU time of all."""
    ranks.gather("here")
    mine = contender()
    everyone: list[dict[str, Any]] = ranks.gather(asdict(mine))
    each = [Taken(**run) for run in everyone]
    return Taken(max(run.wall_s for run in each), sum(run.cpu_s for run in each))
