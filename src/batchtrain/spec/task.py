"""What suits which task, and what in a spec does not, once the task is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from batchtrain.spec.evaluation import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    EvaluationSpec,
)
from batchtrain.spec.training import LossName, TrainingSpec

__all__ = ["LOSSES_OF_TASK", "METRICS_OF_TASK", "Task", "task_mismatches"]

Task = Literal["classification", "regression"]

LOSSES_OF_TASK: dict[Task, tuple[LossName, ...]] = {
    "classification": ("cross_entropy", "bce"),
    "regression": ("mse", "mae", "huber"),
}
METRICS_OF_TASK: dict[Task, tuple[str, ...]] = {
    "classification": CLASSIFICATION_METRICS,
    "regression": REGRESSION_METRICS,
}


def task_mismatches(
    training: TrainingSpec, evaluation: EvaluationSpec, task: Task
) -> Iterator[tuple[str, str, str]]:
    """Find the keys that do not suit a task.

    Yields:
        The dotted key, what is wrong, and what to do.
    """
    if training.loss != "auto" and training.loss not in LOSSES_OF_TASK[task]:
        yield (
            "training.loss",
            f"{training.loss!r} does not suit {task}",
            f"Choose one of {', '.join(LOSSES_OF_TASK[task])}",
        )
    asked = () if evaluation.metrics == "auto" else evaluation.metrics
    for key, names in (("evaluation.metrics", asked), ("evaluation.require", evaluation.require)):
        wrong = [str(name) for name in names if name not in METRICS_OF_TASK[task]]
        if wrong:
            yield (
                key,
                f"{', '.join(map(repr, wrong))} cannot be measured for {task}",
                f"Choose among {', '.join(METRICS_OF_TASK[task])}",
            )
