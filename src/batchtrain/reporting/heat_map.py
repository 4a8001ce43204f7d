"""The confusion matrix as a heat map that grows with its classes."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from batchtrain.reporting.content import ConfusionData
from batchtrain.reporting.wording import shortened, visible

if TYPE_CHECKING:  # matplotlib takes half a second, and a model card needs none of it
    from matplotlib.figure import Figure

__all__ = ["MAX_CLASSES", "confusion_matrix", "has_short_names"]

MAX_CLASSES = 50
"""With more classes a matrix can no longer be read."""

MAX_NAME = 18
"""The most characters of a name beside the matrix."""

MAX_CLASSES_WITH_ZEROS = 12

EM = 12.0
"""The size of the letters, in units of the viewBox."""

INK, FAINT = "#1f2933", "#9aa5b1"


def has_short_names(confusion: ConfusionData) -> bool:
    """Whether some name does not fit beside the matrix as it is."""
    return any(len(visible(name)) > MAX_NAME for name in confusion.class_names)


def confusion_matrix(confusion: ConfusionData) -> str:
    """A heat map with the count in each cell; colour is the share of the true class's rows.

    Long names are shortened in the middle; with more than 12 classes a cell of 0 is left empty.

    Raises:
        ValueError: With fewer than 2 or more than `MAX_CLASSES` classes.
    """
    from batchtrain.reporting.svg import draw

    size = len(confusion.class_names)
    if not 2 <= size <= MAX_CLASSES:
        raise ValueError(
            f"expected 2 to {MAX_CLASSES} classes, found {size}; "
            "show the most confused pairs as a table"
        )
    names = [shortened(name, MAX_NAME) for name in confusion.class_names]
    texts = [[_cell(value, size) for value in row] for row in confusion.matrix]
    longest = max(map(_width, names))
    widest = max(_width(text) for row in texts for text in row)
    cell = max(24.0, widest + 6, min(110.0, 260.0 / size))
    is_slanted = longest > cell - 4
    left, bottom, top = 38 + longest, 40 + (0.72 * longest if is_slanted else EM), 30
    width, height = left + cell * size + 12, bottom + cell * size + top

    def fill(figure: Figure) -> None:
        box = (left / width, bottom / height, cell * size / width, cell * size / height)
        _fill_cells(figure, box, texts, confusion)
        _name_axes(figure, names, is_slanted)
        figure.text((left + cell * size / 2) / width, 6 / height, "Predicted", ha="center")
        where = (14 / width, (bottom + cell * size / 2) / height)
        figure.text(*where, "True", rotation=90, rotation_mode="anchor", ha="center")
        title = f"Confusion matrix, {shortened(confusion.split, 12)} split"
        figure.text(8 / width, 1 - 18 / height, title, fontsize=EM + 1, fontweight="bold")

    label = f"Confusion matrix of {size} classes: rows are true, columns are predicted"
    return draw("confusion", label, (width, height), fill)


def _fill_cells(
    figure: Figure,
    box: tuple[float, float, float, float],
    texts: list[list[str]],
    confusion: ConfusionData,
) -> None:
    axes = figure.add_axes(box)
    shares = [[value / (sum(row) or 1) for value in row] for row in confusion.matrix]
    mesh: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "edgecolors": "white"}
    axes.pcolormesh(shares, linewidth=0.8, **mesh)
    for t, row in enumerate(texts):
        for p, text in enumerate(row):
            ink = "white" if shares[t][p] > 0.55 else (FAINT if text == "0" else INK)
            weight = "bold" if t == p else "normal"
            place: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(p + 0.5, t + 0.5, text, color=ink, fontweight=weight, fontsize=EM, **place)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=EM, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _name_axes(figure: Figure, names: list[str], is_slanted: bool) -> None:
    axes = figure.axes[0]
    centres = [index + 0.5 for index in range(len(names))]
    axes.set_yticks(centres, names)
    axes.set_xticks(centres, names)
    if is_slanted:
        axes.tick_params("x", labelrotation=45)
        for label in axes.get_xticklabels():
            # The end of a name points at its column, whichever font the browser takes.
            label.set(ha="right", rotation_mode="anchor")


def _cell(value: int, num_classes: int) -> str:
    if value == 0 and num_classes > MAX_CLASSES_WITH_ZEROS:
        return ""
    return f"{value}" if value < 1_000_000 else f"{value:.1e}"


def _width(text: str) -> float:
    """About how wide a browser draws the text; rather too much than too little."""
    return EM * sum(
        1.0
        if unicodedata.east_asian_width(char) in "WF" or char in "MW@%"
        else (0.8 if char.isupper() else 0.64)
        for char in text
    )
