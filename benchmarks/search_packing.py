"""Where it pays to train trials together: a step and trial alone over one in a pack.

Shapes: S steps of an epoch, B rows of a step.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.models.build import build_model
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.spec.model import MlpModel
from batchtrain.spec.training import CheckpointSpec
from batchtrain.storage import open_storage
from batchtrain.training.facts import TrainingFacts
from batchtrain.training.gradients import GradientRules
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.loop import train_until_done
from batchtrain.training.packed.rules import auto_pack_size, num_parameters
from batchtrain.training.packed.training import PackedTraining
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import TrainState
from batchtrain.training.worker import ResidentWorker
from batchtrain.tuning.held import HeldShards, held_rows
from benchmarks.paired import Clock, Contender, Spread, Taken, run_in_turns, show, timed
from benchmarks.training_loops import NowhereToSave

__all__ = ["CASES", "GPU_CASES", "Case", "chosen_size", "measure_packing"]

FEATURES = 32
STEPS = 16
LEAST_SECONDS = 0.5
"""A contender trains as many epochs as this takes, one at least."""
MOST_EPOCHS = 1_000_000

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Case:
    """A network, a batch, and the packs that are tried with them."""

    hidden: tuple[int, ...]
    batch_rows: int
    sizes: tuple[int, ...] = (8, 32, 64)

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{'-'.join(map(str, self.hidden))}, batch {self.batch_rows}"


CASES = tuple(
    Case(hidden, rows) for hidden in ((32, 16), (128, 64), (512, 256)) for rows in (32, 256, 1024)
)
GPU_CASES = tuple(replace(case, sizes=(8, 32, 64, 256)) for case in CASES)


def measure_packing(
    cases: Sequence[Case], *, rounds: int, steps: int = STEPS, device: Device = "cpu"
) -> dict[str, dict[str, Any]]:
    """Measure all cases and print a table.

    Args:
        cases: Networks and batches.
        rounds: How many paired rounds count.
        steps: S.
        device: Where to train.

    Returns:
        By case: microseconds a step alone, and by the size of a pack how many times as fast a trial
        of it is.
    """
    found: dict[str, dict[str, Any]] = {}
    lines = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            alone, ratios = _measured(case, Path(folder), rounds, steps, device)
        found[case.name] = {
            "alone_us": alone,
            "ratios": {size: vars(spread) for size, spread in ratios.items()},
            "auto": chosen_size(case, device),
        }
        cells = [f"{ratios[size]:.1f}" if size in ratios else "" for size in _sizes(cases)]
        lines.append([case.name, f"{alone:.0f}", *cells, str(chosen_size(case, device))])
    heads = [f"packs of {size}" for size in _sizes(cases)]
    show(
        f"A trial alone / a trial in a pack, {device}, one thread, by CPU time: times as fast"
        if device == "cpu"
        else f"A trial alone / a trial in a pack, {device}, on the clock: times as fast",
        ["", "alone, us a step", *heads, "`pack: auto`"],
        lines,
    )
    return found


def chosen_size(case: Case, device: Device = "cpu") -> int:
    """What `search.pack: auto` chooses for it."""
    model = MlpModel(kind="mlp", hidden=case.hidden)
    parameters = num_parameters(model, num_numeric=FEATURES, cardinalities=(), num_outputs=2)
    return auto_pack_size(parameters=parameters, batch_rows=case.batch_rows, device=device)


def _sizes(cases: Sequence[Case]) -> list[int]:
    return sorted({size for case in cases for size in case.sizes})


def _measured(
    case: Case, folder: Path, rounds: int, steps: int, device: Device
) -> tuple[float, Mapping[int, Spread]]:
    loaded = _spec(case, folder, steps)
    prepared = prepare(loaded, open_storage("runs", folder), Progress())[0]
    rows = held_rows(prepared)
    if rows is None:
        raise RuntimeError("expected rows that fit into memory")
    contenders: dict[str, Contender] = {"alone": _Alone(loaded, prepared, rows, device)}
    for size in case.sizes:
        contenders[str(size)] = _Pack(loaded, prepared, rows, size, device)
    taken = run_in_turns(contenders, rounds=rounds)
    # One thread computes all of it on a CPU, and that leaves out who else wanted the core.
    clock: Clock = "cpu_s" if device == "cpu" else "wall_s"
    seconds = {name: [getattr(each, clock) for each in runs] for name, runs in taken.items()}
    return 1e6 * Spread.of(seconds["alone"]).median, {
        size: Spread.of(
            [one / other for one, other in zip(seconds["alone"], seconds[str(size)], strict=True)]
        )
        for size in case.sizes
    }


def _spec(case: Case, folder: Path, steps: int) -> LoadedSpec:
    """A table of random numbers with S whole batches to train on, and few rows to measure."""
    count = round(steps * case.batch_rows / 0.96)
    random = np.random.default_rng(0)
    features = random.standard_normal((count, FEATURES))
    target = (features[:, 0] + features[:, 1] > 0).astype(int)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{place}" for place in range(FEATURES)), "y"])
        for row, label in zip(features, target, strict=True):
            writer.writerow([*(f"{value:.4f}" for value in row), label])
    split = "{kind: random, fractions: {train: 0.96, valid: 0.02, test: 0.02}}"
    text = f"""version: 1
