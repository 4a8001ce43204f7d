"""What a search makes as good as it can, with the direction of each metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from batchtrain.metrics.require import DIRECTION
from batchtrain.spec.search import SearchSpec
from batchtrain.spec.training import TrainingSpec
from batchtrain.tuning.trials import Goal

__all__ = ["goals_of"]


def goals_of(search: SearchSpec, training: TrainingSpec) -> Sequence[Goal]:
    """The goals of a search; left out in the spec, it is what the best epoch is chosen by.

    Example:
        >>> from batchtrain.spec.search import Distribution
        >>> space = {"model.dropout": Distribution(uniform=(0.0, 0.5))}
        >>> goals_of(SearchSpec(space=space, metric="valid_accuracy"), TrainingSpec())
        (Goal(metric='valid_accuracy', mode='max'),)
    """
    if search.metric is None or isinstance(search.metric, str):
        stopping = training.early_stopping
        watched = stopping.metric if stopping is not None else "valid_loss"
        metric = search.metric or watched
        return (Goal(metric, _direction(metric)),)
    return tuple(
        Goal(each.metric, _direction(each.metric) if each.mode == "auto" else each.mode)
        for each in search.metric
    )


def _direction(metric: str) -> Literal["min", "max"]:
    """Less is better for losses and for the number of parameters."""
    return DIRECTION.get(metric.removeprefix("valid_"), "min")
