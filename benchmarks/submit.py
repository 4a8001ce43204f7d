"""From `batchtrain submit` to the first step, against a bare `TorchTrainer` as a plain job of Ray.

Usage: `python -m benchmarks.submit`. It starts a cluster with token authentication on this machine
(`cluster/local.sh`), on which all of it runs, and ends it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from batchtrain.tables.samples import write_sample
from benchmarks.paired import Spread, show
from benchmarks.ray_effort import FULL, QUICK, in_turns, load, ratios

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "jobs" / "specs" / "drug200.yaml"
SCRIPT = ROOT / "benchmarks" / "bare_torch_trainer.py"
BIN = Path(sys.executable).parent
CPUS = 4
"""What the cluster counts: a job and a worker each hold one, and nobody waits for a core."""

OURS, OURS_ON_RAY, BARE = "submit", "submit to Ray Train", "bare"
DRY_RUN = "dry run"
CONTENDERS = (OURS, BARE, OURS_ON_RAY, DRY_RUN)
FIRST_STEP = "to the first step"
WHOLE = "whole command"

Timed = dict[str, float]
"""Part to its seconds; those before `FIRST_STEP` add up to it."""

SUBMITTED, FIRST_EPOCH = "submitted ", "          Epoch [1/"
"""What lines of `batchtrain submit` begin with."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in rounds, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help="rounds of all contenders")
    parser.add_argument("--epochs", type=int, default=QUICK.epochs, help="of drug200")
    parser.add_argument("--only", choices=CONTENDERS, nargs="+", help="these contenders")
    parser.add_argument("--quick", action="store_true", help="whether it runs: one round")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    effort = QUICK if asked.quick else replace(FULL, rounds=asked.rounds, epochs=asked.epochs)
    before = load()
    with tempfile.TemporaryDirectory() as folder, _cluster() as environ:
        jobs = _Jobs(Path(folder), environ, effort.epochs)
        every: dict[str, Callable[[], Timed]] = {
            OURS: lambda: jobs.submit("engine=auto"),
            BARE: jobs.bare,
            OURS_ON_RAY: lambda: jobs.submit("engine=ray", "resources.workers=1"),
            DRY_RUN: jobs.dry_run,
        }
        contenders = {name: _told(name, every[name]) for name in asked.only or CONTENDERS}
        if not effort.is_quick:
            # What a cluster does once: it unpacks, compiles and keeps what the first job brought.
            jobs.bare()
        taken = in_turns(contenders, effort)
    _show(taken)
    print(f"before {before}, after {load()}")
    if asked.json:
        asked.json.write_text(json.dumps(taken, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _cluster() -> Iterator[dict[str, str]]:
    """A cluster, and the environment of whoever uses it."""
    path = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    script = [str(ROOT / "cluster" / "local.sh")]
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as parent:
        # Sockets lie there: the name must be short.
        where = ["--folder", f"{parent}/c"]
        options = ["--nodes", "1", "--cpus", str(CPUS), "--port", "0", "--dashboard-port", "0"]
        try:
            subprocess.run([*script, "start", *where, *options], env=path, check=True)
            said = Path(parent, "c", "env").read_text(encoding="utf-8")
            exports = re.findall(r"^export (\w+)='?([^\s']*)", said, re.MULTILINE)
            yield {**path, **dict(exports)}
        finally:
            subprocess.run([*script, "stop", *where], env=path, check=True)


class _Jobs:
    """Jobs that train drug200, each into a storage that is new."""

    def __init__(self, folder: Path, environ: Mapping[str, str], epochs: int) -> None:
        self._folder = folder
        self._environ = dict(environ)
        self._epochs = epochs
        self._numbers = itertools.count()
        # All that a bare job sends: the script and its table.
        self._shipped = folder / "shipped"
        self._shipped.mkdir()
        shutil.copy(SCRIPT, self._shipped)
        write_sample("drug200", self._shipped / "drug200.csv")

    def submit(self, *overrides: str) -> Timed:
        """`batchtrain submit`, followed to its end, by the lines that it prints."""
        storage = self._folder / f"ours-{next(self._numbers)}"
        file = self._folder / "parts.json"
        child = [sys.executable, "-m", "benchmarks.submit_child", str(file)]
        words = [*child, *self._words(storage, *overrides)[1:]]
        began = time.time()
        seen: Timed = {}
        said = []
        with subprocess.Popen(
            words,
            cwd=ROOT,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                said.append(line)
                for start in (SUBMITTED, FIRST_EPOCH):
                    if line.startswith(start):
                        seen.setdefault(start, time.time())
        whole = time.time() - began
        _check(process.returncode, "".join(said))
        parts = json.loads(file.read_text(encoding="utf-8"))
        [prepared] = storage.rglob("_prepared/*/manifest.json")
        published = prepared.stat().st_mtime
        return {
            "imports, spec, what travels": seen[SUBMITTED] - began - sum(parts.values()),
            **parts,
            "Ray starts the entry point, imports, prepare": published - seen[SUBMITTED],
            "to the first epoch, as a reader sees it": seen[FIRST_EPOCH] - published,
            FIRST_STEP: seen[FIRST_EPOCH] - began,
            WHOLE: whole,
        }

    def dry_run(self) -> Timed:
        """`batchtrain submit --dry-run`."""
        words = self._words(self._folder / "nothing", "engine=auto")
        began = time.time()
        done = subprocess.run(
            [*words, "--dry-run"],
            env=self._environ,
            capture_output=True,
            text=True,
        )
        _check(done.returncode, done.stderr)
        return {WHOLE: time.time() - began}

    def bare(self) -> Timed:
        """`ray job submit` of the script, by the marks that it leaves."""
        folder = self._folder / f"bare-{next(self._numbers)}"
        folder.mkdir()
        entry = ["python", SCRIPT.name, "drug200.csv", "1", str(self._epochs), str(folder)]
        start = time.time()
        done = subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--working-dir", str(self._shipped), "--", *entry],
            env=self._environ,
            capture_output=True,
            text=True,
        )
        whole = time.time() - start
        _check(done.returncode, done.stdout + done.stderr)
        driver, rank = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("driver.json", "rank-0.json")
        )
        return {
            "command, upload, Ray starts the entry point, imports": driver["prepare"] - start,
            "table, joining the cluster": driver["launch"] - driver["prepare"],
            "controller and worker": rank["joined"] - driver["launch"],
            "model and first step": rank["first"] - rank["joined"],
            FIRST_STEP: rank["first"] - start,
            WHOLE: whole,
        }

    def _words(self, storage: Path, *overrides: str) -> list[str]:
        settings = (f"storage={storage}", f"training.epochs={self._epochs}", *overrides)
        sets = [word for setting in settings for word in ("--set", setting)]
        return [str(BIN / "batchtrain"), "submit", str(SPEC), *sets]


def _check(code: int, said: str) -> None:
    if code != 0:
        raise RuntimeError(f"expected exit code 0, found {code}. It ended with\n{said[-2000:]}")


def _told(name: str, run: Callable[[], Timed]) -> Callable[[], Timed]:
    """The same, which says at once what it took: a round lasts a minute or two."""

    def told() -> Timed:
        taken = run()
        print(name, {part: round(seconds, 2) for part, seconds in taken.items()}, flush=True)
        return taken

    return told


def _show(taken: Mapping[str, Sequence[Timed]]) -> None:
    for name, runs in taken.items():
        lines = [[part, f"{Spread.of([run[part] for run in runs]):.1f}"] for part in runs[0]]
        show(f"{name}, seconds", ["", "median (range)"], lines)
    for ours in (name for name in (OURS, OURS_ON_RAY) if {name, BARE} <= {*taken}):
        for part in (FIRST_STEP, WHOLE):
            seconds = {each: [run[part] for run in taken[each]] for each in (ours, BARE)}
            print(f"{part}: {ours} / {BARE}: {ratios(seconds, ours, BARE):.2f}")


if __name__ == "__main__":
    main()
