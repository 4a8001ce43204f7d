"""One epoch, or a part of one, on one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchtrain.progress import TrainingStanding
from batchtrain.spec.data import SPLITS

__all__ = ["epoch_line", "step_line"]


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """An epoch's line of the history.

    Example:
        >>> record = {"epoch": 10, "lr": 0.001, "train_loss": 0.4321, "valid_loss": 0.3987}
        >>> epoch_line({**record, "valid_accuracy": 0.852}, 100)
        'Epoch [10/100], Loss: 0.4321, valid 0.3987, 85.2 %, lr 0.001'
    """
    parts = [f"Epoch [{record['epoch']}/{epochs}], Loss: {number(record['train_loss'])}"]
    for split in SPLITS:
        scores = _scores(record, split)
        if scores:
            parts.append(f"{split} {scores[0]}")
            parts += scores[1:]
    parts.append(f"lr {record['lr']:.3g}")
    if left_out := record.get("left_out_steps"):
        parts.append(f"{left_out} step{'' if left_out == 1 else 's'} left out")
    return ", ".join(parts)


def step_line(standing: TrainingStanding) -> str:
    """How far a training is within an epoch.

    Example:
        >>> step_line(TrainingStanding(3, 10, 1200, 48_000, 0, 0, 0, loss=0.5))
        'Epoch [3/10], step 1,200 of 48,000, loss 0.5000'
    """
    parts = [
        f"Epoch [{standing.epoch}/{standing.epochs}]",
        f"step {standing.step:,} of {standing.steps:,}",
    ]
    if standing.loss is not None:
        parts.append(f"loss {number(standing.loss)}")
    return ", ".join(parts)


def number(value: float | None) -> str:
    """A loss or score with four digits that mean something.

    Example:
        >>> [number(value) for value in (0.25, 1234.5, 1.5e-5, 2.5e7, 0.0, None)]
        ['0.2500', '1234.5000', '1.500e-05', '2.500e+07', '0.0000', '-']
    """
    if value is None:
        return "-"
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value)
    return f"{value:.4f}" if is_plain else f"{value:.3e}"


def _scores(record: Mapping[str, Any], split: str) -> list[str]:
    """The loss and the scores of a split as the line has them; the training loss leads the line."""
    found = []
    for key, value in record.items():
        of_split, _, name = key.partition("_")
        if of_split != split or not isinstance(value, float) or key == "train_loss":
            continue
        if name == "loss":
            found.append(number(value))
        elif name == "accuracy":
            found.append(f"{100 * value:.1f} %")
        else:
            found.append(f"{'R2' if name == 'r2' else name} {number(value)}")
    return found
