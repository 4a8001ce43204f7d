"""What a search would do, as plain values for `batchtrain plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from batchtrain.reporting.search_words import value_text
from batchtrain.spec.search import DEFAULT_TRIALS, Distribution, SearchSpec, scheduler_of

__all__ = [
    "BracketOutline",
    "SearchOutline",
    "ShapeOutline",
    "distribution_words",
    "most_epochs",
    "outline_of",
]

EPOCHS_KEY = "training.epochs"


@dataclass(frozen=True)
class BracketOutline:
    """Trials that begin together.

    Attributes:
        rungs: The epochs of each rung; the last are those of a whole trial.
        trials: How many trials come to each of them: with ASHA about so many, else at most.
    """

    rungs: tuple[int, ...]
    trials: tuple[int, ...]


@dataclass(frozen=True)
class ShapeOutline:
    """Trials whose models have one shape.

    Attributes:
        shape: The values that tell it from others; empty where there is but one.
        trials: How many.
        packs: In how many packs they are trained; 0 where each is trained alone.
        why_alone: Why they are trained alone, as a sentence; empty where they are not.
    """

    shape: str
    trials: int
    packs: int = 0
    why_alone: str = ""


@dataclass(frozen=True)
class SearchOutline:
    """What would be tried.

    Attributes:
        algorithm: `random`, `grid` or `tpe`.
        trials: How many at most.
        space: Each key, and its values in words.
        goals: Each metric, and whether less or more of it is better: `min` or `max`.
        scheduler: `none`, `asha`, `hyperband` or `pbt`.
        settings: Of the scheduler.
        brackets: The rungs; none without a scheduler that has any.
        shapes: The trials by shape, as far as they are known before the search.
        rows_at_most: The rows trained over all trials, where none is stopped early.
        rows_expected: The same with those stopped that the scheduler is expected to stop.
        where: What carries it out on this machine.
        concurrent: How many trials or packs run at a time there.
        run_lengths: About how many runs of the spec by itself take as long.
        starts: About how many times one after the other a run of its own begins or goes on.
        notes: What else a person should know, as sentences.
    """

    algorithm: str
    trials: int
    space: Mapping[str, str]
    goals: tuple[tuple[str, str], ...] = ()
    scheduler: str = "none"
    settings: Mapping[str, Any] | None = None
    brackets: tuple[BracketOutline, ...] = ()
    shapes: tuple[ShapeOutline, ...] = ()
    rows_at_most: int = 0
    rows_expected: int = 0
    where: str = ""
    concurrent: int = 1
    run_lengths: float | None = None
    starts: float = 0.0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints under `search`."""
        document = asdict(self)
        document["goals"] = [{"metric": metric, "mode": mode} for metric, mode in self.goals]
        return document


def outline_of(
    search: SearchSpec,
    *,
    epochs: int,
    epoch_rows: int,
    trials: int | None = None,
    goals: tuple[tuple[str, str], ...] = (),
) -> SearchOutline:
    """What the section alone tells; `dataclasses.replace` fills in brackets and shapes.

    Args:
        search: The section.
        epochs: `training.epochs`, for a space that does not change them.
        epoch_rows: The training rows.
        trials: How many there are, such as the points of a grid; left out, what the section says.
        goals: What the search makes as good as it can.
    """
    scheduler = scheduler_of(search)
    many = trials or search.trials or DEFAULT_TRIALS
    rows = many * most_epochs(search, epochs) * epoch_rows
    notes = []
    if search.max_rows is not None:
        rows = min(rows, search.max_rows)
        notes.append(f"no trial begins that could bring the rows above {search.max_rows:,}")
    if search.max_time is not None:
        notes.append(f"no trial begins after {search.max_time:g} s")
    return SearchOutline(
        algorithm=search.algorithm,
        trials=many,
        space={key: distribution_words(each) for key, each in search.space.items()},
        goals=goals,
        scheduler="none" if scheduler is None else scheduler.kind,
        settings=None if scheduler is None else scheduler.model_dump(exclude={"kind"}),
        rows_at_most=rows,
        rows_expected=rows,
        notes=tuple(notes),
    )


def most_epochs(search: SearchSpec, epochs: int) -> int:
    """The epochs of the longest trial."""
    tried = search.space.get(EPOCHS_KEY)
    if tried is None:
        return epochs
    found = [int(each) for each in tried.choice or tried.bounds if isinstance(each, int | float)]
    # Where the key has a condition, the spec's own epochs may be those of a trial.
    return max([*found, *([epochs] if tried.when or not found else [])])


def distribution_words(distribution: Distribution) -> str:
    """The values of one key.

    Example:
        >>> distribution_words(Distribution(log_uniform=(1e-4, 0.1)))
        'log_uniform 0.0001 to 0.1'
        >>> distribution_words(Distribution(choice=([8], [8, 4]), when={"model.kind": "mlp"}))
        'one of 8, 8-4, where model.kind is mlp'
    """
    if distribution.choice is not None:
        words = f"one of {', '.join(value_text(each) for each in distribution.choice)}"
    else:
        low, high = getattr(distribution, distribution.kind)
        words = f"{distribution.kind} {value_text(low)} to {value_text(high)}"
    conditions = [f"{key} is {_either(wanted)}" for key, wanted in distribution.when.items()]
    return f"{words}, where {' and '.join(conditions)}" if conditions else words


def _either(wanted: Any) -> str:
    """A value, or any of a list of them."""
    return " or ".join(map(value_text, wanted if isinstance(wanted, list) else [wanted]))
