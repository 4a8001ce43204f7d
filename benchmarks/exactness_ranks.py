"""What exactness costs several ranks: two gloo ranks in processes of their own.

Two ranks want two cores. What they take is the time of the slower one, and the CPU time of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchtrain import points
from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.losses import make_loss
from batchtrain.testing.child import Report, listen_too
from batchtrain.testing.gloo import run_gloo
from batchtrain.training.ddp import exact_ddp
from batchtrain.training.keeping import LOOK_SECONDS
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import GlooRanks
from batchtrain.training.worker import ResidentSplit
from benchmarks.exactness_loops import (
    SMALL,
    Effort,
    GoesOn,
    Network,
    OurTraining,
    Part,
    PlainTraining,
    made_plan,
    shown,
)
from benchmarks.paired import Contender, Spread, Taken, compare, run_in_turns, show, timed
from benchmarks.training_loops import made_rows

__all__ = ["measure_canonical", "measure_ranks"]

NUM_ROWS = 262_144
BATCHES = (1024, 8192)
STARTS = 9

EXACT, NO_LOOKS, CANONICAL, PLAIN = "exact", "no looks", "canonical", "plain DDP"
PAIRS = ((EXACT, PLAIN), (EXACT, NO_LOOKS), (CANONICAL, EXACT))
ORDER = "order"
DDP, EXACT_DDP = "DDP", "exact_ddp"
LOOKS = "looks"
NUM_LOOKS = 100


def measure_canonical(effort: Effort) -> dict[str, Part]:
    """`determinism: canonical` against `order` with one rank."""
    parts = {}
    num_rows = effort.rows(NUM_ROWS, at_least=max(BATCHES))
    rows = made_rows(num_rows)
    for batch_rows in BATCHES:
        plan = made_plan(num_rows, batch_rows)
        contenders: dict[str, Contender] = {
            ORDER: OurTraining(rows, plan, SMALL),
            CANONICAL: OurTraining(rows, plan, SMALL, determinism="canonical"),
        }
        taken = run_in_turns(contenders, rounds=effort.rounds)
        found = [compare(taken, ours=CANONICAL, theirs=ORDER, as_speed=False)]
        title = f"One rank: {SMALL.name}, batch {batch_rows}, {num_rows:,} rows, times as long"
        shown(title, taken, found, steps=plan.steps_per_epoch)
        parts[f"one rank, batch {batch_rows}"] = Part(taken, found)
    return parts


def measure_ranks(effort: Effort) -> dict[str, Part]:
    """Our loop on two ranks against plain DDP, and the start of both."""
    num_rows = effort.rows(NUM_ROWS, at_least=max(BATCHES))
    measured = partial(_measured_in_a_rank, effort=effort, num_rows=num_rows)
    documents: Mapping[str, Any] = run_gloo(measured, size=2)[0]
    parts = {}
    for case, contenders in documents.items():
        taken = {name: [Taken(**each) for each in runs] for name, runs in contenders.items()}
        pairs = [pair for pair in (*PAIRS, (EXACT_DDP, DDP)) if set(pair) <= set(taken)]
        found = [compare(taken, ours=ours, theirs=theirs, as_speed=False) for ours, theirs in pairs]
        parts[f"two ranks, {case}"] = Part(taken, found)
    for batch_rows in BATCHES:
        part = parts[f"two ranks, {_case(batch_rows)}"]
        title = f"Two ranks: {SMALL.name}, batch {batch_rows}, {num_rows:,} rows, times as long"
        steps = made_plan(num_rows, batch_rows).steps_per_epoch
        shown(title, part.taken, part.found, steps=steps)
    _show_looks(parts[f"two ranks, {LOOKS}"].taken[LOOKS])
    _show_starts({name: parts[f"two ranks, start of {name.name}"] for name in effort.networks})
    print(
        "Two processes joined by gloo, one thread each; a turn takes as long as the slower one. "
        '"exact" is the loop of a run,\n"plain DDP" the plain loop in torch\'s own, with the same '
        "optimizer. Where other processes have the cores, ranks wait for\neach other: believe a "
        "quiet machine only.\n"
    )
    return parts


def _case(batch_rows: int) -> str:
    return f"batch {batch_rows}"


def _measured_in_a_rank(
    ranks: GlooRanks, report: Report, *, effort: Effort, num_rows: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Everything, in the process of one rank; all ranks return the same."""
    torch.set_num_threads(1)
    # The supervisor counts points, a run without it has no listener; a report counts as well.
    points.listen(None)
    rows = made_rows(num_rows)
    cases: dict[str, dict[str, Contender]] = {
        f"start of {network.name}": _starts(network, rows) for network in effort.networks
    }
    cases[LOOKS] = {LOOKS: partial(_looks, ranks)}
    for batch_rows in BATCHES:
        cases[_case(batch_rows)] = _loops(rows, made_plan(num_rows, batch_rows), ranks)
    found = {}
    for case, contenders in cases.items():
        together = {
            name: partial(_together, contender, ranks, report)
            for name, contender in contenders.items()
        }
        is_short = case.startswith("start") or case == LOOKS
        rounds = STARTS if is_short and effort.rounds > 1 else effort.rounds
        taken = run_in_turns(together, rounds=rounds)
        found[case] = {name: [asdict(each) for each in runs] for name, runs in taken.items()}
    listen_too(None)
    return found


