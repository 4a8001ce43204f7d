"""`batchtrain` as its command line runs it, which notes when it came to what.

Usage: `python -m benchmarks.ray_child FOLDER [--unset NAME]... [--all-callbacks] -- run SPEC ...`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from batchtrain import points, surroundings
from batchtrain.cli.app import app
from batchtrain.cli.console import ConsoleProgress
from batchtrain.engines import session
from benchmarks.ray_marks import DRIVER, noting_steps, write_marks

__all__ = ["main"]


def main() -> None:
    """Run a command of `batchtrain` and write the marks beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_child", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the marks are written to")
    parser.add_argument("--unset", nargs="*", default=[], help="settings of Ray that stay its own")
    parser.add_argument("--all-callbacks", action="store_true", help="start all that Ray starts")
    parser.add_argument("command", nargs="+", help="what batchtrain is to do")
    asked = parser.parse_args()
    for name in asked.unset:
        del session.SETTINGS[name]
    marks = _Marks(asked.folder, all_callbacks=asked.all_callbacks)
    with ExitStack() as stack:
        for owner, attribute, around in marks.watched():
            wrapped = around(getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        try:
            app(args=asked.command, prog_name="batchtrain")
        finally:
            marks.at["peak_bytes"] = _peak_bytes()
            write_marks(asked.folder, DRIVER, marks.at)


Around = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Marks:
    """Wraps what a run passes anyway.

    Attributes:
        at: Name to the time of the clock; under `stages` the start and the end of each.
    """

    def __init__(self, folder: Path, *, all_callbacks: bool) -> None:
        self.at: dict[str, Any] = {"stages": {}}
        self._folder = folder
        self._all_callbacks = all_callbacks

    def watched(self) -> list[tuple[Any, str, Around]]:
        """Classes, the names of their methods, and what to put around them."""
        return [
            (session.RaySession, "connect", partial(self._noted, "ray asked", "ray started")),
            (session.RaySession, "close", partial(self._noted, "closing", "closed")),
            (surroundings.ChosenLauncher, "__call__", partial(self._noted, "launch", "launched")),
            (surroundings.ChosenLauncher, "_chosen", self._listening),
            (ConsoleProgress, "stage_started", self._stage_started),
            (ConsoleProgress, "stage_finished", self._stage_finished),
        ]

    def _noted(self, before: str, after: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Note the first call."""

        def call(*args: Any, **options: Any) -> Any:
            self.at.setdefault(before, time.time())
            result = method(*args, **options)
            self.at.setdefault(after, time.time())
            return result

        return call

    def _stage_started(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(progress: ConsoleProgress, name: str) -> None:
            self.at["stages"][name] = [time.time()] * 2
            self.at.setdefault(name, time.time())
            method(progress, name)

        return call

    def _stage_finished(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(progress: ConsoleProgress, name: str, *args: Any) -> None:
            self.at["stages"][name][1] = time.time()
            if name == "prepare":
                self.at["prepared"] = time.time()
            method(progress, name, *args)

        return call

    def _listening(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Let whoever takes the steps note them."""

        def call(*args: Any, **options: Any) -> Any:
            launcher = method(*args, **options)
            listeners = partial(noting_steps, str(self._folder))
            if hasattr(launcher, "_listeners"):
                launcher._listeners = listeners
                if self._all_callbacks:
                    _start_all_callbacks()
            else:
                points.listen(listeners(0, 1))
            return launcher

        return call


def _start_all_callbacks() -> None:
    from batchtrain.training import ray_trainer

    del ray_trainer._Trainer._create_default_callbacks


def _peak_bytes() -> int:
    """The most that this program had in memory; what `getrusage` says begins with its parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
