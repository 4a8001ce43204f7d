"""Rows in memory against rows read anew in each epoch, by our reader and through Ray Data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pyarrow as pa
import torch
from pyarrow import parquet

from batchtrain.artifacts.prepared import PreparedData, SplitRows
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.losses import make_loss
from batchtrain.preparation import prepare as preparation
from batchtrain.preparation import shards as preparation_shards
from batchtrain.preparation.stage import prepare
from batchtrain.progress import Progress
from batchtrain.spec.load import load_spec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.spec.training import TrainingSpec
from batchtrain.storage import open_storage
from batchtrain.training.loading import RowLoader
from batchtrain.training.loop import train_until_done
from batchtrain.training.machine import choose_machine, machine_in_force
from batchtrain.training.plan import make_plan, row_order
from batchtrain.training.ranks import OneRank, Ranks
from batchtrain.training.shards import CheckedShards, ShardReader, StoredShards
from batchtrain.training.tracking import RunWatcher
from benchmarks.exactness_loops import MAX_EPOCHS, SMALL, begun, quiet_keeper
from benchmarks.paired import Comparison, Spread, Taken, compare, run_in_turns, show, timed
from benchmarks.ray_effort import Effort, Found, found_of
from benchmarks.ray_workers import ray_here, run_in_workers
from benchmarks.training_loops import NUM_FEATURES, SEED, made_rows

__all__ = ["Case", "measure_rows", "measure_rows_on_ray"]

BATCH_ROWS = 1024
ROUNDS = 5
MILLION = 1_000_000
WINDOWS = 4
SHARDS = 32
GOAL = "0.8"

RESIDENT, STREAMING, RAY_DATA = "resident", "streaming", "streaming, Ray Data"

SPEC = """
version: 1
name: rows
seed: {seed}
data:
  source: rows.parquet
  target: target
  lanes: {lanes}
  split: {{kind: random, fractions: {{train: 1.0, valid: 0.0, test: 0.0}}}}
storage: ./runs
"""


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        num_rows: N.
        lanes: V.
        windows: The windows of a lane; with more than two, shards are read anew in each epoch.
    """

    num_rows: int
    lanes: int
    windows: int = 1

    @property
    def name(self) -> str:
        """What the tables call it."""
        lanes = f"{self.lanes} lane{'s' * (self.lanes > 1)}"
        return f"{self.num_rows:,} rows, {lanes}, {self.windows} window{'s' * (self.windows > 1)}"


def cases(effort: Effort) -> list[Case]:
    """A million rows that stay in memory once they were read, and more that do not."""
    # At full size these are the windows and shards of any run.
    million, long = effort.rows(MILLION), effort.rows(WINDOWS * 1_048_576)
    return [Case(million, 1), Case(million, 64), Case(long, 1, windows=WINDOWS)]


def measure_rows(effort: Effort) -> Found:
    """Resident and streaming in this process, without Ray."""
    documents = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(effort):
            prepared = _prepared(case, Path(folder))
            documents[case.name] = measured_epochs(
                OneRank(), prepared, (RESIDENT, STREAMING), effort
            )
    found = _show("One process, no Ray", documents)
    print(
        'A turn is an epoch. "first": from nothing to the end of the first epoch, with all reading '
        'for it. "read": the shards\nthat an epoch after it reads anew; where that is 0, the '
        "windows of all lanes fit into the arena, and streaming keeps\nwhat it has read.\n"
    )
    return found


def measure_rows_on_ray(effort: Effort) -> Found:
    """The same in one worker of Ray, and the shards through Ray Data."""
    how = (RESIDENT, STREAMING, RAY_DATA)
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            case.name: _prepared(case, Path(folder)) for case in cases(effort) if case.lanes == 1
        }
        with ray_here(2):
            documents = {
                name: run_in_workers(
                    partial(measured_epochs, prepared=prepared, how=how, effort=effort), 1
                )
                for name, prepared in tables.items()
            }
    return _show("One Ray worker", documents)


def measured_epochs(
    ranks: Ranks, prepared: PreparedData, how: Sequence[str], effort: Effort
) -> dict[str, Any]:
    """What epochs take, each way of having the rows in turn; as JSON.

    Args:
        ranks: This rank, which is alone.
        prepared: The rows.
        how: The ways.
        effort: How many rounds.
    """
    with ExitStack() as stack:
        trainings = {}
        for name in how:
            began = time.perf_counter()
            trainings[name] = training = _Training(prepared, name, ranks)
            stack.callback(training.close)
            training()
            training.first_s = time.perf_counter() - began
        reads = {name: training.reader.num_read for name, training in trainings.items()}
        rounds = 1 if effort.is_quick else ROUNDS
        taken = run_in_turns(trainings, rounds=rounds, warm_up=0)
    return {
        name: {
            "first_s": training.first_s,
            "shards": len(prepared.shard_names("train")),
            "read": (training.reader.num_read - reads[name]) / rounds,
            "num_rows": prepared.num_rows("train"),
            "taken": [asdict(run) for run in taken[name]],
        }
        for name, training in trainings.items()
    }


