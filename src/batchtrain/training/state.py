"""Everything that changes while a model trains, and its two forms: live, and on storage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from batchtrain.errors import ArtifactError, DivergedError
from batchtrain.models.optim import EarlyStop, Schedule
from batchtrain.models.state import load_optimizer, optimizer_json, optimizer_tensors

__all__ = ["Snapshot", "TrainState", "weights_of"]

MODEL, OPTIMIZER, BEST = "model/", "optimizer/", "best/"


@dataclass(frozen=True)
class Snapshot:
    """A training run between two steps, as it was at that moment.

    Attributes:
        tensors: Weights, moments and the best weights so far, on the CPU.
        learned: The names of those that a step changes; others may hold infinity on purpose.
        document: All the rest, as JSON.
    """

    tensors: Mapping[str, Tensor]
    learned: frozenset[str]
    document: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Global steps taken."""
        return int(self.document["step"])

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return int(self.document["epoch"])

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are the best so far."""
        return int(self.document["best_epoch"])

    def sha256(self) -> str:
        """The hash of all this; equal for two runs that are the same to the last bit.

        What a resume could not repeat is left out: it says how the state came about.
        """
        exact = {key: value for key, value in self.document.items() if key != "inexact"}
        tensors, document = replace(self, document=exact).to_bytes()
        return hashlib.sha256(tensors + document).hexdigest()

    def to_bytes(self) -> tuple[bytes, bytes]:
        """All tensors as safetensors, and the rest as JSON.

        Raises:
            DivergedError: If a weight or a moment is not finite: the step that made it so has
                a finite loss, so nobody has noticed yet, and a resume could never recover.
        """
        for name in sorted(self.learned):
            if not bool(self.tensors[name].isfinite().all()):
                raise DivergedError(
                    f"expected finite weights after step {self.step}, found NaN or infinity in "
                    f"{name!r}; this state is not saved. Lower `training.optimizer.lr`, or look "
                    "for extreme values in the data"
                )
        document = json.dumps(self.document, allow_nan=False).encode()
        return safetensors.torch.save(dict(self.tensors)), document


@dataclass
class TrainState:
    """One training run between two steps.

    Attributes:
        model: With its current weights.
        optimizer: With its moments.
        schedule: Sets the learning rate at the end of an epoch.
        early_stop: None where the spec asks for none.
        epoch: Epochs that are over.
        step: Global steps taken.
        loss_sum: Sum over the rows of the epoch so far of their batch's mean loss.
        loss_rows: Rows of the epoch so far.
        best_epoch: The epoch with the lowest validation loss, or without one the latest epoch; 0
            before the first.
        best_loss: That validation loss; inf without one.
        best_weights: The weights after that epoch; empty without a validation loss.
        stopped: Whether early stopping has ended the run.
        history: One record an epoch; it holds no time and no host.
        inexact: One record for each choice of the machine that a resume could not repeat; empty
            where the run is the same, bit for bit, as one that nobody interrupted.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    early_stop: EarlyStop | None
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    inexact: list[dict[str, Any]] = field(default_factory=list)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights that the trained model is known by: the best, or else the last."""
        return self.best_weights or weights_of(self.model)

    def snapshot(self) -> Snapshot:
        """A copy of all this on the CPU, which the next step does not change."""
        tensors = {f"{MODEL}{name}": value for name, value in weights_of(self.model).items()}
        # They are replaced as a whole, never written into.
        tensors |= {f"{BEST}{name}": value for name, value in self.best_weights.items()}
        moments = {
            f"{OPTIMIZER}{name}": value.to("cpu", copy=True)
            for name, value in optimizer_tensors(self.optimizer, self.model).items()
        }
        parameters = {
            f"{MODEL}{name}" for name, value in self.model.named_parameters() if value.requires_grad
        }
        return Snapshot(
            tensors={**tensors, **moments},
            learned=frozenset(parameters | set(moments)),
            document={
                "epoch": self.epoch,
                "step": self.step,
                "loss_sum": self.loss_sum,
                "loss_rows": self.loss_rows,
                "best_epoch": self.best_epoch,
                "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
                "stopped": self.stopped,
                "history": list(self.history),
                "inexact": list(self.inexact),
                "optimizer": optimizer_json(self.optimizer, self.model),
                "schedule": self.schedule.state(),
                "early_stop": self.early_stop.state() if self.early_stop else None,
            },
        )

    def load_bytes(self, tensors: bytes, document: bytes, *, where: str) -> None:
        """Become the state that the snapshot was taken of; the next step is then the same.

        Raises:
            ArtifactError: If it belongs to another model or spec.
        """
        saved: Mapping[str, Any] = json.loads(document)
        try:
            loaded = safetensors.torch.load(tensors)
            self.model.load_state_dict(_below(loaded, MODEL))
        except (RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"expected a checkpoint of this model in {where}, found another's ({error}). "
                "Delete the run's folder to start it anew"
            ) from error
        load_optimizer(self.optimizer, self.model, _below(loaded, OPTIMIZER), saved["optimizer"])
        self.schedule.load_state(saved["schedule"])
        if self.early_stop is not None:
            self.early_stop.load_state(saved["early_stop"])
        self.epoch = int(saved["epoch"])
        self.step = int(saved["step"])
        self.loss_sum = float(saved["loss_sum"])
        self.loss_rows = int(saved["loss_rows"])
        self.best_epoch = int(saved["best_epoch"])
        self.best_loss = math.inf if saved["best_loss"] is None else float(saved["best_loss"])
        self.best_weights = _below(loaded, BEST)
        self.stopped = bool(saved["stopped"])
        self.history = list(saved["history"])
        self.inexact = list(saved["inexact"])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU, each with memory of its own."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
