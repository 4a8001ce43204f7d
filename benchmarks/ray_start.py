"""From `batchtrain run` to the first step and from the last to the end, with and without Ray."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchtrain.engines.session import SETTINGS
from batchtrain.tables.samples import write_sample
from benchmarks.paired import Spread, show
from benchmarks.ray_effort import Effort, Found, in_turns, ratios
from benchmarks.ray_marks import PHASES, Phases, read_marks

__all__ = ["Command", "measure_settings", "measure_start", "run_child", "run_script"]

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "jobs" / "specs" / "drug200.yaml"
SCRIPT = ROOT / "benchmarks" / "bare_torch_trainer.py"

EMBEDDED, EMBEDDED_PREPARED = "embedded", "embedded, prepared"
RAY_ONE, RAY_ONE_PREPARED = "Ray, 1 worker", "Ray, 1 worker, prepared"
AUTO_TWO, AUTO_TWO_PREPARED = "auto, 2 workers", "auto, 2 workers, prepared"
BARE_ONE, BARE_TWO = "bare, 1 worker", "bare, 2 workers"
PAIRS = (
    (EMBEDDED, BARE_ONE),
    (RAY_ONE, BARE_ONE),
    (RAY_ONE_PREPARED, BARE_ONE),
    (AUTO_TWO, BARE_TWO),
    (AUTO_TWO_PREPARED, BARE_TWO),
)
QUICK_START = (EMBEDDED, AUTO_TWO_PREPARED, BARE_TWO)

AS_IT_IS = "as it is"
POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"

VARIANTS: Mapping[str, Sequence[str]] = {
    AS_IT_IS: (),
    "controller looks every 2 s": ("--unset", POLL),
    "all callbacks": ("--all-callbacks",),
    "all of it as Ray comes": ("--all-callbacks", "--unset", *SETTINGS),
}
QUICK_VARIANTS = (AS_IT_IS, "all of it as Ray comes")


@dataclass(frozen=True)
class Command:
    """A command of batchtrain in a process of its own.

    Attributes:
        words: The command and its arguments.
        options: Those of `benchmarks.ray_child`.
    """

    words: Sequence[str]
    options: Sequence[str] = field(default=())


def measure_start(effort: Effort) -> Found:
    """The phases of whole processes that train drug200, ours and a bare `TorchTrainer`."""
    with tempfile.TemporaryDirectory() as folder:
        runs = _Drug200(Path(folder), effort.epochs)
        contenders: dict[str, Callable[[], Phases]] = {
            EMBEDDED: lambda: runs.ours("embedded", 1),
            EMBEDDED_PREPARED: lambda: runs.ours("embedded", 1, prepared=True),
            RAY_ONE: lambda: runs.ours("ray", 1),
            RAY_ONE_PREPARED: lambda: runs.ours("ray", 1, prepared=True),
            AUTO_TWO: lambda: runs.ours("auto", 2),
            AUTO_TWO_PREPARED: lambda: runs.ours("auto", 2, prepared=True),
            BARE_ONE: lambda: runs.bare(1),
            BARE_TWO: lambda: runs.bare(2),
        }
        if effort.is_quick:
            contenders = {name: contenders[name] for name in QUICK_START}
        taken = in_turns(contenders, effort)
    _show_phases(f"drug200, {effort.epochs} epochs, whole process, seconds", taken)
    found = {}
    for ours, theirs in PAIRS:
        if ours in taken and theirs in taken:
            for name, seconds_of in MOMENTS.items():
                seconds = {each: [seconds_of(run) for run in taken[each]] for each in taken}
                found[f"{name}: {ours} / {theirs}"] = ratios(seconds, ours, theirs)
    _show_ratios(found)
    print(
        '"prepared": the prepared data are published already. "Ray": `engine: ray`, all stages on '
        'Ray. "auto": `engine: auto`,\nthe training on Ray and the other stages, whose rows are '
        "few, in this process. The bare script trains on as many\nrows and epochs, reports each "
        "epoch, and neither measures, saves nor evaluates; a report waits for the next look of\n"
        "the controller, every 2 s.\n"
    )
    return Found({name: _seconds(runs) for name, runs in taken.items()}, found)


MOMENTS: Mapping[str, Callable[[Phases], float]] = {
    "to the first step": lambda phases: phases.to_first_step,
    "after the last step": lambda phases: phases.after_last_step,
    "whole process": lambda phases: phases.whole,
}


def measure_settings(effort: Effort) -> Found:
    """What each thing that was done to shorten the start and the end saves, one worker."""
    with tempfile.TemporaryDirectory() as folder:
        runs = _Drug200(Path(folder), effort.epochs)

        def run_with(options: Sequence[str]) -> Callable[[], Phases]:
            return lambda: runs.ours("ray", 1, prepared=True, options=options)

        chosen = QUICK_VARIANTS if effort.is_quick else tuple(VARIANTS)
        taken = in_turns({name: run_with(VARIANTS[name]) for name in chosen}, effort)
    _show_phases("Ray, 1 worker, prepared: without what shortens it, seconds", taken)
    found = {}
    for name in chosen:
        if name != AS_IT_IS:
            for moment, seconds_of in MOMENTS.items():
                seconds = {each: [seconds_of(run) for run in taken[each]] for each in taken}
                found[f"{moment}: {AS_IT_IS} / {name}"] = ratios(seconds, AS_IT_IS, name)
    _show_ratios(found)
    return Found({name: _seconds(runs) for name, runs in taken.items()}, found)


def run_child(command: Command) -> tuple[Phases, str]:
    """Run a command of batchtrain; its phases, and the last line that it printed."""
    with tempfile.TemporaryDirectory() as marks:
        words = ["-m", "benchmarks.ray_child", marks, *command.options, "--", *command.words]
        return _run(words, Path(marks))


def run_script(csv: Path, workers: int, epochs: int) -> Phases:
    """Run the bare script."""
    with tempfile.TemporaryDirectory() as marks:
        return _run([str(SCRIPT), str(csv), str(workers), str(epochs), marks], Path(marks))[0]


class _Drug200:
    """Runs on one table, each into a storage that is new."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self._folder = folder
        self._epochs = epochs
        self._numbers = itertools.count()
        self._csv = folder / "drug200.csv"
        write_sample("drug200", self._csv)
        self._prepared = folder / "prepared"
        run_child(Command(self._words("prepare", self._prepared, "embedded", 1)))

    def ours(
        self, engine: str, workers: int, *, prepared: bool = False, options: Sequence[str] = ()
    ) -> Phases:
        """All stages, the first of them done already where asked."""
        storage = self._folder / f"run-{next(self._numbers)}"
        if prepared:
            shutil.copytree(self._prepared, storage)
        words = self._words("run", storage, engine, workers)
        return run_child(Command(words, options))[0]

    def bare(self, workers: int) -> Phases:
        """The script."""
        return run_script(self._csv, workers, self._epochs)

    def _words(self, command: str, storage: Path, engine: str, workers: int) -> list[str]:
        settings = (
            f"data.source={self._csv}",
            f"storage={storage}",
            f"training.epochs={self._epochs}",
            f"engine={engine}",
            f"resources.workers={workers}",
        )
        overrides = [word for setting in settings for word in ("--set", setting)]
        return [command, str(SPEC), "--json", *overrides]


