"""What a search needs of the rest of the spec: numbers to compare trials by, and time to do it."""

from __future__ import annotations

from collections.abc import Iterator

from batchtrain.spec.changes import CHANGEABLE
from batchtrain.spec.data import DataSpec, GroupSplit, RandomSplit, StratifiedSplit, may_have_rows
from batchtrain.spec.search import Pbt, SearchSpec, metrics_of, scheduler_of
from batchtrain.spec.task import METRICS_OF_TASK
from batchtrain.spec.training import TrainingSpec

__all__ = ["search_mismatches", "searched_metrics"]

MEASURED_BY_TASK = {"classification": ("valid_accuracy",), "regression": ("valid_r2",)}
"""What every epoch measures beside the loss; of a task left open it may be either."""

CHANGE_THE_LOSS = ("loss", "label_smoothing", "class_weights", "target_scale")
"""Keys of `training` with another value of which the same model has another `valid_loss`."""


def searched_metrics(search: SearchSpec, training: TrainingSpec) -> tuple[str, ...]:
    """The metrics that trials are compared by: those asked for, else what early stopping follows.

    Example:
        >>> from batchtrain.spec.search import Distribution
        >>> space = {"model.dropout": Distribution(uniform=(0.0, 0.5))}
        >>> searched_metrics(SearchSpec(space=space), TrainingSpec())
        ('valid_loss',)
    """
    watched = training.early_stopping.metric if training.early_stopping else "valid_loss"
    return metrics_of(search) or (watched,)


def search_mismatches(search: SearchSpec, training: TrainingSpec, data: DataSpec) -> Iterator[str]:
    """What keeps the trials of a search from being compared, as sentences."""
    metrics = searched_metrics(search, training)
    yield from _unmeasured(metrics, training, data)
    yield from _incomparable(metrics, search, data)
    yield from _too_short(search, training)
    if isinstance(scheduler_of(search), Pbt):
        yield from _no_population(search, training)


def _unmeasured(metrics: tuple[str, ...], training: TrainingSpec, data: DataSpec) -> Iterator[str]:
    has_valid = data.split is None or may_have_rows(data.split, "valid")
    if not has_valid and metrics != ("parameters",):
        yield (
            "`search` compares trials by the validation split, but `data.split` leaves no rows for "
            "it; give it some"
        )
    by_task = MEASURED_BY_TASK.get(data.task) or ("valid_accuracy", "valid_r2")
    watched = (training.early_stopping.metric,) if training.early_stopping else ()
    measured = tuple(dict.fromkeys(("valid_loss", *by_task, *watched, "parameters")))
    for metric in metrics:
        if metric in measured:
            continue
        names = [
            f"valid_{name}"
            for task, each in METRICS_OF_TASK.items()
            for name in each
            if data.task in (task, "auto")
        ]
        other = f", or let `training.early_stopping.metric` be {metric}" if metric in names else ""
        yield (
            f"`search.metric` is {metric}, which is not measured after each epoch; choose among "
            f"{', '.join(measured)}{other}"
        )


def _incomparable(metrics: tuple[str, ...], search: SearchSpec, data: DataSpec) -> Iterator[str]:
    """Keys with which the same number would not mean the same in two trials."""
    for name in CHANGE_THE_LOSS:
        key = f"training.{name}"
        is_tried = any(each == key or each.startswith(f"{key}.") for each in search.space)
        if is_tried and "valid_loss" in metrics:
            yield (
                f"`search.space.{key}` changes what `valid_loss` measures, so that trials could "
                "not be compared by it; set `search.metric`, such as to valid_accuracy or valid_r2"
            )
    rule = data.split
    follows_seed = rule is None or (
        isinstance(rule, RandomSplit | StratifiedSplit | GroupSplit) and rule.seed is None
    )
    if "seed" in search.space and follows_seed:
        yield (
            "`search.space.seed` would split the rows anew for every trial; set `data.split.seed`, "
            "so that all are measured on the same rows"
        )


def _too_short(search: SearchSpec, training: TrainingSpec) -> Iterator[str]:
    """A scheduler that would never decide anything."""
    scheduler = scheduler_of(search)
    if scheduler is None or "training.epochs" in search.space:
        return
    name = "interval_epochs" if isinstance(scheduler, Pbt) else "first_epochs"
    first = scheduler.interval_epochs if isinstance(scheduler, Pbt) else scheduler.first_epochs
    if first >= training.epochs:
        yield (
            f"`search.scheduler.{name}` is {first}, but `training.epochs` is {training.epochs}, "
            "so that the scheduler would have no say; give it fewer"
        )


def _no_population(search: SearchSpec, training: TrainingSpec) -> Iterator[str]:
    """What the members of a population cannot do: they change while they train."""
    fixed = [key for key in search.space if key not in CHANGEABLE]
    if fixed:
        yield (
            f"`search.scheduler: pbt` changes values while models train, which "
            f"{', '.join(f'`{key}`' for key in fixed)} cannot; choose among "
            f"{', '.join(CHANGEABLE)}, or use asha"
        )
    if training.early_stopping is not None:
        yield (
            "`training.early_stopping` would end members that are to go on as copies of others; "
            "remove it, or use `search.scheduler: asha`"
        )
    if training.changes:
        yield "`training.changes` is what `search.scheduler: pbt` finds; remove one of them"
