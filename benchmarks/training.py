"""Training speed against the loops of others: `python -m benchmarks.training`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from batchtrain.artifacts import RunLayout
from batchtrain.row_order import RowOrder
from batchtrain.spec.load import parse_spec
from batchtrain.spec.training import TrainingSpec
from batchtrain.storage import open_storage
from batchtrain.training.plan import TrainingPlan, make_plan
from batchtrain.training.tensorboard_log import EventFolder, TensorBoardLog
from benchmarks import exactness, ray_runs
from benchmarks.paired import (
    Comparison,
    Contender,
    Spread,
    Taken,
    compare,
    run_in_turns,
    show,
    timed,
    write_json,
)
from benchmarks.training_loops import (
    NUM_FEATURES,
    SEED,
    BareLoop,
    LoaderLoop,
    OurLoop,
    loss_of,
    made_rows,
)
from benchmarks.training_others import LightningLoop, RayDataLoop, has_lightning, quiet_ray

__all__ = ["CASES", "Case", "main"]

OURS, LOGGED, COMPILED = "ours", "ours + TensorBoard", "ours, compiled"
BARE, LOADER = "bare loop", "DataLoader"
LIGHTNING, RAY_DATA = "Lightning", "Ray's documented pattern"
PAIRS = (
    (OURS, BARE),
    (COMPILED, BARE),
    (OURS, LOADER),
    (OURS, LIGHTNING),
    (OURS, RAY_DATA),
    (LOGGED, OURS),
)
LOG_EVERY_STEPS = 10
MAX_EPOCHS = 10_000


@dataclass(frozen=True)
class Case:
    """One setting of the budget.

    Attributes:
        num_rows: The rows of an epoch.
        batch_rows: The rows of a step.
        goals: By pair, how many times as fast as the second the first is meant to be.
        loops: Those that run; Lightning only where it is installed.
    """

    num_rows: int
    batch_rows: int
    goals: dict[tuple[str, str], str] = field(default_factory=dict)
    loops: tuple[str, ...] = (OURS, LOGGED, COMPILED, BARE, LOADER)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"batch {self.batch_rows}, {self.num_rows:,} rows"

    def plan(self) -> TrainingPlan:
        """The plan of more epochs than there are rounds; each round takes one of them."""
        spec = TrainingSpec(epochs=MAX_EPOCHS, batch_size=self.batch_rows)
        order = RowOrder(self.num_rows, lanes=1, shards_per_lane=1, window_rows=2**20, seed=SEED)
        return make_plan(spec, order)


CASES = (
    Case(
        1_000_000,
        1024,
        {
            (OURS, BARE): "1.15, floor 1.0",
            (COMPILED, BARE): "1.35",
            (OURS, LOADER): "5",
            (OURS, LIGHTNING): "6",
            (OURS, RAY_DATA): "4",
        },
        loops=(OURS, LOGGED, COMPILED, BARE, LOADER, LIGHTNING, RAY_DATA),
    ),
    Case(100_000, 32, {(OURS, BARE): "1.5", (COMPILED, BARE): "3"}),
    Case(10_000_000, 1024, {(OURS, BARE): "1.15, floor 1.0"}, loops=(OURS, BARE)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds that count")
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, for a quick look")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    parser.add_argument("--loops-only", action="store_true", help="no rows from storage, no ranks")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    taken: dict[str, dict[str, list[Taken]]] = {}
    found: dict[str, list[Comparison]] = {}
    for case in CASES:
        smaller = replace(case, num_rows=max(case.batch_rows, int(case.num_rows * asked.share)))
        taken[smaller.name] = measured(smaller, asked.rounds)
        found[smaller.name] = [
            compare(taken[smaller.name], ours=ours, theirs=theirs, as_speed=True)
            for ours, theirs in PAIRS
            if {ours, theirs} <= set(taken[smaller.name])
        ]
        _show_ratios(smaller, taken[smaller.name], found[smaller.name])
    if asked.json:
        write_json(asked.json, taken, found)
    if not asked.loops_only:
        ray_runs.main(["--only", "rows", "ray-rows", "workers"])
        exactness.main(["--only", "checkpoints", "resume"])


def measured(case: Case, rounds: int) -> dict[str, list[Taken]]:
    """Train an epoch a round with every loop, and print how fast each one is."""
    rows, plan = made_rows(case.num_rows), case.plan()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = _new_log(folder)
        stack.callback(log.close, "finished")
        makers: dict[str, Callable[[], Any]] = {
            OURS: lambda: OurLoop(rows, plan),
            LOGGED: lambda: OurLoop(rows, plan, log),
            COMPILED: lambda: OurLoop(rows, plan, compiled=True),
            BARE: lambda: BareLoop(rows, plan),
            LOADER: lambda: LoaderLoop(rows, plan),
            LIGHTNING: lambda: LightningLoop(rows, plan),
            RAY_DATA: lambda: RayDataLoop(rows, plan),
        }
        if RAY_DATA in case.loops:
            stack.enter_context(quiet_ray())
        here = [name for name in case.loops if name != LIGHTNING or has_lightning()]
        loops = {name: makers[name]() for name in here}
        contenders: dict[str, Contender] = dict(loops)
        taken = run_in_turns(contenders, rounds=rounds)
    lines = []
    for name, runs in taken.items():
        wall = Spread.of([run.wall_s for run in runs])
        cpu = Spread.of([run.cpu_s for run in runs])
        lines.append(
            [
                name,
                f"{case.num_rows / wall.median:,.0f}",
                f"{1e6 * wall.median / plan.steps_per_epoch:.0f}",
                f"{1e6 * cpu.median / plan.steps_per_epoch:.0f}",
                f"{1e6 * cpu.smallest / plan.steps_per_epoch:.0f}",
                f"{loss_of(loops[name].layers, rows):.3f}",
            ]
        )
    title = f"{case.name} x {NUM_FEATURES}, MLP 128-64, {rounds} rounds"
    show(title, ["", "rows/s", "us a step", "CPU us", "at best", "loss after"], lines)
    return taken


def _show_ratios(
    case: Case, taken: Mapping[str, Sequence[Taken]], found: Sequence[Comparison]
) -> None:
    plan = case.plan()
    lines = []
    for each in found:
        pairs = zip(taken[each.ours], taken[each.theirs], strict=True)
        more_s = Spread.of([ours.cpu_s - theirs.cpu_s for ours, theirs in pairs]).median
        lines.append(
            [
                f"{each.ours} / {each.theirs}",
                f"{each.wall:.2f}",
                f"{each.cpu:.2f}",
                f"{1e6 * more_s / plan.steps_per_epoch:+.0f}",
                case.goals.get((each.ours, each.theirs), ""),
            ]
        )
    show(
        f"{case.name}: times as fast", ["", "on the clock", "by CPU time", "CPU us", "goal"], lines
    )
    order_s = _order_seconds(plan)
    epoch_s = Spread.of([run.cpu_s for run in taken[OURS]]).median
    print(f"the order of rows: {1e3 * order_s:.1f} ms, {order_s / epoch_s:.1%} of our epoch\n")


def _new_log(folder: Path) -> TensorBoardLog:
    """What `batchtrain train` writes for TensorBoard, of a run that begins."""
    loaded = parse_spec("version: 1\nname: bench\ndata: {source: none.csv, target: y}\n", "bench")
    layout = RunLayout(open_storage(str(folder), Path()), "bench", "0" * 12)
    return TensorBoardLog(
        EventFolder(loaded, layout),
        run=layout.root,
        every_steps=LOG_EVERY_STEPS,
        monitored=(),
        step=0,
        history=(),
    )


def _order_seconds(plan: TrainingPlan) -> float:
    """What the order of one epoch takes."""
    epochs = iter(range(7))

    def one() -> None:
        plan.order.epoch(next(epochs))

    runs = [timed(one) for _ in range(7)]
    return Spread.of([run.cpu_s for run in runs]).median


if __name__ == "__main__":
    main()
