"""What people see of a training: the terminal's progress and TensorBoard's event files."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from batchtrain.artifacts import RunLayout
from batchtrain.errors import StorageError
from batchtrain.models.inputs import ModelInputs
from batchtrain.progress import Progress
from batchtrain.spec.evaluation import TensorBoardSpec
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import Storage, local_folder
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.state import TrainState

__all__ = ["RunWatcher", "TensorBoardLog", "open_event_log"]

BURST_SECONDS = 1.0
"""Step losses are handed on so often: each time wakes a thread that takes turns with the loop."""
TOLD_SECONDS = 1.0
"""How often it is said how many rows are trained."""
QUEUED_EVENTS = 100_000
"""So many wait for that thread before the loop has to; a burst is smaller."""


class TensorBoardLog:
    """Writes one run's event files.

    Tags: `Loss/train` by global step; `loss` with `training` and `validation`,
    `Accuracy/<split>` in percent (or `R2/<split>`) and `learning_rate` by epoch; the graph.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        purge_step: int,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the event files.

        Args:
            folder: Where they go.
            every_steps: Every how many steps `Loss/train` is written.
            purge_step: The step from which on older events in the folder are void.
            on_close: Called when all is written.
        """
        self._on_close = on_close
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, max_queue=QUEUED_EVENTS)
        self._every_steps = every_steps
        self._waiting: list[tuple[int, float, float]] = []
        self._last_burst = time.monotonic()

    def graph(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Draw the model; one that cannot be traced is left out with a warning in the log."""
        with warnings.catch_warnings():
            # The tracer of torch is deprecated and has no successor that TensorBoard reads.
            warnings.simplefilter("ignore")
            try:
                # add_graph would check the trace, and for that import a second of compilers.
                # A copy, since a forward may change buffers, and other ranks draw nothing.
                drawn = copy.deepcopy(model).eval()
                traced = torch.jit.trace(drawn, inputs, check_trace=False)
                self._writer.add_graph(traced, inputs)
            except Exception as error:  # noqa: BLE001 - a drawing must not end a training
                self._writer.add_text("graph", f"the model could not be traced: {error}")

    def steps(self, first_step: int, losses: Sequence[float]) -> None:
        """Take the losses of consecutive steps; they are written within about a second."""
        heard = time.time()
        for step, loss in enumerate(losses, start=first_step):
            if step % self._every_steps == 0:
                self._waiting.append((step, loss, heard))
        if time.monotonic() - self._last_burst >= BURST_SECONDS:
            self._write_steps()

    def epoch(self, record: Mapping[str, Any], monitored: Sequence[str]) -> None:
        """Write one line of the history."""
        self._write_steps()
        epoch = int(record["epoch"])
        losses = {
            key: record[name]
            for key, name in (("training", "train_loss"), ("validation", "valid_loss"))
            if record.get(name) is not None
        }
        if losses:
            self._writer.add_scalars("loss", losses, epoch)
        for split in monitored:
            if f"{split}_accuracy" in record:
                percent = 100 * record[f"{split}_accuracy"]
                self._writer.add_scalar(f"Accuracy/{split}", percent, epoch)
            elif f"{split}_r2" in record:
                self._writer.add_scalar(f"R2/{split}", record[f"{split}_r2"], epoch)
        self._writer.add_scalar("learning_rate", record["lr"], epoch)

    def close(self) -> None:
        """Write everything out; also on failure."""
        with ExitStack() as stack:
            stack.callback(self._on_close)
            stack.callback(self._writer.close)
            self._write_steps()

    def _write_steps(self) -> None:
        for step, loss, heard in self._waiting:
            self._writer.add_scalar("Loss/train", loss, step, walltime=heard)
        self._waiting.clear()
        self._last_burst = time.monotonic()


@dataclass
class RunWatcher:
    """Hands what happens to the terminal and to TensorBoard.

    A full disk under the event files is no reason to lose a model: the log ends, the run does not.
    """

    progress: Progress
    log: TensorBoardLog | None
    monitored: Sequence[str]
    plan: TrainingPlan | None = None
    _told_at: float = 0.0

    @classmethod
    def silent(cls) -> RunWatcher:
        """One that tells nobody, for the ranks other than 0."""
        return cls(Progress(), None, ())

    def __enter__(self) -> Self:
        """Nothing to do; leaving writes everything out, also on failure."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write everything out."""
        self._write(lambda log: log.close())

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        self._write(lambda log: log.steps(first_step, losses))
        if self.plan is not None and time.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = time.monotonic()
            done = self.plan.rows_before(first_step + len(losses))
            self.progress.working("rows trained", done, self.plan.epochs * self.plan.order.num_rows)

    def epoch_done(self, record: dict[str, Any]) -> None:
        """See `batchtrain.training.loop.Watcher`."""
        self.progress.epoch_finished(record, self.plan.epochs if self.plan is not None else 0)
        self._write(lambda log: log.epoch(record, self.monitored))

    def _write(self, call: Callable[[TensorBoardLog], None]) -> None:
        if self.log is None:
            return
        try:
            call(self.log)
        except (OSError, StorageError) as error:
            self.progress.note(
                f"the event files for TensorBoard end here, they cannot be written: {error}"
            )
            log, self.log = self.log, None
            with suppress(Exception):
                log.close()


def open_event_log(
    loaded: LoadedSpec, layout: RunLayout, state: TrainState, inputs: ModelInputs
) -> TensorBoardLog | None:
    """Open the event files; what an earlier try wrote from this step on is void, not deleted.

    Another process may be training the same run and writing to the same folder.
    """
    wanted = loaded.spec.tracking.tensorboard
    if wanted is False:
        return None
    folder = local_folder(layout.storage)
    temporary = None
    if isinstance(wanted, TensorBoardSpec):
        events = loaded.path.parent / wanted.dir / layout.root
    elif folder is not None:
        events = folder / layout.tensorboard
    else:
        temporary = tempfile.TemporaryDirectory(prefix="batchtrain-events-")
        events = Path(temporary.name)

    def on_close() -> None:
        if temporary is not None:
            with temporary:
                _upload(events, layout.storage, layout.tensorboard)

    log = TensorBoardLog(
        events,
        every_steps=loaded.spec.tracking.log_every_steps,
        purge_step=state.step,
        on_close=on_close,
    )
    device = next(state.model.parameters()).device
    numeric_BF = torch.zeros(2, inputs.num_numeric, device=device)
    codes_BC = torch.zeros(2, len(inputs.cardinalities), dtype=torch.int64, device=device)
    log.graph(state.model, (numeric_BF, codes_BC))
    if state.history and state.history[-1]["epoch"] >= state.step > 0:
        # What is void goes by steps, and with one step an epoch this epoch's events went too.
        log.epoch(state.history[-1], loaded.spec.tracking.monitor)
    return log


def _upload(folder: Path, storage: Storage, key: str) -> None:
    """Copy event files to a storage that no file can be opened on."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
