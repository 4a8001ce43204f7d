"""A cold `batchtrain run` of drug200 against a bare script: `python -m benchmarks.cold_run`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchtrain.tables.samples import write_sample
from benchmarks.paired import Contender, Spread, Taken, compare, run_in_turns, show, write_json

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "jobs" / "specs" / "drug200.yaml"
SCRIPT = ROOT / "benchmarks" / "bare_drug200.py"

FRESH, REUSED, BARE = "batchtrain run", "the second run", "bare script"


class Child:
    """Runs a command from its start to its end, a new process each time.

    Attributes:
        last_line: What the latest run printed last.
    """

    def __init__(self, command: Sequence[str], *, appended: Sequence[str] = ()) -> None:
        """Set what is run.

        Args:
            command: Its first words.
            appended: One of these each time is put behind the last word, as the place of the
                output; without any the command is run as it is.
        """
        self._command = list(command)
        self._folders = iter(appended)
        self._varies = bool(appended)
        self.last_line = ""

    def __call__(self) -> Taken:
        """Run the command once.

        Raises:
            RuntimeError: If it fails; with the end of what it wrote.
        """
        command = list(self._command)
        if self._varies:
            command[-1] += next(self._folders)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environ())
        wall_s = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(
                f"expected {command} to end with 0, found {done.returncode}:\n{done.stderr[-2000:]}"
            )
        self.last_line = done.stdout.strip().rpartition("\n")[2]
        cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return Taken(wall_s, cpu_s)
