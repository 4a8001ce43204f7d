"""What checkpoints and exactness cost: `python -m benchmarks.exactness`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from batchtrain.points import passed
from batchtrain.row_order import RowOrder
from batchtrain.training import gradients, rows
from batchtrain.training.loop import StepLosses
from batchtrain.training.plan import TrainingPlan
from benchmarks.exactness_loops import (
    LARGE,
    SMALL,
    TINY,
    Effort,
    GoesOn,
    OurTraining,
    Part,
    PlainTraining,
    made_order,
    made_plan,
    shown,
)
from benchmarks.exactness_ranks import measure_canonical, measure_ranks
from benchmarks.exactness_resume import measure_resume
from benchmarks.exactness_saving import measure_checkpoints
from benchmarks.paired import (
    Contender,
    Spread,
    Taken,
    compare,
    run_in_turns,
    show,
    timed,
    write_json,
)
from benchmarks.training_loops import made_rows

__all__ = ["PARTS", "main"]

FULL = Effort(rounds=7, share=1.0, networks=(SMALL, LARGE))
QUICK = Effort(rounds=1, share=0.005, networks=(SMALL, TINY))
CALLS = 2_000

EXACT, AGAIN, PLAIN, RANDPERM = "exact", "exact again", "plain", "torch.randperm"
NO_SEEDS, OTHER_ORDER, NO_KEEPER = "dropout not seeded", "torch.randperm's order", "no keeper"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help="paired rounds that count")
    parser.add_argument("--quick", action="store_true", help="whether it runs, in seconds")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    effort = QUICK if asked.quick else replace(FULL, rounds=asked.rounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts: dict[str, Part] = {}
        for name in asked.only:
            started = time.perf_counter()
            parts |= PARTS[name](effort)
            print(f"{name}: measured in {time.perf_counter() - started:.0f} s\n")
    finally:
        torch.set_num_threads(threads)
    if asked.json:
        taken = {name: part.taken for name, part in parts.items()}
        write_json(asked.json, taken, {name: part.found for name, part in parts.items()})


def measure_loops(effort: Effort) -> dict[str, Part]:
    """Our loop against itself without one thing each, and against the plain loop."""
    parts = {}
    for all_rows, batch_rows, times in ((500_000, 1024, 1), (50_000, 32, 2)):
        num_rows = effort.rows(all_rows, at_least=4 * batch_rows)
        rows, plan = made_rows(num_rows), made_plan(num_rows, batch_rows)
        random = replace(plan, order=RandomOrder(*astuple(plan.order)))
        contenders: dict[str, Contender] = {
            EXACT: OurTraining(rows, plan, SMALL),
            NO_SEEDS: OurTraining(rows, plan, SMALL, within=_dropout_not_seeded),
            OTHER_ORDER: OurTraining(rows, random, SMALL),
            NO_KEEPER: OurTraining(rows, plan, SMALL, keeper=GoesOn()),
            PLAIN: PlainTraining(rows, plan, SMALL),
            AGAIN: OurTraining(rows, plan, SMALL),
        }
        taken = run_in_turns(contenders, rounds=times * effort.rounds)
        others = (AGAIN, NO_SEEDS, OTHER_ORDER, NO_KEEPER, PLAIN)
        found = [compare(taken, ours=EXACT, theirs=each, as_speed=False) for each in others]
        title = f"Exactness: {SMALL.name}, batch {batch_rows}, {num_rows:,} rows, times as long"
        shown(title, taken, found, steps=plan.steps_per_epoch)
        epoch_cpu_s = Spread.of([each.cpu_s for each in taken[EXACT]]).median
        _show_pieces(OurTraining(rows, plan, SMALL), plan, epoch_cpu_s)
        parts[f"exactness, batch {batch_rows}"] = Part(taken, found)
    print(
        "Each contender trains an epoch a round, all from the same weights on the same rows. "
        '"plain" has the same model,\noptimizer, loss and gathered batches as "exact"; the others '
        'are "exact" without one thing. How far "exact again" is\nfrom 1 is what this machine '
        "cannot tell apart today.\n"
    )
    return parts


def measure_orders(effort: Effort) -> dict[str, Part]:
    """The order of an epoch's rows, in one lane and in many, against `torch.randperm`."""
    parts, lines = {}, []
    for all_rows in (1_000_000, 10_000_000):
        num_rows = effort.rows(all_rows, at_least=1000)
        orders: dict[str, Contender] = {
            f"{lanes} lane{'s' * (lanes > 1)}": _Epochs(made_order(num_rows, lanes))
            for lanes in (1, 64)
        }
        contenders = {**orders, RANDPERM: _randperm(num_rows)}
        taken = run_in_turns(contenders, rounds=effort.rounds)
        found = [compare(taken, ours=each, theirs=RANDPERM, as_speed=False) for each in orders]
        for each in found:
            ours, theirs = (
                Spread.of([run.wall_s for run in taken[name]]).median
                for name in (each.ours, RANDPERM)
            )
            name = f"{num_rows:,} rows, {each.ours}"
            milliseconds = (f"{1e3 * seconds:.1f}" for seconds in (ours, theirs))
            lines.append([name, *milliseconds, f"{each.wall:.2f}", f"{each.cpu:.2f}"])
        parts[f"order of {num_rows} rows"] = Part(taken, found)
    columns = ["", "ms an epoch", "randperm, ms", "times as long", "by CPU time"]
    show("The order of rows against torch.randperm, once an epoch", columns, lines)
    return parts


