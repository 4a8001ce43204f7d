"""Everything that changes while a model trains, and its two forms: live, and on storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from batchtrain.errors import ArtifactError, DivergedError
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.schedules import Schedule
from batchtrain.models.state import load_optimizer, optimizer_json, optimizer_tensors
from batchtrain.training.changing import ValueChanges
from batchtrain.training.ema import WeightAverage
from batchtrain.training.precision import LossScaler

__all__ = ["KeptEpoch", "LeftOut", "Snapshot", "TrainState", "weights_of"]

MODEL, OPTIMIZER, AVERAGE, ANCHOR = "model/", "optimizer/", "ema/", "anchor/"
INEXACT = ("inexact", "seconds")
"""What a resume could not repeat: it says how the state came about."""


@dataclass(frozen=True)
class Snapshot:
    """A training run between two steps, as it was at that moment.

    Attributes:
        tensors: Weights, their averages, moments and the best weights so far, on the CPU.
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
    def place(self) -> int:
        """Steps taken, those that were undone too: it only grows, so checkpoints go by it."""
        return self.step + int(self.document.get("undone", 0))

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return int(self.document["epoch"])

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are the best so far."""
        return int(self.document["best_epoch"])

    def sha256(self) -> str:
        """The hash of all this but `INEXACT`; equal for runs that are the same to the last bit."""
        exact = {key: value for key, value in self.document.items() if key not in INEXACT}
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


@dataclass(frozen=True)
class KeptEpoch:
    """An epoch whose weights the trained model holds.

    Attributes:
        epoch: Which.
        value: What it was chosen by; None without a validation split.
        weights: What was measured after it, on the CPU; empty where the last weights are kept.
    """

    epoch: int
    value: float | None
    weights: Mapping[str, Tensor]


@dataclass
class LeftOut:
    """The steps that were left out, since their loss or gradient was not finite.

    Attributes:
        total: In the whole run.
        in_epoch: In the epoch so far.
        in_a_row: Since the last step that was taken.
    """

    total: int = 0
    in_epoch: int = 0
    in_a_row: int = 0


@dataclass
class TrainState:
    """One training run between two steps.

    Attributes:
        model: With its current weights.
        optimizer: With its moments.
        schedule: Sets the learning rate.
        early_stop: None where the spec asks for none.
        scaler: Scales the loss of float16; None for every other precision.
        average: The moving average of the weights; None where the spec asks for none.
        changes: Sets other values from certain epochs on; None where the spec asks for none.
        epoch: Epochs that are over; one that `ended_by` cut short is among them.
        step: Global steps taken, those that were left out too.
        loss_sum: Sum over the rows of the epoch so far of their batch's mean loss, times what they
            weigh.
        loss_rows: Rows of the epoch so far, or what they weigh.
        left_out: The steps that changed nothing.
        best: The best epochs so far, the best one first. Without a validation loss it is the
            latest epoch; none before the first.
        ended_by: What ended the run before its last epoch: `early_stopping`, `max_steps` or
            `max_time`; empty where nothing did.
        undone: Steps that roll-backs undid.
        rolled_back: One record for each roll-back.
        anchor: The state to roll back to; None where the spec does not ask for that.
        diverged_at: The step after which all ranks found that they had diverged; None while they
            have not. It is not saved.
        seconds: Spent in training before the last checkpoint; 0 where nobody asked.
        warm_start: What was taken from a bundle at the start; None where nothing was.
        history: One record an epoch; it holds no time and no host.
        inexact: One record for each choice of the machine that a resume could not repeat; empty
            where the run is the same, bit for bit, as one that nobody interrupted.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    early_stop: EarlyStop | None
    scaler: LossScaler | None = None
    average: WeightAverage | None = None
    changes: ValueChanges | None = None
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_rows: float = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    best: list[KeptEpoch] = field(default_factory=list)
    ended_by: str = ""
    undone: int = 0
    rolled_back: list[dict[str, Any]] = field(default_factory=list)
    anchor: Snapshot | None = None
    diverged_at: int | None = None
    seconds: float = 0.0
    warm_start: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    inexact: list[dict[str, Any]] = field(default_factory=list)

    @property
    def place(self) -> int:
        """See `Snapshot.place`."""
        return self.step + self.undone

    @property
    def best_epoch(self) -> int:
        """The best epoch so far; 0 before the first."""
        return self.best[0].epoch if self.best else 0

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the run."""
        return self.ended_by == "early_stopping"

    def learning_rate(self) -> float:
        """The rate that the optimizer has now; in the record of an epoch that of its last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin_epoch(self) -> None:
        """Put the values of the epoch into force, where the spec changes any."""
        if self.changes is not None:
            self.changes.take_force(self.epoch)
            self.schedule.begin_epoch()

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averages, where there are any, in the place of the weights for a while."""
        return nullcontext() if self.average is None else self.average.in_force()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are measured, on the CPU: the averages where there are any."""
        averages = {} if self.average is None else self.average.named()
        return weights_of(self.model, averages)

    def kept_weights(self) -> Mapping[str, Tensor]:
        """The weights that the trained model is known by: the best, or else the last."""
        return (self.best[0].weights if self.best else {}) or self.weights()

    def snapshot(self) -> Snapshot:
        """A copy of all this on the CPU, which the next step does not change."""
        now = self.moving()
        # These are replaced as a whole, never written into.
        tensors = {
            f"{_best_prefix(place)}{name}": value
            for place, kept in enumerate(self.best)
            for name, value in kept.weights.items()
        }
        anchor = None
        if self.anchor is not None:
            anchor = self.anchor.document
            tensors |= {f"{ANCHOR}{name}": value for name, value in self.anchor.tensors.items()}
        return Snapshot(
            tensors={**now.tensors, **tensors},
            learned=now.learned,
            document={
                **now.document,
                "best_epoch": self.best_epoch,
                "best": [{"epoch": kept.epoch, "value": kept.value} for kept in self.best],
                "ended_by": self.ended_by,
                "undone": self.undone,
                "rolled_back": list(self.rolled_back),
                "anchor": anchor,
                "seconds": self.seconds,
                "warm_start": self.warm_start,
                "history": list(self.history),
                "inexact": list(self.inexact),
            },
        )

    def moving(self) -> Snapshot:
        """A copy of what each step changes, or may change; a roll-back puts it back."""
        tensors = {f"{MODEL}{name}": value for name, value in weights_of(self.model).items()}
        if self.average is not None:
            tensors |= {f"{AVERAGE}{name}": value for name, value in self.average.tensors().items()}
        learned = {
            f"{MODEL}{name}" for name, value in self.model.named_parameters() if value.requires_grad
        }
        learned |= {name for name in tensors if name.startswith(AVERAGE)}
        moments = {
            f"{OPTIMIZER}{name}": value.to("cpu", copy=True)
            for name, value in optimizer_tensors(self.optimizer, self.model).items()
        }
        return Snapshot(
            tensors={**tensors, **moments},
            learned=frozenset(learned | set(moments)),
            document={
                "epoch": self.epoch,
                "step": self.step,
                "loss_sum": self.loss_sum,
                "loss_rows": self.loss_rows,
                "left_out": asdict(self.left_out),
                "optimizer": optimizer_json(self.optimizer, self.model),
                "schedule": self.schedule.state(),
                "early_stop": self.early_stop.state() if self.early_stop else None,
                "scaler": self.scaler.state() if self.scaler is not None else None,
                "averaged": self.average.updates if self.average is not None else None,
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
        except SafetensorError as error:
            raise _of_another(where, error) from error
        self.load_moving(loaded, saved, where=where)
        self.best = [
            KeptEpoch(kept["epoch"], kept["value"], _below(loaded, _best_prefix(place)))
            for place, kept in enumerate(saved["best"])
        ]
        self.ended_by = str(saved["ended_by"])
        self.undone = int(saved["undone"])
        self.rolled_back = list(saved["rolled_back"])
        if saved["anchor"] is not None:
            self.anchor = Snapshot(_below(loaded, ANCHOR), frozenset(), saved["anchor"])
        self.seconds = float(saved["seconds"])
        self.warm_start = saved["warm_start"]
        self.history = list(saved["history"])
        self.inexact = list(saved["inexact"])

    def load_moving(
        self, tensors: Mapping[str, Tensor], saved: Mapping[str, Any], *, where: str
    ) -> None:
        """Put back what `moving` gave.

        Raises:
            ArtifactError: If it belongs to another model or spec.
        """
        try:
            self.model.load_state_dict(_below(tensors, MODEL))
        except RuntimeError as error:
            raise _of_another(where, error) from error
        load_optimizer(
            self.optimizer,
            self.model,
            _below(tensors, OPTIMIZER),
            saved["optimizer"],
            changing=self.changes.options if self.changes is not None else (),
        )
        self.schedule.load_state(saved["schedule"])
        if self.early_stop is not None:
            self.early_stop.load_state(saved["early_stop"])
        if self.scaler is not None:
            self.scaler.load_state(saved["scaler"])
        if self.average is not None:
            self.average.load(_below(tensors, AVERAGE), saved["averaged"] or 0, where=where)
        self.epoch = int(saved["epoch"])
        self.step = int(saved["step"])
        self.loss_sum = float(saved["loss_sum"])
        self.loss_rows = saved["loss_rows"]
        self.left_out = LeftOut(**saved["left_out"])


def weights_of(model: nn.Module, instead: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU, each with memory of its own.

    Args:
        model: Whose.
        instead: Tensors to copy in the place of those of the same names.
    """
    found = {**model.state_dict(), **(instead or {})}
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}


def _best_prefix(place: int) -> str:
    """Below which name the weights of one of the best epochs are; the best is in place 0."""
    return "best/" if place == 0 else f"best-{place + 1}/"


def _of_another(where: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"expected a checkpoint of this model in {where}, found another's ({error}). "
        "Delete the run's folder to start it anew"
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
