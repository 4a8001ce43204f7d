from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from batchtrain.reporting.content import ConfusionData, EpochRow, LineData, RegressionData
from batchtrain.reporting.heat_map import confusion_matrix
from batchtrain.reporting.plots import (
    learning_curves,
    monitored_curves,
    predicted_against_actual,
    regression_line,
)


def history(epochs: int, *, has_valid: bool = True) -> list[EpochRow]:
    return [
        EpochRow(epoch, 1 + 1 / epoch, 1.1 + 1 / epoch if has_valid else None, 1e-3)
        for epoch in range(1, epochs + 1)
    ]


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  # drawn a moment ago


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


def confusion_of(size: int, name: str = "class") -> ConfusionData:
    matrix = [
        [100 + t if t == p else (7 if p == t + 1 else 0) for p in range(size)] for t in range(size)
    ]
    return ConfusionData("test", [f"{name} {index}" for index in range(size)], matrix)


def test_seed_0_23_and_1_13_loss_curves_have_title_axes_and_legend() -> None:
    rows = history(30)
    found = texts(learning_curves(rows, best=rows[19]))

    assert {"Loss by epoch", "Epoch", "Loss", "train", "valid", "kept: epoch 20"} <= set(found)


def test_seed_1_13_a_monitored_test_loss_is_drawn_beside_the_training_loss() -> None:
    rows = [EpochRow(epoch, 1 / epoch, test_loss=2 / epoch) for epoch in (1, 2, 3)]
    found = texts(learning_curves(rows))

    assert {"train", "test"} <= set(found)
    assert "valid" not in found


def test_without_valid_losses_there_is_no_valid_curve() -> None:
    found = texts(learning_curves(history(5, has_valid=False)))

    assert "train" in found
    assert "valid" not in found


def test_losses_of_several_magnitudes_get_a_logarithmic_axis() -> None:
    rows = [EpochRow(epoch, 10.0**-epoch) for epoch in range(1, 6)]

    assert "Loss (logarithmic)" in texts(learning_curves(rows))
    assert "Loss (logarithmic)" not in texts(learning_curves(history(5)))


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0, 1e300, 1e-300, None])
def test_any_loss_can_be_drawn(loss: float | None) -> None:
    rows = [EpochRow(1, 1.0, 2.0), EpochRow(2, loss, loss), EpochRow(3, 0.5, 1.0)]

    assert learning_curves(rows, best=rows[1])
    assert learning_curves([replace(row, train_loss=loss, valid_loss=loss) for row in rows])


def test_a_long_history_is_thinned_but_keeps_its_ends_and_the_best_epoch() -> None:
    rows = history(50_000)

    svg = learning_curves(rows, best=rows[33_332])

    assert "kept: epoch 33333" in texts(svg)
    assert len(svg) < 100_000


def test_many_monitored_values_fit() -> None:
    tags = [f"Accuracy of a long name/{index}" for index in range(12)]
    rows = [EpochRow(epoch, 1.0, monitored=dict.fromkeys(tags, 0.5)) for epoch in (1, 2)]

    found = texts(monitored_curves(rows))

    assert sum("/" in text for text in found) == 12


@pytest.mark.parametrize("size", [2, 5, 30, 50])
def test_seed_0_25_the_confusion_matrix_has_counts_names_and_axes(size: int) -> None:
    found = texts(confusion_matrix(confusion_of(size)))

    assert {"Predicted", "True", "Confusion matrix, test split"} <= set(found)
    assert found.count(f"class {size - 1}") == 2
    assert {"100", f"{100 + size - 1}", "7"} <= set(found)


@pytest.mark.parametrize("size", [1, 51])
def test_other_numbers_of_classes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="expected 2 to 50 classes"):
        confusion_matrix(confusion_of(size))


def test_long_names_are_shortened_in_the_middle() -> None:
    found = texts(confusion_matrix(confusion_of(3, "a name that goes on and on")))

    assert found.count("a name th\u2026and on 2") == 2


def test_a_class_without_rows_is_drawn() -> None:
    assert "3" in texts(confusion_matrix(ConfusionData("test", ["a", "b"], [[3, 0], [0, 0]])))


def test_letters_that_matplotlib_lacks_are_left_to_the_browser() -> None:
    names = ["\u65e5\u672c\u8a9e", "\u0633\u0644\u0627\u0645"]

    found = texts(confusion_matrix(ConfusionData("test", names, [[3, 0], [0, 1]])))

    assert found.count(names[0]) == found.count(names[1]) == 2


def test_seed_0_24_predictions_are_plotted_against_truth() -> None:
    svg = predicted_against_actual(RegressionData("test", [1.0, 2.0], [1.1, math.nan], 2))

    assert {"Actual", "Predicted", "equal", "test rows"} <= set(texts(svg))


@pytest.mark.parametrize(
    "values", [[], [3.0], [3.0, 3.0], [math.inf], [1e12, 1e12 + 1], [1e-300, 1e300]]
)
def test_any_predictions_can_be_drawn(values: list[float]) -> None:
    assert predicted_against_actual(RegressionData("test", values, values, len(values)))


def test_values_far_from_zero_are_drawn_less_what_they_have_in_common() -> None:
    actual = [1e12 + row for row in range(100)]
    predicted = [1e12 - 4096.0 + row for row in range(100)]
    found = texts(predicted_against_actual(RegressionData("test", actual, predicted, 100)))

    assert "Actual, less 999,999,900,000" in found
    assert "Predicted, less 999,999,900,000" in found
    assert max(len(text) for text in found if re.fullmatch(r"[0-9.,e+-]+", text)) <= 8


def test_neighbouring_ticks_are_told_apart() -> None:
    values = [1_000_000.1, 1_000_000.2, 1_000_000.9]

    ticks = texts(predicted_against_actual(RegressionData("test", values, values, 3)))
    numbers = [text for text in ticks if re.fullmatch(r"[\d.,]+M?", text)]

    assert len(set(numbers)) > len(numbers) / 3


def test_seed_1_18_train_is_blue_test_is_green_and_predictions_are_red() -> None:
    svg = regression_line(LineData("x", [0.0], [0.3], [1.0], [1.0], [0.9]), target="y")

    assert {"x", "y", "train", "test", "predictions"} <= set(texts(svg))
    for colour in ("#0072b2", "#009e73", "#cc3311"):
        assert colour in svg


@pytest.mark.parametrize("count", [2000])
def test_the_largest_scatter_plot_stays_small(count: int) -> None:
    values = [math.sin(index) for index in range(count)]

    svg = predicted_against_actual(RegressionData("test", values, values[::-1], count))

    assert svg.count("<use") >= count
    assert len(svg) < 150_000


def test_a_figure_scales_and_brings_no_style_or_metadata_of_its_own() -> None:
    root = parsed(learning_curves(history(5)))

    assert root.get("viewBox") == "0 0 400 280"
    assert "width" not in root.attrib
    assert "width:100%" in root.attrib["style"]
    assert root.get("role") == "img"
    assert not {element.tag for element in root.iter()} & {"style", "metadata", "image", "script"}


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one length"):
        RegressionData("test", [1.0], [1.0, 2.0], 2)
    with pytest.raises(ValueError, match="2 x 2 counts"):
        ConfusionData("test", ["a", "b"], [[1, 2]])
    with pytest.raises(ValueError, match="sample them"):
        RegressionData("test", [1.0] * 2001, [1.0] * 2001, 2001)