PARTS: dict[str, Callable[[Effort], dict[str, Part]]] = {
    "checkpoints": measure_checkpoints,
    "loops": measure_loops,
    "canonical": measure_canonical,
    "ranks": measure_ranks,
    "resume": measure_resume,
    "order": measure_orders,
}


@dataclass(frozen=True)
class RandomOrder(RowOrder):
    """Rows of one lane in an order that nobody can repeat."""

    def lane_rows(self, epoch: int, lane: int) -> npt.NDArray[np.int64]:
        """See `RowOrder.lane_rows`."""
        return torch.randperm(self.num_rows).numpy()


class _Epochs:
    """The order of one epoch after another."""

    def __init__(self, order: RowOrder) -> None:
        self._order = order
        self._epoch = 0

    def __call__(self) -> Taken:
        self._epoch += 1
        return timed(lambda: self._order.epoch(self._epoch))


def _randperm(num_rows: int) -> Contender:
    return lambda: timed(lambda: torch.randperm(num_rows))


def _dropout_not_seeded() -> AbstractContextManager[object]:
    def nothing(_seed: int, _device: torch.device) -> None: ...

    return mock.patch.object(gradients, "seed_dropout", nothing)


def _show_pieces(training: OurTraining, plan: TrainingPlan, epoch_cpu_s: float) -> None:
    """What is done for exactness alone, beside an epoch of so much CPU time."""
    step_us = 1e6 * epoch_cpu_s / plan.steps_per_epoch
    pieces = _pieces_us(training, plan)
    pieces["all of these"] = sum(pieces.values())
    lines = [[name, f"{us:.1f}", f"{us / step_us:.1%}"] for name, us in pieces.items()]
    show("The pieces, each timed inside the loop", ["", "CPU us a step", "of a step"], lines)
    randperm_s = Spread.of([_randperm(plan.order.num_rows)().cpu_s for _ in range(7)]).median
    print(f"torch.randperm would take {1e6 * randperm_s / plan.steps_per_epoch:.1f} us a step\n")


def _pieces_us(training: OurTraining, plan: TrainingPlan) -> dict[str, float]:
    """What each piece takes of a step, in CPU microseconds, while the loop runs for an epoch."""
    watched: dict[str, tuple[object, str]] = {
        "the order of rows": (rows, "rank_rows"),
        "seeding dropout": (gradients, "seed_dropout"),
        "the keeper": (training.keeper, "goes_on"),
        "losses for the history": (StepLosses, "add"),
    }
    watches = {name: _Watch() for name in watched}
    with ExitStack() as stack:
        for name, (owner, attribute) in watched.items():
            around = watches[name].around(getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, around))
        training()
    found = {name: watch.cpu_us / plan.steps_per_epoch for name, watch in watches.items()}
    return {**found, "five named points, alone": _five_points_us()}


def _five_points_us() -> float:
    def points() -> None:
        for _ in range(5 * CALLS):
            passed("step.rows")

    return 1e6 * Spread.of([timed(points).cpu_s for _ in range(7)]).median / CALLS


class _Watch:
    """Adds up the CPU time of the calls of a function, without that of reading the clock.

    Attributes:
        cpu_us: Microseconds so far.
    """

    def __init__(self) -> None:
        self.cpu_us = 0.0
        self._clock_us = min(-_now_us() + _now_us() for _ in range(CALLS))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched."""

        def call(*args: Any, **options: Any) -> Any:
            began = _now_us()
            result = function(*args, **options)
            self.cpu_us += _now_us() - began - self._clock_us
            return result

        return call


def _now_us() -> float:
    return time.thread_time_ns() / 1e3


if __name__ == "__main__":
    main()
