"""How some rows are differentiated: at once or in micro-batches, in which precision, by which code.

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchtrain.errors import TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss
from batchtrain.models.steps import batch_loss
from batchtrain.points import passed
from batchtrain.row_order import counter_generator
from batchtrain.spec.training import Precision
from batchtrain.training.compiling import CompiledPass, Pass
from batchtrain.training.micro_batches import cut_sizes
from batchtrain.training.precision import LossScaler, autocast_of, in_float32

__all__ = [
    "PLAIN",
    "TINY",
    "GradientRules",
    "dropout_seed",
    "make_forward",
    "refuse_batch_norm",
    "seed_dropout",
]

TINY = torch.finfo(torch.float32).tiny
"""Every weight is 0 or a normal number of float32. Where all of them are 0 a sum over this is 0,
and over 0 it would be NaN."""


@dataclass(frozen=True)
class GradientRules:
    """How the rows of a part are differentiated; all of it shows in the last bits.

    Attributes:
        micro_rows: The most rows at once; None for all of them.
        precision: What products are computed in.
        scaler: Scales the loss; only for float16. Whoever takes the steps tells it how they went.
        compile: Whether torch's compiler makes kernels of both passes.
        batch_rows: Of a whole global batch, which tells for how many rows kernels are made.
    """

    micro_rows: int | None = None
    precision: Precision = "float32"
    scaler: LossScaler | None = None
    compile: bool = False
    batch_rows: int = 0

    @property
    def scale(self) -> float:
        """What the loss is multiplied by."""
        return 1.0 if self.scaler is None else self.scaler.scale

    def make_pass(self, num_parts: int, device: torch.device) -> Pass:
        """What differentiates some rows at once.

        Args:
            num_parts: Among so many a global batch is divided.
            device: Where that happens.
        """
        forward = make_forward(self.precision, device)
        plain = _plain(forward)
        if not self.compile:
            return plain
        # A part is never without a row, so none is cut into pieces of 0.
        parts = {max(1, self.batch_rows // num_parts), max(1, -(-self.batch_rows // num_parts))}
        sizes = {size for rows in parts for size in cut_sizes(rows, self.micro_rows)}
        return CompiledPass(frozenset(sizes), plain=plain, forward=forward)


PLAIN = GradientRules()


def make_forward(precision: Precision, device: torch.device) -> Pass:
    """The loss of some rows, to call `backward` on."""
    autocast = autocast_of(precision, device)
    if autocast is None:
        return batch_loss

    def forward(
        model: nn.Module, loss: Loss, batch: Batch, denominator: Tensor | float | None
    ) -> Tensor:
        with autocast():
            return batch_loss(model, in_float32(loss), batch, denominator)

    return forward


def _plain(forward: Pass) -> Pass:
    def differentiate(
        model: nn.Module, loss: Loss, batch: Batch, denominator: Tensor | float | None
    ) -> Tensor:
        value = forward(model, loss, batch, denominator)
        passed("step.forward")
        value.backward()
        passed("step.backward")
        return value.detach()

    return differentiate


def dropout_seed(seed: int, part: int) -> int:
    """31 bits from which a part of the batch counts the steps.

    torch's CPU generator keeps 32 bits of a seed, so consecutive steps get consecutive seeds: no
    two steps of a part share one.
    """
    key = ("dropout",) if part == 0 else ("dropout", part)
    return int(counter_generator(seed, *key).random_raw(1)[0] >> 33)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what dropout on a device draws from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def refuse_batch_norm(model: nn.Module, where: str, who: str, instead: str) -> None:
    """Refuse layers whose output for a row depends on the other rows of its part.

    Raises:
        TrainingError: If the model has one.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                f"expected a model without batch normalisation {where}, found "
                f"{type(module).__name__} in {name!r}: {who} would normalise by its own rows. "
                f"Use {instead}"
            )
