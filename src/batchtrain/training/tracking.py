"""TensorBoard event files: the tags that people look for, without slowing the loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLog"]

BURST_SECONDS = 1.0
"""Step losses are handed on so often: each time wakes a thread that takes turns with the loop."""
QUEUED_EVENTS = 100_000
"""So many wait for that thread before the loop has to; a burst is smaller."""


class TensorBoardLog:
    """Writes one run's event files.

    Tags: `Loss/train` by global step; `loss` with `training` and `validation`,
    `Accuracy/<split>` in percent (or `R2/<split>`) and `learning_rate` by epoch; the graph.
    """

    def __init__(self, folder: Path, *, every_steps: int, purge_step: int) -> None:
        """Open the event files.

        Args:
            folder: Where they go.
            every_steps: Every how many steps `Loss/train` is written.
            purge_step: The step from which on older events in the folder are void.
        """
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, max_queue=QUEUED_EVENTS)
        self._every_steps = every_steps
        self._waiting: list[tuple[int, float, float]] = []
        self._last_burst = time.monotonic()

    def graph(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Draw the model; one that cannot be traced is left out with a warning in the log."""
        was_training = model.training
        model.eval()
        with warnings.catch_warnings():
            # The tracer of torch is deprecated and has no successor that TensorBoard reads.
            warnings.simplefilter("ignore")
            try:
                # add_graph would check the trace, and for that import a second of compilers.
                traced = torch.jit.trace(model, inputs, check_trace=False)
                self._writer.add_graph(traced, inputs)
            except Exception as error:  # noqa: BLE001 - a drawing must not end a training
                self._writer.add_text("graph", f"the model could not be traced: {error}")
        model.train(was_training)

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
        self._write_steps()
        self._writer.close()

    def _write_steps(self) -> None:
        for step, loss, heard in self._waiting:
            self._writer.add_scalar("Loss/train", loss, step, walltime=heard)
        self._waiting.clear()
        self._last_burst = time.monotonic()
