"""Everything that changes while a model trains, and its two forms: live, and on storage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from batchtrain.errors import ArtifactError
from batchtrain.models.optim import EarlyStop, Schedule
from batchtrain.models.state import load_optimizer, optimizer_json, optimizer_tensors

__all__ = ["TrainState", "weights_of"]

MODEL, OPTIMIZER, BEST = "model/", "optimizer/", "best/"


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

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights that the trained model is known by: the best, or else the last."""
        return self.best_weights or weights_of(self.model)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """All tensors as safetensors, and the rest as JSON."""
        tensors = {f"{MODEL}{name}": value for name, value in weights_of(self.model).items()}
        tensors |= {f"{BEST}{name}": value for name, value in self.best_weights.items()}
        tensors |= {
            f"{OPTIMIZER}{name}": value.cpu().clone()
            for name, value in optimizer_tensors(self.optimizer, self.model).items()
        }
        document = {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "loss_rows": self.loss_rows,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "stopped": self.stopped,
            "history": self.history,
            "optimizer": optimizer_json(self.optimizer, self.model),
            "schedule": self.schedule.state(),
            "early_stop": self.early_stop.state() if self.early_stop else None,
        }
        return safetensors.torch.save(tensors), json.dumps(document, allow_nan=False).encode()

    def load_bytes(self, tensors: bytes, document: bytes, *, where: str) -> None:
        """Become the state that `to_bytes` was called on; the next step is then the same.

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


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU, each with memory of its own."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
