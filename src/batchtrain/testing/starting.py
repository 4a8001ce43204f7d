"""Starting the processes of ranks, and ending them whatever happens."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from batchtrain.errors import RankLostError
from batchtrain.testing.child import Report, Surroundings, run_rank, stack_path

__all__ = ["PRELOADED", "ServerGoneError", "started"]

PRELOADED = (
    "batchtrain.testing.gloo",
    "batchtrain.training.rank",
    "pandas",
    "batchtrain.training.block_metrics",
)
"""Modules that are slow to import, pandas by pyarrow's first array; the server that forks the ranks
imports them once."""

KILL_SECONDS = 10.0


class ServerGoneError(RankLostError):
    """The process that forks the ranks has ended before all were started."""


@contextmanager
def started(
    target: Callable[[int, Report], Any], size: int, stacks: Path | None
) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """Start a process for each rank, with a pipe to it; at the end none is left.

    The first call in the life of a process starts the server that forks them, which takes as long
    as importing torch does.
    """
    context = multiprocessing.get_context("forkserver")
    if stacks is not None:
        stacks = stacks.absolute()
        stacks.mkdir(parents=True, exist_ok=True)
    surroundings = Surroundings(dict(os.environ), os.getcwd(), stacks)  # noqa: PTH109
    members: list[tuple[BaseProcess, Connection]] = []
    with ExitStack() as endings:
        endings.callback(_remove_empty, stacks, size)
        _start_server(context)
        with _main_module_hidden(target):
            for rank in range(size):
                ours, theirs = context.Pipe(duplex=True)
                endings.callback(ours.close)
                with theirs:
                    process = context.Process(
                        target=run_rank, args=(rank, theirs, surroundings), name=f"rank-{rank}"
                    )
                    endings.callback(_end, process)
                    _start(process)
                # Not among the arguments: they are unpickled before the process is in its
                # surroundings, and a storage opens its client with the environment it finds.
                with suppress(OSError):
                    ours.send(target)
                members.append((process, ours))
        yield members


def _start(process: BaseProcess) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        raise ServerGoneError(
            f"expected {process.name} to start, found that the process which forks the ranks has "
            "ended, as it does by a SIGTERM to all processes of a group. Run the same command again"
        ) from error


def _start_server(context: multiprocessing.context.ForkServerContext) -> None:
    """Start the process that forks the ranks, once in the life of this one."""
    context.set_forkserver_preload(list(PRELOADED))
    before = os.environ.get("PYTHONSAFEPATH")
    # It would look for modules in the working directory first, where the user's files are.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _main_module_hidden(target: object) -> Iterator[None]:
    """Keep multiprocessing from importing the program's main file in every rank.

    A script that calls us at its top level would call us again in each of them.
    """
    if _is_from_main(target):
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _is_from_main(value: object) -> bool:
    if isinstance(value, partial):
        return any(map(_is_from_main, (value.func, *value.args, *value.keywords.values())))
    return "__main__" in (getattr(value, "__module__", None), type(value).__module__)


def _end(process: BaseProcess) -> None:
    """Kill a process that still runs and give back what it holds here."""
    if process.pid is None:
        return
    if process.is_alive():
        process.kill()
        process.join(KILL_SECONDS)
    # What not even SIGKILL ends hangs in the kernel, and may be left alone.
    with suppress(ValueError):
        process.close()


def _remove_empty(stacks: Path | None, size: int) -> None:
    """Remove the stack files that nobody needed, and their folder if nothing else is in it."""
    if stacks is None:
        return
    for rank in range(size):
        path = stack_path(stacks, rank)
        if path.exists() and not path.stat().st_size:
            path.unlink()
    with suppress(OSError):
        stacks.rmdir()
