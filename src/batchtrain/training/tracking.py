"""What people see of a training: it is told to the terminal and to the logs of the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import InterruptedRunError
from batchtrain.models.inputs import ModelInputs
from batchtrain.progress import Progress, TrainingStanding
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.hyper_parameters import hyper_parameters
from batchtrain.training.keeping import Saver
from batchtrain.training.machine import MachineChoices
from batchtrain.training.mlflow_log import open_mlflow
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.run_log import Ended, RunLog
from batchtrain.training.state import Snapshot, TrainState
from batchtrain.training.tensorboard_log import EventFolder, TensorBoardLog

__all__ = ["LogSources", "RunWatcher", "TensorBoardLog", "open_run_logs"]

TOLD_SECONDS = 1.0
"""How often it is said how far the training is."""


class RunWatcher:
    """Hands what happens to the progress and to the logs; rank 0 has one that has any.

    A full disk under the event files, or a server that is gone, is no reason to lose a model: the
    log ends with a note, the run does not.
    """

    def __init__(
        self,
        progress: Progress,
        logs: Sequence[RunLog] = (),
        *,
        plan: TrainingPlan | None = None,
        state: TrainState | None = None,
    ) -> None:
        """Begin to watch when entered.

        Args:
            progress: Hears how far the training is.
            logs: Where it is written down.
            plan: How far it is to go; None where nobody is told.
            state: Where it is.
        """
        self._progress = progress
        self._logs = list(logs)
        self._plan = plan
        self._state = state
        self._loss: float | None = None
        self._told = (0.0, -1)
        self._telling = threading.Lock()
        self._leaving = threading.Event()
        self._pulse = threading.Thread(target=self._tell_in_long_steps, name="pulse", daemon=True)

    @classmethod
    def silent(cls) -> RunWatcher:
        """One that tells nobody, for the ranks other than 0."""
        return cls(Progress())

    def __enter__(self) -> Self:
        """Say where the training begins; leaving writes everything out, also on failure."""
        if self._plan is not None:
            self._tell()
            self._pulse.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write everything out."""
        self._leaving.set()
        if self._pulse.is_alive():
            self._pulse.join()
        ended = _ended(kind)
        self._each(lambda log: log.close(ended), is_last=True)

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        self._each(lambda log: log.steps(first_step, losses))
        if losses:
            self._loss = sum(losses) / len(losses)
        if time.monotonic() - self._told[0] >= TOLD_SECONDS:
            self._tell()

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        self._progress.epoch_finished(record, self._plan.epochs if self._plan is not None else 0)
        self._each(lambda log: log.epoch(record))

    def flush(self) -> None:
        """Let what was logged outlive this process."""
        self._each(lambda log: log.flush())

    def before(self, saver: Saver | None) -> Saver | None:
        """A saver that flushes the logs first: a resume then finds there what came before it."""
        return None if saver is None else _LogsFirst(saver, self.flush) if self._logs else saver

    def _tell(self) -> None:
        """Say how far the training is; under a lock, since two threads do."""
        plan, state = self._plan, self._state
        if plan is None or state is None:
            return
        with self._telling:
            # The state may move on meanwhile: both come from one step.
            step = state.step
            epoch = min(step // plan.steps_per_epoch, max(plan.epochs - 1, 0))
            self._told = time.monotonic(), step
            self._progress.training(
                TrainingStanding(
                    epoch=epoch + 1,
                    epochs=plan.epochs,
                    step=step - epoch * plan.steps_per_epoch,
                    steps=plan.steps_per_epoch,
                    rows=plan.rows_before(step),
                    epoch_rows=plan.order.num_rows,
                    total_rows=plan.rows_before(plan.last_step),
                    loss=self._loss,
                )
            )

    def _tell_in_long_steps(self) -> None:
        """Say so between two readings of losses too, which are many steps apart.

        A training that stands still is not told: whoever watches must see that it does.
        """
        while not self._leaving.wait(TOLD_SECONDS):
            told_at, step = self._told
            late = time.monotonic() - told_at >= 2 * TOLD_SECONDS
            if late and self._state is not None and self._state.step != step:
                self._tell()

    def _each(self, call: Callable[[RunLog], None], *, is_last: bool = False) -> None:
        for log in list(self._logs):
            try:
                call(log)
            except Exception as error:  # noqa: BLE001 - a log must not end a training
                self._logs.remove(log)
                self._progress.note(f"{log.name}: no more is written there of this run: {error}")
                if not is_last:
                    with suppress(Exception):
                        log.close("failed")


class _LogsFirst:
    """A saver that lets the logs be flushed before it saves."""

    def __init__(self, saver: Saver, flush: Callable[[], None]) -> None:
        self._saver = saver
        self._flush = flush

    @property
    def is_idle(self) -> bool:
        """See `Saver.is_idle`."""
        return self._saver.is_idle

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """See `Saver.save`."""
        self._flush()
        self._saver.save(snapshot, wait=wait)


def _ended(kind: type[BaseException] | None) -> Ended:
    if kind is None:
        return "finished"
    stops = (InterruptedRunError, KeyboardInterrupt)
    return "interrupted" if issubclass(kind, stops) else "failed"


@dataclass(frozen=True)
class LogSources:
    """What the logs of a run are told of it when they are opened.

    Attributes:
        loaded: The spec.
        prepared: The rows.
        layout: Where the run lies.
        machine: The choices in force.
        inputs: The widths of the model.
        plan: How far to train.
        loss: The name of the loss.
    """

    loaded: LoadedSpec
    prepared: PreparedData
    layout: RunLayout
    machine: MachineChoices
    inputs: ModelInputs
    plan: TrainingPlan
    loss: str

    def hyper_parameters(self) -> Mapping[str, Any]:
        """What the run is trained with."""
        return hyper_parameters(
            self.loaded.spec,
            self.prepared,
            batch_rows=self.plan.batch_rows,
            loss=self.loss,
            device=self.machine.device,
            workers=self.machine.workers,
        )


def open_run_logs(
    sources: LogSources, state: TrainState, note: Callable[[str], None]
) -> list[RunLog]:
    """Open the logs that the spec asks for; one that cannot be opened is noted and left out."""
    tracking = sources.loaded.spec.tracking
    logs: list[RunLog] = []
    if tracking.tensorboard is not False:
        try:
            logs.append(_event_log(sources, state))
        except Exception as error:  # noqa: BLE001 - a log must not end a training
            note(f"there are no event files for TensorBoard, they cannot be opened: {error}")
    if tracking.mlflow is not None:
        try:
            log = open_mlflow(sources.loaded, sources.layout, tracking.mlflow)
            log.hyper_parameters(sources.hyper_parameters())
            for record in state.history:
                log.epoch(record)
            logs.append(log)
        except Exception as error:  # noqa: BLE001 - see above
            note(f"nothing is logged to MLflow, which cannot be used here: {error}")
    return logs


def _event_log(sources: LogSources, state: TrainState) -> TensorBoardLog:
    """Open the event files; what an earlier try wrote from this step on is void, not deleted.

    Another process may be training the same run and writing to the same folder.
    """
    tracking = sources.loaded.spec.tracking
    with ExitStack() as stack:
        folder = EventFolder(sources.loaded, sources.layout)
        stack.callback(folder.close)
        log = TensorBoardLog(
            folder,
            run=sources.layout.root,
            every_steps=tracking.log_every_steps,
            monitored=tracking.monitor,
            step=state.step,
            history=state.history,
        )
        stack.pop_all()
        stack.callback(log.close, "failed")
        log.hyper_parameters(sources.hyper_parameters())
        device = next(state.model.parameters()).device
        numeric_BF = torch.zeros(2, sources.inputs.num_numeric, device=device)
        codes_BC = torch.zeros(
            2, len(sources.inputs.cardinalities), dtype=torch.int64, device=device
        )
        log.graph(state.model, (numeric_BF, codes_BC))
        log.flush()
        stack.pop_all()
    return log
