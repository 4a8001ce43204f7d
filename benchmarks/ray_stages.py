"""Stages over rows, `engine: ray` against `engine: embedded`, each in a process of its own."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv

from benchmarks.paired import Spread, show
from benchmarks.ray_effort import Effort, Found, in_turns, ratios
from benchmarks.ray_marks import Phases
from benchmarks.ray_start import Command, run_child

__all__ = ["measure_stages", "write_wide_table"]

NUM_ROWS = 1_200_000
SEED = 11
NUM_NUMERIC, NUM_CATEGORICAL = 12, 4
CHUNK_ROWS = 100_000

EMBEDDED, RAY = "embedded", "ray"

SPEC = """
version: 1
name: wide
data: {{source: {csv}, target: label}}
model: {{kind: mlp, hidden: [64]}}
training: {{epochs: 1, batch_size: 8192}}
"""


def measure_stages(effort: Effort) -> Found:
    """`prepare` and `evaluate` of a table of some 150 MB."""
    with tempfile.TemporaryDirectory() as folder:
        stages = _Stages(Path(folder), effort.rows(NUM_ROWS))
        contenders: dict[str, Callable[[], Phases]] = {
            f"{stage}, {engine}": partial(stages.run, stage, engine)
            for stage in ("prepare", "evaluate")
            for engine in (EMBEDDED, RAY)
        }
        taken = in_turns(contenders, effort)
        size = stages.csv.stat().st_size
    found, lines = {}, []
    for stage in ("prepare", "evaluate"):
        names = [f"{stage}, {engine}" for engine in (EMBEDDED, RAY)]
        for what, seconds_of in _measures(stage).items():
            numbers = {name: [seconds_of(run) for run in taken[name]] for name in names}
            spread = found[f"{stage}, {what}: ray / embedded"] = ratios(numbers, names[1], names[0])
            medians = [f"{Spread.of(numbers[name]).median:,.1f}" for name in names]
            lines.append([f"{stage}: {what}", *medians, f"{spread:.2f}"])
    title = f"{size / 1e6:.0f} MB of CSV, {effort.rows(NUM_ROWS):,} rows, Ray on this machine"
    show(title, ["", EMBEDDED, RAY, "ray / embedded"], lines)
    return Found({name: _documents(name, runs) for name, runs in taken.items()}, found)


def _measures(stage: str) -> Mapping[str, Callable[[Phases], float]]:
    return {
        "the stage, s": lambda run: run.stage_seconds[stage],
        "the process, s": lambda run: run.whole,
        "peak memory of the driver, MB": lambda run: run.peak_bytes / 1e6,
    }


def _documents(name: str, runs: Sequence[Phases]) -> list[dict[str, Any]]:
    stage = name.partition(",")[0]
    return [{what: of(run) for what, of in _measures(stage).items()} for run in runs]


class _Stages:
    """One table, and a storage that has everything but the evaluation.

    Attributes:
        csv: The table.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        self.csv = folder / "wide.csv"
        self._folder = folder
        self._numbers = itertools.count()
        self._spec = folder / "wide.yaml"
        self._trained = folder / "trained"
        write_wide_table(self.csv, num_rows)
        self._spec.write_text(SPEC.format(csv=self.csv), encoding="utf-8")
        run_child(self._command("train", EMBEDDED, self._trained))

    def run(self, stage: str, engine: str) -> Phases:
        """Run one stage in a storage where it was never done."""
        storage = self._folder / f"run-{next(self._numbers)}"
        if stage == "evaluate":
            shutil.copytree(self._trained, storage)
        try:
            return run_child(self._command(stage, engine, storage))[0]
        finally:
            shutil.rmtree(storage, ignore_errors=True)

    def _command(self, stage: str, engine: str, storage: Path) -> Command:
        settings = (f"engine={engine}", f"storage={storage}")
        overrides = [word for setting in settings for word in ("--set", setting)]
        return Command([stage, str(self._spec), "--json", *overrides])


def write_wide_table(path: Path, num_rows: int) -> None:
    """Write numbers, categories and a label that depends on them, in parts."""
    generator = np.random.Generator(np.random.Philox(SEED))
    levels = np.array([f"level-{number:02d}" for number in range(20)])
    writer = None
    for start in range(0, num_rows, CHUNK_ROWS):
        size = min(CHUNK_ROWS, num_rows - start)
        numbers = generator.standard_normal((NUM_NUMERIC, size)).round(4)
        columns: dict[str, Any] = {f"x{place}": column for place, column in enumerate(numbers)}
        for place in range(NUM_CATEGORICAL):
            columns[f"c{place}"] = levels[generator.integers(0, len(levels), size)]
        columns["label"] = np.where(numbers[:3].sum(axis=0) > 0, "yes", "no")
        table = pa.table(columns)
        writer = writer or pa_csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
