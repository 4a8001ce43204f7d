"""Training speed against the bare loop and against the DataLoader: `python -m benchmarks.training`.

Shapes: N rows, F features, B rows of a batch, K classes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import make_loss
from batchtrain.models.optim import build_optimizer, build_schedule
from batchtrain.row_order import epoch_order
from batchtrain.spec.model import MlpModel
from batchtrain.spec.training import Adam, TrainingSpec
from batchtrain.training.loop import train_until_done
from batchtrain.training.plan import TrainingPlan, make_plan
from batchtrain.training.state import TrainState
from batchtrain.training.tracking import TensorBoardLog
from batchtrain.training.worker import LocalWorker
from benchmarks.paired import (
    Comparison,
    Contender,
    Spread,
    compare,
    run_in_turns,
    show,
    write_json,
)

__all__ = ["CASES", "BareLoop", "Case", "LoaderLoop", "OurLoop", "main", "made_rows"]

FEATURES = 32
CLASSES = 2
SEED = 7
MODEL = MlpModel(kind="mlp", hidden=(128, 64), dropout=0.0)
INPUTS = ModelInputs(num_numeric=FEATURES, cardinalities=(), num_outputs=CLASSES)
OPTIMIZER = Adam(kind="adam", lr=1e-3)

OURS, LOGGED, BARE, LOADER = "ours", "ours + TensorBoard", "bare loop", "DataLoader"


@dataclass(frozen=True)
class Case:
    """One setting of the budget.

    Attributes:
        name: What the tables call it.
        num_rows: N.
        batch_rows: B.
        goals: Per opponent, what `DESIGN.md` asks for.
    """

    name: str
    num_rows: int
    batch_rows: int
    goals: dict[str, str] = field(default_factory=dict)


CASES = (
    Case("batch 1024", 1_000_000, 1024, {BARE: "1.15, floor 1.0", LOADER: "5"}),
    Case("batch 32", 100_000, 32, {BARE: "1.5"}),
)


def made_rows(num_rows: int) -> SplitRows:
    """Rows whose class a network of this size can learn in part."""
    generator = np.random.Generator(np.random.Philox(SEED))
    numeric = generator.standard_normal((num_rows, FEATURES), dtype=np.float32)
    hidden = np.tanh(numeric @ generator.standard_normal((FEATURES, 8), dtype=np.float32))
    noise = generator.standard_normal(num_rows, dtype=np.float32)
    return SplitRows(
        numeric=numeric,
        codes=np.empty((num_rows, 0), dtype=np.int64),
        target=(hidden.sum(axis=1) + noise > 0).astype(np.int64),
        row_id=np.arange(num_rows, dtype=np.int64),
    )


class OurLoop:
    """The loop that `batchtrain train` runs, one epoch a call."""

    def __init__(
        self, model: nn.Module, rows: SplitRows, case: Case, log: TensorBoardLog | None = None
    ) -> None:
        self.model = model
        self._log = log
        self._plan = _plan(case)
        self._worker = LocalWorker(self._plan, {"train": rows}, torch.device("cpu"))
        optimizer = build_optimizer(OPTIMIZER, model.parameters(), fused=True)
        schedule = build_schedule(None, optimizer, 1)
        self._state = TrainState(model, optimizer, schedule, early_stop=None)
        self._loss = make_loss("cross_entropy")

    def __call__(self) -> float:
        """Train one more epoch; see `Contender`."""
        plan = replace(self._plan, epochs=self._state.epoch + 1)
        started = time.perf_counter()
        train_until_done(self._state, self._worker, plan, self._loss, self, measured=())
        return time.perf_counter() - started

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        if self._log is not None:
            self._log.steps(first_step, losses)

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        if self._log is not None:
            self._log.epoch(record, ())


class BareLoop:
    """As few lines as training can have: tensors, a permuted index, Adam as it comes."""

    def __init__(self, model: nn.Sequential, rows: SplitRows, case: Case) -> None:
        self.model = model
        self._batch_rows = case.batch_rows
        self._features_NF = torch.from_numpy(rows.numeric)
        self._target_N = torch.from_numpy(rows.target)
        self._optimizer = torch.optim.Adam(model.parameters(), lr=OPTIMIZER.lr)
        self._loss = nn.CrossEntropyLoss()

    def __call__(self) -> float:
        """Train one more epoch; see `Contender`."""
        started = time.perf_counter()
        order_N = torch.randperm(len(self._target_N))
        for start in range(0, len(order_N), self._batch_rows):
            index_B = order_N[start : start + self._batch_rows]
            self._optimizer.zero_grad()
            outputs_BK = self.model(self._features_NF[index_B])
            self._loss(outputs_BK, self._target_N[index_B]).backward()
            self._optimizer.step()
        return time.perf_counter() - started


class LoaderLoop:
    """The loop of the tutorials: a shuffling DataLoader over a TensorDataset."""

    def __init__(self, model: nn.Sequential, rows: SplitRows, case: Case) -> None:
        self.model = model
        dataset = TensorDataset(torch.from_numpy(rows.numeric), torch.from_numpy(rows.target))
        self._loader = DataLoader(dataset, batch_size=case.batch_rows, shuffle=True)
        self._optimizer = torch.optim.Adam(model.parameters(), lr=OPTIMIZER.lr)
        self._loss = nn.CrossEntropyLoss()

    def __call__(self) -> float:
        """Train one more epoch; see `Contender`."""
        started = time.perf_counter()
        for features_BF, target_B in self._loader:
            self._optimizer.zero_grad()
            self._loss(self.model(features_BF), target_B).backward()
            self._optimizer.step()
        return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds that count")
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, for a quick look")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: list[Comparison] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    for case in CASES:
        smaller = replace(case, num_rows=max(case.batch_rows, int(case.num_rows * asked.share)))
        seconds[case.name], compared = _measure(smaller, asked.rounds)
        found += compared
    if asked.json:
        write_json(asked.json, seconds, found)


def _measure(case: Case, rounds: int) -> tuple[dict[str, list[float]], list[Comparison]]:
    rows = made_rows(case.num_rows)
    started_as = build_model(MODEL, INPUTS, seed=SEED)
    plan = _plan(case)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = TensorBoardLog(Path(folder), every_steps=10, purge_step=None)
        stack.callback(log.close)
        loops = {
            OURS: OurLoop(copy.deepcopy(started_as), rows, case),
            LOGGED: OurLoop(copy.deepcopy(started_as), rows, case, log),
            # The bare model is the network alone, without the module that knows of categories.
            BARE: BareLoop(_layers(copy.deepcopy(started_as)), rows, case),
            LOADER: LoaderLoop(_layers(copy.deepcopy(started_as)), rows, case),
        }
        contenders: dict[str, Contender] = dict(loops)
        seconds = run_in_turns(contenders, rounds=rounds)
    after = {name: _loss_of(loop.model, rows) for name, loop in loops.items()}
    title = f"{case.name}: {plan.num_rows:,} rows x {FEATURES}, MLP 128-64, {rounds} rounds"
    _show_speed(title, case, plan, seconds, after)
    found = [
        compare(seconds, ours=ours, theirs=theirs, speed=True)
        for ours, theirs in ((OURS, BARE), (OURS, LOADER), (LOGGED, BARE), (LOGGED, OURS))
    ]
    _show_ratios(case, plan, seconds, found)
    return seconds, found


def _show_speed(
    title: str,
    case: Case,
    plan: TrainingPlan,
    seconds: dict[str, list[float]],
    after: dict[str, float],
) -> None:
    lines = []
    for name, taken in seconds.items():
        spread = Spread.of(taken)
        lines.append(
            [
                name,
                f"{case.num_rows / spread.median:,.0f}",
                f"{spread:.3f}",
                f"{1e6 * spread.median / plan.steps_per_epoch:.1f}",
                f"{after[name]:.4f}",
            ]
        )
    show(title, ["", "rows/s", "s an epoch", "us a step", "loss after"], lines)


def _show_ratios(
    case: Case, plan: TrainingPlan, seconds: dict[str, list[float]], found: Sequence[Comparison]
) -> None:
    lines = []
    for each in found:
        pairs = zip(seconds[each.ours], seconds[each.theirs], strict=True)
        extra = [1e6 * (ours - theirs) / plan.steps_per_epoch for ours, theirs in pairs]
        goal = case.goals.get(each.theirs, "") if each.ours == OURS else ""
        lines.append(
            [f"{each.ours} over {each.theirs}", f"{each.ratio:.2f}", goal, f"{Spread.of(extra):+.1f}"]
        )
    show(f"{case.name}: times as fast", ["", "ratio", "goal", "us a step more"], lines)
    epoch_s, order_s = Spread.of(seconds[OURS]).median, _order_seconds(plan)
    print(f"the order of rows: {1e3 * order_s:.1f} ms, {order_s / epoch_s:.1%} of our epoch\n")


def _plan(case: Case) -> TrainingPlan:
    spec = TrainingSpec(epochs=1, batch_size=case.batch_rows)
    return make_plan(spec, num_rows=case.num_rows, seed=SEED, lanes=1)


def _layers(model: nn.Module) -> nn.Sequential:
    layers = model.layers
    if not isinstance(layers, nn.Sequential):
        raise TypeError(f"expected the layers of an MLP, found {layers!r}. Adapt this benchmark")
    return layers


def _order_seconds(plan: TrainingPlan) -> float:
    """The median time of one epoch's order."""
    taken = []
    for epoch in range(7):
        started = time.perf_counter()
        epoch_order(plan.num_rows, lanes=plan.lanes, seed=plan.seed, epoch=epoch)
        taken.append(time.perf_counter() - started)
    return Spread.of(taken).median


@torch.no_grad()
def _loss_of(model: nn.Module, rows: SplitRows) -> float:
    """The mean loss over all rows: shows that every contender learnt the same."""
    features_NF = torch.from_numpy(rows.numeric)
    is_bare = isinstance(model, nn.Sequential)
    inputs: tuple[Tensor, ...] = (features_NF,)
    outputs_NK = model(*inputs if is_bare else (features_NF, torch.from_numpy(rows.codes)))
    return float(nn.functional.cross_entropy(outputs_NK, torch.from_numpy(rows.target)))


if __name__ == "__main__":
    main()