def _together(contender: Contender, ranks: GlooRanks, report: Report) -> Taken:
    """Run a contender on all ranks at once: the time of the slowest, the CPU time of all."""
    report({})
    ranks.gather("here")
    mine = contender()
    everyone = [Taken(**each) for each in ranks.gather(asdict(mine))]
    return Taken(max(each.wall_s for each in everyone), sum(each.cpu_s for each in everyone))


def _loops(rows: SplitRows, plan: TrainingPlan, ranks: GlooRanks) -> dict[str, Contender]:
    return {
        EXACT: OurTraining(rows, plan, SMALL, ranks=ranks),
        NO_LOOKS: OurTraining(rows, plan, SMALL, ranks=ranks, keeper=GoesOn()),
        CANONICAL: OurTraining(rows, plan, SMALL, ranks=ranks, determinism="canonical"),
        PLAIN: PlainTraining(rows, plan, SMALL, ranks=ranks, wrap=_plain_ddp),
    }


def _plain_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _starts(network: Network, rows: SplitRows) -> dict[str, Contender]:
    """Wrap a model and take the first two backwards, in which plain DDP sorts its buckets."""
    loss = make_loss("cross_entropy")
    split = ResidentSplit.of(rows[:1], torch.device("cpu"))
    batch = split.weightless_row()

    def backward(model: nn.Module) -> None:
        loss(model(batch.numeric_BF, batch.codes_BC), batch, 1.0).backward()

    def start(wrap: Any) -> Taken:
        model = network.build()
        return timed(lambda: wrap(model))

    return {
        DDP: partial(start, _plain_ddp),
        EXACT_DDP: partial(start, partial(exact_ddp, backward=backward)),
    }


def _looks(ranks: GlooRanks) -> Taken:
    """What the ranks say to each other at so many looks."""

    def looks() -> None:
        for step in range(NUM_LOOKS):
            ranks.gather({"stop": 0, "save": 0, "look_at": step})

    return timed(looks)


def _show_looks(runs: Sequence[Taken]) -> None:
    each_us = Spread.of([1e6 * run.wall_s / NUM_LOOKS for run in runs])
    share = each_us.median / 1e6 / LOOK_SECONDS
    print(f"A look of two ranks takes {each_us:.0f} us: {share:.2%}, at one in {LOOK_SECONDS} s\n")


def _show_starts(parts: Mapping[Network, Part]) -> None:
    lines = []
    for network, part in parts.items():
        pairs = zip(part.taken[EXACT_DDP], part.taken[DDP], strict=True)
        more = Spread.of([1e3 * (exact.wall_s - plain.wall_s) for exact, plain in pairs])
        walls = [
            Spread.of([1e3 * run.wall_s for run in part.taken[name]]).median
            for name in (DDP, EXACT_DDP)
        ]
        lines.append([network.name, *[f"{wall:.1f}" for wall in walls], f"{more:+.1f}"])
    show("Two ranks: ms to wrap a model", ["", DDP, EXACT_DDP, "more"], lines)
