"""TensorBoard's view of a run: losses, scores, the graph and the hyper-parameters."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, TaggedRunMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import nn

from batchtrain.artifacts import RunLayout
from batchtrain.spec.evaluation import TensorBoardSpec
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import Storage, local_folder
from batchtrain.training.event_files import (
    EventFile,
    WrittenEvents,
    scalar_bytes,
    scalar_event,
    written_events,
)
from batchtrain.training.run_log import Ended, HyperParameter, epoch_losses, epoch_scalars

__all__ = ["EventFolder", "TensorBoardLog"]

STEP_TAG = "Loss/train"
LOSS_TAG = "loss"
BURST_SECONDS = 1.0
"""What waits is written so often: all at once, a step takes less than 2 us."""


class EventFolder:
    """The folder of a run's event files, also where storage has no folder: then they are uploaded.

    Attributes:
        path: Where new files are written.
    """

    def __init__(self, loaded: LoadedSpec, layout: RunLayout) -> None:
        """Find it; nothing is made yet."""
        wanted = loaded.spec.tracking.tensorboard
        folder = local_folder(layout.storage)
        self._upload_to: tuple[Storage, str] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(wanted, TensorBoardSpec):
            self.path = loaded.path.parent / wanted.dir / layout.root
        elif folder is not None:
            self.path = folder / layout.tensorboard
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="batchtrain-events-")
            self._upload_to = layout.storage, layout.tensorboard
            self.path = Path(self._temporary.name)

    def earlier(self, below: str = "") -> dict[str, bytes]:
        """Name to content of the event files right in the folder, or in one below it."""
        if self._upload_to is None:
            found = (self.path / below).glob("events.out.tfevents.*")
            return {path.name: path.read_bytes() for path in found}
        storage, key = self._upload_to
        folder = f"{key}/{below}" if below else key
        keys = {each.removeprefix(f"{folder}/"): each for each in storage.list(folder)}
        return {name: storage.read(each) for name, each in keys.items() if "/" not in name}

    def close(self) -> None:
        """Upload the files where they are not at their place yet."""
        if self._upload_to is None or self._temporary is None:
            return
        storage, key = self._upload_to
        with self._temporary:
            for path in sorted(self.path.rglob("*")):
                if path.is_file():
                    name = path.relative_to(self.path).as_posix()
                    storage.write(f"{key}/{name}", path.read_bytes())


class TensorBoardLog:
    """Writes one run's event files.

    Tags: `Loss/train` by global step; by epoch `loss`, with `training` and `validation` as runs of
    their own, `Accuracy/<split>` in percent (or `R2/<split>`), `<metric>/<split>` and
    `learning_rate`; the graph; the hyper-parameters, as the HParams plugin reads them.

    Each of them is there once, however often the run was cut: `purge_step` voids the steps that are
    taken again, an epoch that is there already is left out, and one that got lost is written anew.
    What is void is not deleted: another process may be writing to the same folder.
    """

    name = "the event files for TensorBoard"

    def __init__(
        self,
        folder: EventFolder,
        *,
        run: str,
        every_steps: int,
        monitored: Sequence[str],
        step: int,
        history: Sequence[Mapping[str, Any]],
    ) -> None:
        """Open the event files.

        Args:
            folder: Where they go.
            run: The run's name and id.
            every_steps: Every how many steps `Loss/train` is written.
            monitored: The splits whose scores are written.
            step: The global step that the attempt begins with.
            history: The records of the epochs before it.
        """
        self._folder = folder
        self._run = run
        self._every_steps = every_steps
        self._monitored = monitored
        earlier = folder.earlier()
        self._written: dict[str, WrittenEvents] = {"": written_events(earlier, without=STEP_TAG)}
        self._written[""].purge(step)
        self._files = {"": EventFile(folder.path, earlier=earlier, purge_step=step)}
        self._last_burst = time.monotonic()
        self._next_step = step
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._heard: list[float] = []
        self._newest: Mapping[str, Any] | None = None
        for record in history:
            self._add_epoch(record)

    def hyper_parameters(self, values: Mapping[str, HyperParameter]) -> None:
        """See `RunLog.hyper_parameters`."""
        if metadata.SESSION_START_INFO_TAG in self._written[""].others:
            return
        summary = hparams_pb(dict(values), trial_id=self._run)
        self._files[""].add(Event(step=0, wall_time=time.time(), summary=summary))

    def graph(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Draw the model; one that cannot be traced is left out with a word in the log."""
        if self._written[""].has_graph:
            return
        # Both are parts of torch.utils.tensorboard, whose import is not quick.
        from torch.utils.tensorboard._pytorch_graph import graph
        from torch.utils.tensorboard.summary import text

        file, now = self._files[""], time.time()
        with warnings.catch_warnings():
            # The tracer of torch is deprecated and has no successor that TensorBoard reads.
            warnings.simplefilter("ignore")
            try:
                # graph() would check the trace, and for that import a second of compilers.
                # A copy, since a forward may change buffers, and other ranks draw nothing.
                drawn = copy.deepcopy(model).eval()
                traced = torch.jit.trace(drawn, inputs, check_trace=False)
                nodes, statistics = graph(traced, inputs)
            except Exception as error:  # noqa: BLE001 - a drawing must not end a training
                summary = text("graph", f"the model could not be traced: {error}")
                file.add(Event(step=0, wall_time=now, summary=summary))
                return
        run = TaggedRunMetadata(tag="step1", run_metadata=statistics.SerializeToString())
        file.add(Event(wall_time=now, graph_def=nodes.SerializeToString()))
        file.add(Event(wall_time=now, tagged_run_metadata=run))

    def steps(self, first_step: int, losses: Sequence[float]) -> None:
        """See `RunLog.steps`; they are written within about a second."""
        heard = time.time()
        if first_step < self._next_step:
            self._go_back(first_step)
        self._next_step = first_step + len(losses)
        first = -first_step % self._every_steps
        for place in range(first, len(losses), self._every_steps):
            self._steps.append(first_step + place)
            self._losses.append(losses[place])
            self._heard.append(heard)
        self._write_in_bursts()

    def epoch(self, record: Mapping[str, Any]) -> None:
        """See `RunLog.epoch`."""
        self._add_epoch(record)
        self._write_in_bursts()

    def flush(self) -> None:
        """See `RunLog.flush`."""
        self._add_steps()
        for file in self._files.values():
            file.flush()
        self._last_burst = time.monotonic()

    def close(self, ended: Ended) -> None:
        """See `RunLog.close`."""
        self._add_steps()
        with ExitStack() as stack:
            stack.callback(self._folder.close)
            for file in self._files.values():
                stack.callback(file.close)

    def _go_back(self, step: int) -> None:
        """The training went back, as after a loss that is not finite: its steps are taken anew."""
        self._add_steps()
        self._files[""].purge(step)
        if self._newest is not None and self._newest["epoch"] >= step:
            # What is void goes by steps: with one step an epoch, that of the newest epoch too.
            self._written[""].purge(step)
            self._add_epoch(self._newest)

    def _add_steps(self) -> None:
        if self._steps:
            data = scalar_bytes(STEP_TAG, self._steps, self._losses, self._heard)
            self._files[""].add(data)
            self._steps, self._losses, self._heard = [], [], []

    def _write_in_bursts(self) -> None:
        if time.monotonic() - self._last_burst >= BURST_SECONDS:
            self.flush()

    def _add_epoch(self, record: Mapping[str, Any]) -> None:
        epoch, self._newest = int(record["epoch"]), record
        for tag, value in epoch_scalars(record, self._monitored).items():
            self._add("", tag, value, epoch)
        for name, value in epoch_losses(record).items():
            # TensorBoard draws one tag of several runs into one picture.
            self._add(f"{LOSS_TAG}_{name}", LOSS_TAG, value, epoch)

    def _add(self, below: str, tag: str, value: float, epoch: int) -> None:
        if below not in self._files:
            earlier = self._folder.earlier(below)
            self._written[below] = written_events(earlier, without=STEP_TAG)
            path = self._folder.path / below
            self._files[below] = EventFile(path, earlier=earlier, purge_step=None)
        if not self._written[below].has(tag, epoch):
            self._files[below].add(scalar_event(tag, value, epoch, time.time()))
