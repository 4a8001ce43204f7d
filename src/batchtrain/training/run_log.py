"""Where a training is written down: the protocol, and what an epoch is called in every log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from batchtrain.spec.data import SPLITS

__all__ = ["Ended", "HyperParameter", "RunLog", "epoch_losses", "epoch_scalars", "final_scalars"]

Ended = Literal["finished", "interrupted", "failed"]
"""How an attempt ended; an interrupted one is gone on with later."""

HyperParameter = bool | int | float | str

LOSS_NAMES = {"train": "training", "valid": "validation", "test": "test"}


class RunLog(Protocol):
    """One place where a run is written down, by rank 0.

    A method may raise: whoever calls it then notes that once, closes the log and goes on without
    it. It must not make the training wait, but for `flush` and `close`, and then not for long. A
    run that is resumed opens its log anew; what an attempt before it wrote is not written again.
    """

    name: str
    """As a note calls it."""

    def hyper_parameters(self, values: Mapping[str, HyperParameter]) -> None:
        """What the run is trained with, by dotted key; said at the start of every attempt."""
        ...

    def steps(self, first_step: int, losses: Sequence[float]) -> None:
        """Steps `first_step`, `first_step + 1`, ... had these mean losses."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is over; `record` is its line of the history."""
        ...

    def flush(self) -> None:
        """Make what was said so far outlive this process, as a checkpoint is about to be saved."""
        ...

    def close(self, ended: Ended) -> None:
        """Write everything out and let go of all resources; nothing is said after it."""
        ...


def epoch_losses(record: Mapping[str, Any]) -> dict[str, float]:
    """The losses of an epoch, such as `{"training": 0.7, "validation": 0.8}`.

    Example:
        >>> epoch_losses({"epoch": 0, "train_loss": None, "valid_loss": 0.8, "lr": 0.1})
        {'validation': 0.8}
    """
    return {
        LOSS_NAMES[split]: record[f"{split}_loss"]
        for split in SPLITS
        if record.get(f"{split}_loss") is not None
    }


def epoch_scalars(record: Mapping[str, Any], monitored: Sequence[str]) -> dict[str, float]:
    """The scores of an epoch by tag, and the learning rate; accuracies in percent.

    Example:
        >>> record = {"epoch": 1, "lr": 0.1, "valid_loss": 0.8, "valid_accuracy": 0.75}
        >>> epoch_scalars({**record, "valid_f1_macro": 0.5}, ["valid"])
        {'Accuracy/valid': 75.0, 'f1_macro/valid': 0.5, 'learning_rate': 0.1}
        >>> epoch_scalars(record, [])
        {'learning_rate': 0.1}
    """
    found = {}
    for key, value in record.items():
        split, _, name = key.partition("_")
        if split not in monitored or name in {"", "loss"} or not isinstance(value, float):
            continue
        if name == "accuracy":
            found[f"Accuracy/{split}"] = 100 * value
        else:
            found[f"{'R2' if name == 'r2' else name}/{split}"] = value
    return {**found, "learning_rate": float(record["lr"])}


def final_scalars(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """The metrics of a report by tag; those that are undefined are left out.

    Example:
        >>> final_scalars({"test": {"accuracy": 0.9, "auroc": None}})
        {'final/test/accuracy': 0.9}
    """
    return {
        f"final/{split}/{name}": float(value)
        for split, of_split in metrics.items()
        for name, value in of_split.items()
        if value is not None
    }
