"""What no training can use is found by the first look at the rows, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.errors import DataError
from batchtrain.preparation.stage import open_input, survey_input
from tests.support.builders import quantity_table, spec_for


def look_at(folder: Path, column: str, value: float | None, **data: Any) -> None:
    table = quantity_table(60)
    for name in ("y", "w"):
        cells: list[float | None] = np.linspace(1, 2, 60).tolist()
        if name == column:
            cells[10] = value
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(cells))
    loaded = spec_for(folder, table, target="y", file="rows.csv", data=data)
    survey_input(loaded, open_input(loaded))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("y", float("inf"), "target 'y': expected finite numbers, found inf in row 10"),
        ("y", 1e300, "target 'y': expected numbers whose squares fit a float64"),
        ("w", None, "column of weights 'w'.*found no value in row 10"),
        ("w", -1.0, "column of weights 'w'.*found -1.0 in row 10"),
    ],
)
def test_a_first_look_finds_values_that_no_training_can_use(
    tmp_path: Path, column: str, value: float | None, words: str
) -> None:
    split = {"kind": "ordered"}
    with pytest.raises(DataError, match=words):
        look_at(tmp_path, column, value, weight="w", split=split)


def test_a_target_that_is_missing_is_dropped_and_its_weight_with_it(tmp_path: Path) -> None:
    look_at(tmp_path, "y", None, weight="w")
