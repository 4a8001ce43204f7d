"""A cold `batchtrain run` of drug200 against a bare script: `python -m benchmarks.cold_run`."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchtrain.tables.samples import write_sample
from benchmarks.paired import (
    Comparison,
    Contender,
    Spread,
    Taken,
    compare,
    run_in_turns,
    show,
    write_json,
)

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "jobs" / "specs" / "drug200.yaml"
SCRIPT = ROOT / "benchmarks" / "bare_drug200.py"

FRESH, REUSED, BARE = "batchtrain run", "the run after it", "bare script"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure whole processes and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds that count")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(Path(folder))
        runs.reused()  # builds everything once, so that all later runs find it
        contenders: dict[str, Contender] = {
            FRESH: runs.fresh,
            REUSED: runs.reused,
            BARE: runs.bare,
        }
        # The first round also compiles whatever has no bytecode yet.
        taken = run_in_turns(contenders, rounds=asked.rounds)
    found = [compare(taken, ours=ours, theirs=BARE, as_speed=False) for ours in (FRESH, REUSED)]
    _show(taken, found, runs)
    if asked.json:
        write_json(asked.json, {"drug200": taken}, {"drug200": found})


class _Runs:
    """The processes that are compared, all on one CSV file.

    Attributes:
        result: What the latest fresh run printed with `--json`.
        script_said: The last line of the latest bare script.
    """

    def __init__(self, folder: Path) -> None:
        """Write the table to `folder`, where all output goes too."""
        self.result: dict[str, Any] = {}
        self.script_said = ""
        self._folder = folder
        self._numbers = itertools.count()
        self._csv = folder / "drug200.csv"
        write_sample("drug200", self._csv)

    def fresh(self) -> Taken:
        """All stages, into a storage that is new."""
        taken, last_line = _run(self._command(f"run-{next(self._numbers)}"))
        self.result = json.loads(last_line)
        return taken

    def reused(self) -> Taken:
        """The same command where everything is published already."""
        return _run(self._command("reused"))[0]

    def bare(self) -> Taken:
        """The script."""
        output = self._folder / f"bare-{next(self._numbers)}"
        taken, self.script_said = _run([str(SCRIPT), str(self._csv), str(output)])
        return taken

    def _command(self, storage: str) -> list[str]:
        settings = (f"data.source={self._csv}", f"storage={self._folder / storage}")
        overrides = [word for setting in settings for word in ("--set", setting)]
        return ["-m", "batchtrain", "run", str(SPEC), "--json", *overrides]


def _run(arguments: Sequence[str]) -> tuple[Taken, str]:
    """Run this Python with arguments, and give what it took and the last line that it printed.

    Raises:
        RuntimeError: If it fails.
    """
    command = [sys.executable, *arguments]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(
            f"expected exit code 0 of {' '.join(command)}, found {done.returncode}. "
            f"Run it by hand; it ended with\n{done.stderr[-2000:]}"
        )
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Taken(wall_s, cpu_s), done.stdout.strip().rpartition("\n")[2]


def _show(taken: Mapping[str, Sequence[Taken]], found: Sequence[Comparison], runs: _Runs) -> None:
    lines = []
    for name, each in taken.items():
        wall = Spread.of([run.wall_s for run in each])
        cpu = Spread.of([run.cpu_s for run in each])
        lines.append([name, f"{wall:.2f}", f"{cpu:.2f}"])
    show("drug200, whole process, seconds", ["", "on the clock", "of CPU time"], lines)
    goals = {FRESH: "1.0, at most 1.5", REUSED: ""}
    lines = [
        [
            f"{each.ours} / {each.theirs}",
            f"{each.wall:.2f}",
            f"{each.cpu:.2f}",
            goals[each.ours],
        ]
        for each in found
    ]
    show("times as long", ["", "on the clock", "by CPU time", "goal"], lines)
    stages = ", ".join(f"{each['name']} {each['seconds']:.2f} s" for each in runs.result["stages"])
    print(f"the last run: {stages}; test accuracy {runs.result['metrics']['test']['accuracy']:.3f}")
    print(f"the last script: {runs.script_said}")


if __name__ == "__main__":
    main()
