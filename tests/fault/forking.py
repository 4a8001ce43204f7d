"""Processes that may be killed: forked from a small server that has imported everything."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchtrain import points
from batchtrain.storage import FolderStorage
from batchtrain.storage.objects import ObjectStorage
from batchtrain.testing.faults import Fault, FaultStorage, PointFaults
from tests.fault.scenarios import SCENARIOS, SEARCH

__all__ = ["Forks", "forks"]

ALL = {**SCENARIOS, SEARCH.name: SEARCH}
ROOT = Path(__file__).resolve().parents[2]


class Forks:
    """Runs scenarios, each in a process of its own."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(
        self,
        scenario: str,
        storage: str | Path,
        folder: Path,
        *,
        faults: Sequence[Fault] = (),
        point_faults: str = "",
        environ: dict[str, str] | None = None,
        told: Path | None = None,
    ) -> tuple[int, int]:
        """Run a scenario on a folder or an address.

        With `told` each point that it passes becomes a line of that file, before any fault of it.

        Returns:
            The number of the signal that ended the process, 0 where it ended by itself, and what
            it had acknowledged before, 0 for nothing.
        """
        order = {
            "scenario": scenario,
            "storage": str(storage),
            "folder": str(folder),
            "faults": [asdict(fault) for fault in faults],
            "point_faults": point_faults,
            "environ": environ or {},
            "told": str(told or ""),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{json.dumps(order)}\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        assert answer["code"] == 0, f"the scenario failed: {order}"
        return answer["signal"], answer["acknowledged"]


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the server, and end it."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fault.forking"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ,
    ) as server:
        yield Forks(server)
        assert server.stdin is not None
        server.stdin.close()


def serve() -> None:
    """Fork once for each line of standard input and say how the child ended."""
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        # A child of a process with threads would hang where one of them held a lock.
        assert threading.active_count() == 1
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(_run(order, writer))
        os.close(writer)
        acknowledged = _read_all(reader)
        _pid, status = os.waitpid(child, 0)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        answer = {"signal": signal, "code": code, "acknowledged": max(acknowledged, default=0)}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _run(order: dict[str, Any], writer: int) -> int:
    os.environ.update(order["environ"])
    os.fsync = lambda file: None  # see the fixture of the same effect in `test_commits`
    place = order["storage"]
    inner = ObjectStorage(place) if "://" in place else FolderStorage(Path(place))
    storage = FaultStorage(inner, [Fault(**fault) for fault in order["faults"]])
    points.listen(_listener(PointFaults.parse(order["point_faults"]), order["told"]))
    try:
        ALL[order["scenario"]].run(
            storage, Path(order["folder"]), lambda done: os.write(writer, bytes([done]))
        )
    except BaseException:  # noqa: BLE001  # whatever it is, the parent is told
        traceback.print_exc()
        return 1
    return 0


def _listener(faults: PointFaults, told: str) -> Callable[[str], None]:
    if not told:
        return faults
    file = os.open(told, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def tell(name: str) -> None:
        os.write(file, f"{name}\n".encode())
        faults(name)

    return tell


def _read_all(reader: int) -> bytes:
    """What a child said until it ended."""
    with os.fdopen(reader, "rb") as file:
        return file.read()


if __name__ == "__main__":
    # What a stage imports late is imported once here, not again in each child.
    for late in (
        "pandas",
        "matplotlib.backends.backend_svg",
        "batchtrain.evaluation.evaluate",
        "batchtrain.export.export",
        "batchtrain.reporting.svg",
        "batchtrain.reporting.search",
        "batchtrain.training.train",
    ):
        importlib.import_module(late)
    serve()
    os._exit(0)  # taking torch apart takes seconds, and there is nothing to save
