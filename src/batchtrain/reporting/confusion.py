"""What a confusion matrix says in numbers: each class, and which pairs are mixed up most."""

from __future__ import annotations

from dataclasses import dataclass

from batchtrain.reporting.content import ConfusionData

__all__ = ["ClassScore", "ConfusedPair", "class_scores", "confusion_notes", "most_confused"]


@dataclass(frozen=True)
class ClassScore:
    """One class of a confusion matrix.

    Attributes:
        name: The class.
        rows: Rows that are of the class.
        right: Rows of the class that were predicted as it.
        precision: The share of its predictions that were right; None if it was never predicted.
        recall: The share of its rows that were found; None if it has no rows.
    """

    name: str
    rows: int
    right: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class ConfusedPair:
    """Rows of one class that were predicted as another; `share` is of the true class's rows."""

    true: str
    predicted: str
    rows: int
    share: float


def class_scores(confusion: ConfusionData) -> list[ClassScore]:
    """Rows, precision and recall of each class, in the order of the classes."""
    predicted_C = [sum(column) for column in zip(*confusion.matrix, strict=True)]
    scores = []
    for index, (name, row) in enumerate(zip(confusion.class_names, confusion.matrix, strict=True)):
        right = row[index]
        scores.append(
            ClassScore(
                name=name,
                rows=sum(row),
                right=right,
                precision=_share(right, predicted_C[index]),
                recall=_share(right, sum(row)),
            )
        )
    return scores


def most_confused(confusion: ConfusionData, *, limit: int) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes, the worst first, ties in class order."""
    pairs = [
        ConfusedPair(true, predicted, rows, rows / sum(row))
        for t, (true, row) in enumerate(zip(confusion.class_names, confusion.matrix, strict=True))
        for p, (predicted, rows) in enumerate(zip(confusion.class_names, row, strict=True))
        if rows and t != p
    ]
    return sorted(pairs, key=lambda pair: -pair.rows)[:limit]


def confusion_notes(confusion: ConfusionData | None) -> list[str]:
    """A sentence where a classifier is no better than always giving the most frequent class.

    Its accuracy alone may look excellent, where nearly all rows are of that class. A split whose
    rows are all of one class tells nothing.
    """
    scores = [] if confusion is None else class_scores(confusion)
    if confusion is None or sum(score.rows > 0 for score in scores) < 2:
        return []
    rows, right = (sum(counts) for counts in zip(*((s.rows, s.right) for s in scores), strict=True))
    common = max(scores, key=lambda score: score.rows)
    of_common = f"{common.name!r}, which {common.rows / rows:.1%} of them are"
    advice = "look at the recall of each class, and at `training.class_weights: balanced`"
    predicted = [score.name for score in scores if score.precision is not None]
    if predicted == [common.name]:
        return [f"all {rows:,} {confusion.split} rows were predicted as {of_common}: {advice}"]
    if right <= common.rows:
        share = f"{right / rows:.1%} of the {rows:,} {confusion.split} rows"
        return [
            f"{share} were predicted right, not more than by always saying {of_common}: {advice}"
        ]
    return []


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
