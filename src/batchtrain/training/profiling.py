"""A trace of some steps by torch.profiler, on request: what each operation and kernel cost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile

from batchtrain.artifacts import RunLayout
from batchtrain.spec.evaluation import ProfileSpec
from batchtrain.training.worker import Share, Worker

__all__ = ["ProfiledWorker", "StepTrace", "trace_key"]


def trace_key(layout: RunLayout, spec: ProfileSpec) -> str:
    """Where the trace of these steps lies on the storage."""
    last = spec.start_step + spec.steps - 1
    return f"{layout.root}/profile/rank-0-steps-{spec.start_step}-{last}.json.gz"


class StepTrace:
    """Records the steps that were asked for, of the thread that calls it, and stores the trace.

    It looks on: the numbers that the steps compute are the same. Whatever fails is noted, and
    costs the trace alone.
    """

    def __init__(self, layout: RunLayout, spec: ProfileSpec, note: Callable[[str], None]) -> None:
        """Wait for the first of the steps.

        Args:
            layout: Where the run lies.
            spec: Which steps.
            note: Told where the trace is and how to open it, or why there is none.
        """
        self._layout = layout
        self._key = trace_key(layout, spec)
        self._steps = range(spec.start_step, spec.start_step + spec.steps)
        self._note = note
        self._profile: Any = None
        self._first = self._next = 0
        self._is_over = False

    def __enter__(self) -> Self:
        """Nothing to do; leaving stores what there is, also on failure."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Store the trace, if the training ended among the steps."""
        if self._profile is not None:
            self._guarded(self._store)
        elif not self._is_over and kind is None and self._next:
            self._note(
                f"there is no trace: `tracking.profile` begins with step {self._steps.start}, and "
                f"the last was {self._next - 1}"
            )

    def before_step(self, step: int) -> None:
        """A step is about to begin, with getting its rows; the one before is over."""
        self._next = step + 1
        if self._is_over:
            return
        if self._profile is None and step in self._steps:
            self._first = step
            self._guarded(self._start)
        elif step >= self._steps.stop:
            if self._profile is not None:
                self._guarded(self._store)
            self._is_over = True

    def _start(self) -> None:
        # Else its library says on standard error when it starts and stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        begun = profile(activities=activities, record_shapes=True)
        begun.start()
        self._profile = begun

    def _store(self) -> None:
        ended, self._profile, self._is_over = self._profile, None, True
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended.stop()
        with tempfile.TemporaryDirectory(prefix="batchtrain-profile-") as folder:
            # torch compresses what ends in .gz.
            path = Path(folder) / "trace.json.gz"
            ended.export_chrome_trace(str(path))
            self._layout.storage.write(self._key, path.read_bytes())
        self._note(
            f"the trace of steps {self._first} to {min(self._next, self._steps.stop) - 1} is "
            f"{self._layout.storage.url(self._key)}; open it at https://ui.perfetto.dev, or in "
            "Chrome at chrome://tracing"
        )

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a trace must not end a training
            self._is_over = True
            self._note(f"there is no trace of `tracking.profile`: {error}")


class ProfiledWorker:
    """A worker that tells a trace when a step begins; all else is the worker's own."""

    def __init__(self, worker: Worker, trace: StepTrace, steps_per_epoch: int) -> None:
        self._worker = worker
        self._trace = trace
        self._steps_per_epoch = steps_per_epoch

    def __getattr__(self, name: str) -> Any:
        """What the worker has."""
        return getattr(self._worker, name)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """See `Worker.shares`."""
        shares = self._worker.shares(epoch, first_step)
        begin = epoch * self._steps_per_epoch
        for step in range(begin + first_step, begin + self._steps_per_epoch):
            self._trace.before_step(step)
            share = next(shares, None)
            if share is None:
                return
            yield share
