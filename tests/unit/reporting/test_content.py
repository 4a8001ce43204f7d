from __future__ import annotations

import math
from dataclasses import replace

import pytest

from batchtrain.reporting.confusion import class_scores, most_confused
from batchtrain.reporting.content import ConfusionData, EpochRow, ReportContent


def with_losses(
    content: ReportContent, *losses: tuple[float | None, float | None]
) -> ReportContent:
    rows = [EpochRow(number, *pair) for number, pair in enumerate(losses, start=1)]
    return replace(content, history=rows, best_epoch=None)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([(3.0, 5.0), (2.0, 4.0), (1.0, 4.5)], 2),
        ([(3.0, None), (1.0, None), (2.0, None)], 2),
        ([(3.0, 4.0), (2.0, 4.0)], 1),
        ([(3.0, math.nan), (1.0, math.inf), (2.0, 7.0)], 3),
        ([(math.nan, None)], None),
        ([], None),
    ],
)
def test_the_best_epoch_has_the_least_valid_loss_or_else_train_loss(
    regression: ReportContent,
    losses: list[tuple[float | None, float | None]],
    best: int | None,
) -> None:
    found = with_losses(regression, *losses).best

    assert (found and found.epoch) == best


def test_a_recorded_best_epoch_is_believed(regression: ReportContent) -> None:
    content = with_losses(regression, (3.0, 1.0), (2.0, 2.0))
    found = replace(content, best_epoch=2).best

    assert found is not None
    assert found.epoch == 2


def test_each_class_has_its_precision_and_recall() -> None:
    confusion = ConfusionData("test", ["a", "b", "c"], [[8, 2, 0], [4, 6, 0], [0, 0, 0]])
    a, b, c = class_scores(confusion)

    assert (a.rows, a.right, a.precision, a.recall) == (10, 8, 8 / 12, 0.8)
    assert (b.precision, b.recall) == (6 / 8, 0.6)
    assert (c.rows, c.precision, c.recall) == (0, None, None)


def test_the_most_confused_pairs_come_first() -> None:
    confusion = ConfusionData("test", ["a", "b", "c"], [[8, 2, 0], [4, 5, 1], [0, 0, 1]])

    pairs = most_confused(confusion, limit=2)

    assert [(pair.true, pair.predicted, pair.rows, pair.share) for pair in pairs] == [
        ("b", "a", 4, 0.4),
        ("a", "b", 2, 0.2),
    ]
