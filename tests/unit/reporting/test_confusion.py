"""What a confusion matrix says in words."""

from __future__ import annotations

import pytest

from batchtrain.reporting.confusion import confusion_notes
from batchtrain.reporting.content import ConfusionData


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[97, 0], [3, 0]], "all 100 test rows were predicted as 'a', which 97.0% of them are"),
        ([[90, 7], [2, 1]], "91.0% of the 100 test rows were predicted right, not more than by"),
        ([[96, 1], [1, 2]], ""),
        ([[0, 97], [0, 3]], "3.0% of the 100 test rows were predicted right, not more than by"),
        ([[100, 0], [0, 0]], ""),
        ([[0, 0], [0, 0]], ""),
    ],
)
def test_a_classifier_that_is_no_better_than_its_most_frequent_class_is_named(
    matrix: list[list[int]], words: str
) -> None:
    notes = confusion_notes(ConfusionData("test", ["a", "b"], matrix))
    assert len(notes) == bool(words)
    assert words in "".join(notes)


def test_a_regression_has_no_such_note() -> None:
    assert confusion_notes(None) == []
