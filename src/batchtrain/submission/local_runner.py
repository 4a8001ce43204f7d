"""The process beside a job on this machine: starts it, waits, and writes how it ended.

`python -m batchtrain.submission.local_runner FOLDER` returns at once; the work goes on in a session
of its own, which outlives the terminal that began it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from batchtrain.artifacts.process_identity import this_process
from batchtrain.storage import FolderStorage

__all__ = ["EXIT", "LOG", "PROCESS", "STOP", "WORK", "main"]

WORK = "work"
"""The working directory of the job ..."""
LOG = "log.txt"
"""... what it writes on its terminal ..."""
PROCESS = "process.json"
"""... which process watches it, and since when ..."""
STOP = "stop.json"
"""... that it is to end ..."""
EXIT = "exit.json"
"""... and its exit code."""

STOPPED_BEFORE_START = 130


def main(folder: Path) -> None:
    """Leave the caller's session, run the job of a folder, and write its exit code.

    Args:
        folder: With `job.json`, whose `entrypoint` is run, and the working directory.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    storage = FolderStorage(folder)
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        # Whoever stops the job signals the whole group, so that the job hears of it by itself.
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    process = {"identity": asdict(this_process()), "started": time.time()}
    storage.write(PROCESS, json.dumps(process).encode())
    code = STOPPED_BEFORE_START
    if not asked and not (folder / STOP).exists():
        code = _run(folder, asked)
    storage.write(EXIT, json.dumps({"exit_code": code, "ended": time.time()}).encode())


def _run(folder: Path, asked: list[int]) -> int:
    entrypoint = json.loads((folder / "job.json").read_bytes())["entrypoint"]
    _python, *words = shlex.split(entrypoint)
    child = subprocess.Popen(  # noqa: S603  # no shell, and a constant but for a hash
        [sys.executable, *words], cwd=folder / WORK, stdin=subprocess.DEVNULL
    )
    if asked:
        # It came before there was anybody else to hear it.
        child.send_signal(signal.SIGTERM)
    code = child.wait()
    # As a shell has it: a job that a signal ended.
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main(Path(sys.argv[1]))
