"""What the comparison of quality found, as text: for the terminal, and as a page."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sklearn
import torch

from batchtrain.spec.model import MlpModel
from batchtrain.spec.training import TrainingSpec
from benchmarks.quality_runs import MLP, OURS
from benchmarks.quality_tables import CASES, Case

__all__ = ["Difference", "Standing", "page", "printed"]

ROUNDED = 1 + 1e-9
"""Where all seeds but one are equal, mean and error are the same number but for rounding."""


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs, seed by seed.

    Attributes:
        mean: Over the seeds.
        error: The standard error of that mean: the deviation of the differences over the root of
            their number; NaN for one seed.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        """Compare two contenders whose runs are paired.

        Example:
            >>> Difference.of([2.0, 4.0], [1.0, 1.0])
            Difference(mean=2.0, error=1.0)
        """
        differences = [one - other for one, other in zip(ours, theirs, strict=True)]
        return cls(statistics.fmean(differences), standard_error(differences))

    @property
    def is_below(self) -> bool:
        """Whether ours is lower by more than one standard error; never so for one seed."""
        return self.mean < -ROUNDED * self.error

    @property
    def is_above(self) -> bool:
        """Whether ours is higher by more than one standard error."""
        return self.mean > ROUNDED * self.error


@dataclass(frozen=True)
class Standing:
    """All contenders on one table.

    Attributes:
        case: The table.
        metrics: The first is what the verdict goes by; more of it is better.
        scores: Metric to contender to one value for each seed.
        seconds: Contender to the median CPU seconds of its training.
        rows: Of each split.
    """

    case: Case
    metrics: Sequence[str]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    seconds: Mapping[str, float]
    rows: Mapping[str, int]

    def against(self, peer: str) -> Difference:
        """How ours stands against another contender, by the first metric."""
        scores = self.scores[self.metrics[0]]
        return Difference.of(scores[OURS], scores[peer])

    @property
    def is_below(self) -> bool:
        """Whether ours is below scikit-learn's MLP by more than one standard error."""
        return self.against(MLP).is_below

    @property
    def verdict(self) -> str:
        """Where ours stands against scikit-learn's MLP."""
        difference = self.against(MLP)
        if math.isnan(difference.error):
            return "one seed says nothing"
        return "**below**" if difference.is_below else "above" if difference.is_above else "equal"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of some values; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def printed(standing: Standing) -> str:
    """A few lines for the terminal."""
    lines = [f"{standing.case.name}: {_difference(standing.against(MLP))} {standing.verdict}"]
    for metric, scores in standing.scores.items():
        cells = [f"{contender} {_mean(values)}" for contender, values in scores.items()]
        lines.append(f"  {metric}: {', '.join(cells)}")
    seconds = [f"{contender} {value:.1f}" for contender, value in standing.seconds.items()]
    return "\n".join([*lines, f"  CPU s: {', '.join(seconds)}"])


def page(standings: Sequence[Standing], *, seeds: int) -> str:
    """The whole page, in Markdown."""
    below = [each.case.name for each in standings if each.is_below]
    verdict = f"On {', '.join(below)} it is." if below else "It is on none of those below."
    measured = {each.case.name for each in standings}
    missing = ", ".join(name for name in CASES if name not in measured)
    verdict += f" Not measured yet: {missing}." if missing else ""
    return f"""# How good the defaults are

Made by `python -m benchmarks.quality`; do not edit. Each figure is the mean over {seeds} seeds and
its standard error, on test rows that no contender has seen. The goal: on no table is the first
metric of a spec that says nothing but source and target below that of scikit-learn's MLP by more
than one standard error of the difference, which is taken seed by seed.

{verdict}

- Each seed draws a split of 70 % training, 10 % validation and 20 % test rows, initial weights and
  all else that is random. All contenders have the same rows.
- `batchtrain` trains on the training rows and keeps the weights of the epoch with the smallest
  validation loss. The defaults: {_defaults()}.
- scikit-learn's models are `MLPClassifier`, `MLPRegressor` and `HistGradientBoosting*` as they
  come, behind imputation, `StandardScaler` and `OneHotEncoder`. They train on the training rows
  alone, and ("+ valid") on training and validation rows, since they need no validation rows.
- The seconds are of CPU time, of the training alone, on one thread; for `batchtrain` with its
  shards, checkpoints and event files.

## Accuracy or R2: more is better

{_score_table(standings)}

"less MLP" is the first column minus the second.

## Log loss or mean absolute error: less is better

{_second_table(standings)}

## Seconds

{_seconds_table(standings)}

## The tables

{_cases_table(standings)}

torch {torch.__version__}, scikit-learn {sklearn.__version__}, Python {platform.python_version()},
{platform.machine()} with {os.cpu_count()} cores.
"""


def _defaults() -> str:
    model, training = MlpModel(kind="mlp"), TrainingSpec()
    optimizer = training.optimizer
    return (
        f"an MLP {'-'.join(map(str, model.hidden))}, {model.activation}, dropout "
        f"{model.dropout:g}; {optimizer.kind} with a rate of {optimizer.lr:g} and a weight decay "
        f"of {getattr(optimizer, 'weight_decay', 0):g}; {training.epochs} epochs"
    )


def _score_table(standings: Sequence[Standing]) -> str:
    contenders = list(standings[0].seconds)
    rows = [
        [
            each.case.name,
            each.metrics[0],
            *(_mean(each.scores[each.metrics[0]][contender]) for contender in contenders),
            _difference(each.against(MLP)),
            each.verdict,
        ]
        for each in standings
    ]
    return _table(["table", "metric", *contenders, "less MLP", "so it is"], rows)


def _second_table(standings: Sequence[Standing]) -> str:
    contenders = list(standings[0].seconds)
    rows = [
        [
            each.case.name,
            each.metrics[1],
            *(_mean(each.scores[each.metrics[1]][contender]) for contender in contenders),
        ]
        for each in standings
    ]
    return _table(["table", "metric", *contenders], rows)


def _seconds_table(standings: Sequence[Standing]) -> str:
    contenders = list(standings[0].seconds)
    rows = [
        [each.case.name, *(f"{each.seconds[contender]:.1f}" for contender in contenders)]
        for each in standings
    ]
    return _table(["table", *contenders], rows)


def _cases_table(standings: Sequence[Standing]) -> str:
    rows = [
        [
            each.case.name,
            " + ".join(f"{each.rows[split]:,}" for split in ("train", "valid", "test")),
            each.case.about,
        ]
        for each in standings
    ]
    return _table(["table", "training, validation and test rows", "what it is"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: Sequence[float]) -> str:
    digits = _digits(values)
    return f"{statistics.fmean(values):.{digits}f}{_error(standard_error(values), digits)}"


def _difference(found: Difference) -> str:
    digits = _digits([found.mean])
    return f"{found.mean:+.{digits}f}{_error(found.error, digits)}"


def _error(error: float, digits: int) -> str:
    return "" if math.isnan(error) else f" ± {error:.{digits}f}"


def _digits(values: Sequence[float]) -> int:
    """Four digits for numbers of about 1, fewer for larger ones."""
    return 4 if max(abs(value) for value in values) < 10 else 2