name: packing
data: {{source: rows.csv, target: y, task: classification, split: {split}}}
model: {{kind: mlp, hidden: {list(case.hidden)}, dropout: 0.1}}
training: {{epochs: {MOST_EPOCHS}, batch_size: {case.batch_rows}, optimizer: {{kind: adam}}}}
"""
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


class _Alone:
    """The loop of an ordinary run, without anything that is saved."""

    def __init__(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        rows: Mapping[str, Sequence[SplitRows]],
        device: Device,
    ) -> None:
        facts = TrainingFacts(loaded, prepared)
        self._facts, self._plan = facts, facts.plan
        reader = facts.checked(HeldShards(rows))
        splits = {
            name: _joined(list(reader(name, range(len(rows[name])))))
            for name in ("train", *facts.measured)
        }
        where = torch.device(device)
        rules = GradientRules(batch_rows=self._plan.batch_rows)
        self._worker = ResidentWorker(self._plan, splits, where, rules=rules)
        training = facts.spec.training
        model = build_model(facts.spec.model, facts.inputs, seed=0, loss=facts.loss).to(where)
        optimizer = build_optimizer(training.optimizer, model.parameters(), fused=True)
        schedule = build_schedule(None, optimizer, self._plan.epochs)
        self._state = TrainState(model, optimizer, schedule, early_stop=None)
        self._loss = facts.loss.on(where)
        self._keeper = StateKeeper(
            CheckpointSpec(), OneRank(), NowhereToSave(), stop_requested=lambda: False
        )

    def __call__(self) -> Taken:
        """Train; what one step took."""
        return _per_step(self._epoch, self._plan.steps_per_epoch, trials=1)

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `batchtrain.training.loop.Watcher`."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `batchtrain.training.loop.Watcher`."""

    def _epoch(self) -> None:
        plan = replace(self._plan, epochs=self._state.epoch + 1)
        train_until_done(
            self._state,
            self._worker,
            plan,
            self._loss,
            self,
            self._keeper,
            self._facts.measured,
        )


class _Pack:
    """The same trial so many times in one program."""

    def __init__(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        rows: Mapping[str, Sequence[SplitRows]],
        size: int,
        device: Device,
    ) -> None:
        self._training = PackedTraining(
            [loaded] * size, prepared, device=device, shards=HeldShards(rows)
        )
        self._plan = TrainingFacts(loaded, prepared).plan
        self._size = size

    def __call__(self) -> Taken:
        """Train; what one step of one trial took."""
        return _per_step(self._epoch, self._plan.steps_per_epoch, trials=self._size)

    def _epoch(self) -> None:
        self._training.train_to(self._training.members[0].epoch + 1)


def _per_step(epoch: Any, steps: int, *, trials: int) -> Taken:
    """Train epochs for a while; what one step of one trial took of it."""
    wall = cpu = 0.0
    epochs = 0
    while not epochs or wall < LEAST_SECONDS:
        taken = timed(epoch)
        wall, cpu, epochs = wall + taken.wall_s, cpu + taken.cpu_s, epochs + 1
    count = epochs * steps * trials
    return Taken(wall / count, cpu / count)


def _joined(parts: Sequence[SplitRows]) -> SplitRows:
    if len(parts) == 1:
        return parts[0]
    return SplitRows(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("numeric", "codes", "target", "row_id")
        )
    )