def _run(words: Sequence[str], marks: Path) -> tuple[Phases, str]:
    """Run this Python; no setting of Ray that another part of the benchmark made reaches it.

    Raises:
        RuntimeError: If it fails.
    """
    surroundings = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    began = time.time()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=surroundings,
    )
    ended = time.time()
    if done.returncode != 0:
        raise RuntimeError(
            f"expected exit code 0 of {' '.join(words)}, found {done.returncode}. "
            f"Run it by hand; it ended with\n{done.stderr[-2000:]}"
        )
    return read_marks(marks, began, ended), done.stdout.strip().rpartition("\n")[2]


def _show_phases(title: str, taken: Mapping[str, Sequence[Phases]]) -> None:
    lines = []
    for place, name in enumerate(PHASES):
        cells = [Spread.of([run.seconds[place] for run in runs]).median for runs in taken.values()]
        lines.append([name, *[f"{cell:.2f}" for cell in cells]])
    show(title, ["", *taken], lines)
    lines = []
    for name, runs in taken.items():
        spreads = [Spread.of([of(run) for run in runs]) for of in MOMENTS.values()]
        lines.append([name, *[f"{spread:.1f}" for spread in spreads]])
    show("seconds", ["", *MOMENTS], lines)


def _show_ratios(found: Mapping[str, Spread]) -> None:
    lines = [[name, f"{spread:.2f}"] for name, spread in found.items()]
    show("times as long", ["", "on the clock"], lines)


def _seconds(runs: Sequence[Phases]) -> list[dict[str, float]]:
    return [dict(zip(PHASES, run.seconds, strict=True)) for run in runs]
