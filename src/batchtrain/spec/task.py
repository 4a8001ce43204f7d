"""What suits which task, and what in a spec does not, once the task is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from batchtrain.spec.evaluation import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    EvaluationSpec,
)
from batchtrain.spec.training import LossName, TrainingSpec

__all__ = [
    "LOSSES_OF_TASK",
    "METRICS_OF_TASK",
    "Task",
    "class_weight_mismatches",
    "class_weights_in_force",
    "target_scale_in_force",
    "task_mismatches",
    "watched_mismatches",
]

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
    yield from _target_mismatches(training, task)
    yield from watched_mismatches(training, METRICS_OF_TASK[task], f" for {task}")
    asked = () if evaluation.metrics == "auto" else evaluation.metrics
    for key, names in (("evaluation.metrics", asked), ("evaluation.require", evaluation.require)):
        wrong = [str(name) for name in names if name not in METRICS_OF_TASK[task]]
        if wrong:
            yield (
                key,
                f"{', '.join(map(repr, wrong))} cannot be measured for {task}",
                f"Choose among {', '.join(METRICS_OF_TASK[task])}",
            )


def _target_mismatches(training: TrainingSpec, task: Task) -> Iterator[tuple[str, str, str]]:
    """What is said of classes where there are none, and of a quantity where there is none."""
    if task == "classification":
        if training.target_scale == "standard":
            yield (
                "training.target_scale",
                "classes cannot be scaled",
                "Remove it; it is for a regression",
            )
        return
    for key, is_set in (
        ("label_smoothing", training.label_smoothing > 0),
        ("class_weights", training.class_weights is not None),
    ):
        if is_set:
            yield f"training.{key}", "a regression has no classes", "Remove it"


def watched_mismatches(
    training: TrainingSpec, names: Sequence[str], where: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Whether early stopping follows a number that there is.

    Args:
        training: The section.
        names: The metrics that there are.
        where: The task, for the message.

    Yields:
        The dotted key, what is wrong, and what to do.
    """
    if training.early_stopping is None:
        return
    metric = training.early_stopping.metric
    choices = ("valid_loss", *(f"valid_{name}" for name in names))
    if metric not in choices:
        yield (
            "training.early_stopping.metric",
            f"{metric!r} cannot be measured{where}",
            f"Choose one of {', '.join(choices)}",
        )


def class_weight_mismatches(
    training: TrainingSpec, classes: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Hold declared class weights against the classes of the training rows.

    Yields:
        The dotted key, what is wrong, and what to do.
    """
    asked = training.class_weights
    if not isinstance(asked, Mapping):
        return
    found = ", ".join(map(repr, classes[:20])) + (", ..." if len(classes) > 20 else "")
    known = set(classes)
    unknown = [name for name in asked if name not in known]
    missing = [name for name in classes if name not in asked]
    for what, names in (("names no class of the training rows", unknown), ("has no", missing)):
        if names:
            listed = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            text = f"{what}: {listed}" if names is unknown else f"{what} weight for {listed}"
            yield "training.class_weights", text, f"Name each class once; they are {found}"
    if not unknown and not missing and not any(asked.values()):
        yield (
            "training.class_weights",
            "expected a weight above 0, found 0 for every class",
            "Leave a class out of the losses with 0, but not all of them",
        )


def class_weights_in_force(
    training: TrainingSpec, classes: Sequence[str], rows: Sequence[int]
) -> tuple[float, ...] | None:
    """What a row of each class weighs in the losses; None where all weigh 1.

    `balanced` is rows / (classes x rows of the class), so that each class weighs the same in all
    (King and Zeng, 2001, "Logistic Regression in Rare Events Data"; scikit-learn's
    `compute_class_weight`). A class without a training row is not counted and weighs 0. Rows are
    counted, whatever they weigh by themselves.

    Args:
        training: The section; its names are checked by `class_weight_mismatches`.
        classes: The names of the classes, by class code.
        rows: The training rows of each of them.

    Example:
        >>> class_weights_in_force(TrainingSpec(class_weights="balanced"), ("a", "b"), (30, 10))
        (0.6666666666666666, 2.0)
    """
    asked = training.class_weights
    if asked is None:
        return None
    if asked == "balanced":
        present = sum(count > 0 for count in rows)
        return tuple(sum(rows) / (present * count) if count else 0.0 for count in rows)
    return tuple(float(asked[name]) for name in classes)


def target_scale_in_force(
    training: TrainingSpec, task: Task, model: str
) -> Literal["standard", "none"]:
    """Whether the target is scaled: as asked, or for `auto` as it suits the kind of model.

    A linear model is fitted in the target's own units, so that its weights can be read; what a
    custom one expects nobody knows.
    """
    if training.target_scale != "auto":
        return training.target_scale
    scales = task == "regression" and model not in {"linear", "custom"}
    return "standard" if scales else "none"