@dataclass
class _Counted:
    """Counts the shards that a reader gives."""

    reader: ShardReader
    num_read: int = field(default=0)

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        """See `ShardReader`."""
        for rows in self.reader(split, shards):
            self.num_read += 1
            yield rows


class _Training:
    """The loop of `batchtrain train` on prepared rows, one epoch a call.

    Attributes:
        first_s: How long it took from nothing to the end of the first epoch.
        reader: What reads its shards.
    """

    def __init__(self, prepared: PreparedData, how: str, ranks: Ranks) -> None:
        self.first_s = 0.0
        self.reader = _Counted(_reader(prepared, how))
        plan = make_plan(
            TrainingSpec(epochs=MAX_EPOCHS, batch_size=BATCH_ROWS), row_order(prepared, seed=SEED)
        )
        rows: Literal["resident", "streaming"] = "resident" if how == RESIDENT else "streaming"
        self._machine = choose_machine(ResourcesSpec(rows=rows))
        inputs = ModelInputs(num_numeric=NUM_FEATURES, cardinalities=(), num_outputs=2)
        loader = RowLoader(
            CheckedShards(self.reader, prepared, inputs), prepared, torch.device("cpu")
        )
        self._worker = loader.worker(plan, self._machine, [], ranks=ranks, determinism="order")
        self._state = begun(SMALL)
        self._plan = plan
        self._loss = make_loss("cross_entropy")
        self._keeper = quiet_keeper(ranks)

    def __call__(self) -> Taken:
        """Train one more epoch."""
        with machine_in_force(self._machine):
            return timed(self._train)

    def close(self) -> None:
        """Let go of whatever reads ahead."""
        self._worker.close()

    def _train(self) -> None:
        plan = replace(self._plan, epochs=self._state.epoch + 1)
        train_until_done(
            self._state, self._worker, plan, self._loss, RunWatcher.silent(), self._keeper, ()
        )


def _reader(prepared: PreparedData, how: str) -> ShardReader:
    if how != RAY_DATA:
        return StoredShards(prepared)
    from batchtrain.training.ray_data import RayShards

    return RayShards(prepared, {})


def _prepared(case: Case, folder: Path) -> PreparedData:
    """Prepare a table; a small one has as many shards and windows as one of full size."""
    home = folder / f"{case.num_rows}-{case.lanes}"
    home.mkdir()
    rows = made_rows(case.num_rows)
    columns: dict[str, Any] = {f"x{place}": column for place, column in enumerate(rows.numeric.T)}
    columns["target"] = pa.array(["no", "yes"]).take(pa.array(rows.target))
    parquet.write_table(pa.table(columns), home / "rows.parquet")
    (home / "spec.yaml").write_text(SPEC.format(seed=SEED, lanes=case.lanes), encoding="utf-8")
    loaded = load_spec(home / "spec.yaml")
    with ExitStack() as stack:
        if case.windows > 1:
            for owner, name, value in (
                (preparation, "WINDOW_ROWS", -(-case.num_rows // case.windows)),
                (preparation_shards, "SHARD_ROWS", -(-case.num_rows // SHARDS)),
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
        made, _status = prepare(loaded, open_storage(str(home / "runs"), home), Progress())
    (home / "rows.parquet").unlink()
    return made


def _show(title: str, documents: Mapping[str, Mapping[str, Any]]) -> Found:
    taken_of_all: dict[str, Sequence[Any]] = {}
    ratios_of_all: dict[str, Spread] = {}
    lines = []
    for case, document in documents.items():
        taken = {name: [Taken(**run) for run in found["taken"]] for name, found in document.items()}
        others = [name for name in taken if name != RESIDENT]
        found = [compare(taken, ours=each, theirs=RESIDENT, as_speed=True) for each in others]
        by_name = {each.ours: each for each in found}
        lines += [
            _line(case, name, document[name], taken[name], by_name.get(name)) for name in taken
        ]
        part = found_of(taken, found)
        taken_of_all |= {f"{case}: {name}": runs for name, runs in part.taken.items()}
        ratios_of_all |= {f"{case}: {name}": spread for name, spread in part.ratios.items()}
    show(
        f"{title}: {SMALL.name}, batch {BATCH_ROWS}, times as fast as resident",
        ["", "rows/s", "on the clock", "by CPU time", "goal", "first, s", "read"],
        lines,
    )
    return Found(taken_of_all, ratios_of_all)


def _line(
    case: str,
    name: str,
    document: Mapping[str, Any],
    taken: Sequence[Taken],
    compared: Comparison | None,
) -> list[str]:
    speed = document["num_rows"] / Spread.of([run.wall_s for run in taken]).median
    ratios = [f"{compared.wall:.2f}", f"{compared.cpu:.2f}", GOAL] if compared else ["", "", ""]
    read = f"{document['read']:.0f} of {document['shards']}"
    return [f"{case}: {name}", f"{speed:,.0f}", *ratios, f"{document['first_s']:.1f}", read]
