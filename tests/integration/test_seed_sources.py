"""Rows of the checklist that ask for a source or for files of their own, by their IDs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchtrain.tables import SAMPLES
from tests.support.builders import write_table
from tests.support.runs import finish
from tests.support.sources import write_hugging_face_splits

WriteSpec = Callable[[str], Path]


def test_seed_0_2_hugging_face_data_set(tmp_path: Path, write_spec: WriteSpec) -> None:
    table = SAMPLES["drug200"]()
    parts = {"train": table.slice(0, 140), "validation": table.slice(140, 20)}
    write_hugging_face_splits(tmp_path / "drugs", {**parts, "test": table.slice(160)})
    spec = write_spec("name: folder\ndata: {source: 'hf:./drugs', target: Drug}\n")

    run = finish(spec, "training.epochs=2")

    rows = {"train": range(140), "valid": range(140, 160), "test": range(160, 200)}
    for split, expected in rows.items():
        assert run.row_ids(split).tolist() == list(expected)
        names = table["Drug"].take(np.array(expected)).to_pylist()
        assert run.class_names(split) == names
    assert set(run.metrics) >= {"test"}


def test_a_train_and_a_test_set_as_files_of_their_own(
    tmp_path: Path, write_spec: WriteSpec
) -> None:
    """The second half of row 3.1."""
    table: pa.Table = SAMPLES["popularity"]()
    write_table(tmp_path / "popularity-train.csv", table.slice(0, 800))
    write_table(tmp_path / "popularity-test.csv", table.slice(800))
    spec = write_spec(
        "name: files\n"
        "data:\n"
        "  target: popular\n"
        "  split: {kind: files, train: popularity-train.csv, test: popularity-test.csv}\n"
    )

    run = finish(spec, "training.epochs=2")

    assert run.row_ids("train").tolist() == list(range(800))
    assert run.row_ids("test").tolist() == list(range(800, 1000))
    assert run.metrics["test"]["accuracy"] > 0.5
