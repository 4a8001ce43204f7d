"""Note 0, drug200, from rows to batches: one test for each row of its checklist, by its ID."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from batchtrain.tables import SAMPLES, write_sample
from batchtrain.training.plan import make_plan, row_order
from batchtrain.training.worker import ResidentWorker
from tests.support.runs import FinishedRun, finish

Example = Callable[..., FinishedRun]
WriteSpec = Callable[[str], Path]

CLASSES = ["DrugY", "drugA", "drugB", "drugC", "drugX"]
CATEGORIES = {
    "Sex": ["F", "M"],
    "BP": ["HIGH", "LOW", "NORMAL"],
    "Cholesterol": ["HIGH", "NORMAL"],
}


@pytest.fixture(scope="session")
def holey() -> pd.DataFrame:
    """drug200 with missing cells."""
    return SAMPLES["drug200-missing"]().to_pandas()


# ----------------------------------------------------------------------------------------------
# Rows in


def test_seed_0_1_local_csv(tmp_path: Path, write_spec: WriteSpec) -> None:
    write_sample("drug200", tmp_path / "drug200.csv")
    frame = pd.read_csv(tmp_path / "drug200.csv")
    spec = write_spec("name: local\ndata: {source: drug200.csv, target: Drug}\n")

    run = finish(spec, last="prepare")

    ids = np.concatenate([run.row_ids(split) for split in ("train", "valid", "test")])
    assert sorted(ids) == list(range(len(frame)))
    for split in ("train", "valid", "test"):
        assert run.class_names(split) == frame["Drug"][run.row_ids(split)].tolist()


def test_seed_0_3_missing_drop(write_spec: WriteSpec, holey: pd.DataFrame) -> None:
    spec = write_spec(
        "name: dropping\n"
        "data:\n"
        "  source: sample:drug200-missing\n"
        "  target: Drug\n"
        "  columns:\n"
        "    Age: {kind: numeric, missing: drop}\n"
        "    Na_to_K: {kind: numeric, missing: drop}\n"
    )

    run = finish(spec, last="prepare")

    ids = np.concatenate([run.row_ids(split) for split in ("train", "valid", "test")])
    kept = holey.dropna()
    assert 0 < len(kept) < len(holey)
    assert sorted(ids) == kept.index.tolist()
    dropped = [c for c in run.prepared.profile()["changes"] if c["what"] == "dropped"]
    assert sum(change["count"] for change in dropped) == len(holey) - len(kept)


def test_seed_0_4_missing_mean_of_train_rows_only(example: Example, holey: pd.DataFrame) -> None:
    run = example("drug200-missing")

    for column in ("Age", "Na_to_K"):
        of_train = holey[column][run.row_ids("train")].mean()
        assert run.preprocessing[column]["fill"] == pytest.approx(of_train, rel=1e-12)
        assert of_train != pytest.approx(holey[column].mean(), rel=1e-6)
        assert run.changes("filled")[column] == holey[column].isna().sum()
    # A filled cell is the mean, so 0 once it is scaled.
    rows = run.prepared.load("test")
    was_missing = holey["Na_to_K"][rows.row_id].isna().to_numpy()
    assert was_missing.any()
    assert rows.numeric[was_missing, 1] == pytest.approx(0, abs=1e-6)


# ----------------------------------------------------------------------------------------------
# Preprocessing


def test_seed_0_5_category_encoder_per_column(drug200: FinishedRun, patients: pd.DataFrame) -> None:
    rows = drug200.prepared.load("test")

    for place, (column, categories) in enumerate(CATEGORIES.items()):
        assert drug200.preprocessing[column]["categories"] == categories
        # Code 0 is for values that the training rows do not have.
        decoded = [categories[code - 1] for code in rows.codes[:, place]]
        assert decoded == patients[column][rows.row_id].tolist()


def test_seed_0_6_standard_scale(drug200: FinishedRun, patients: pd.DataFrame) -> None:
    raw = patients[["Age", "Na_to_K"]]
    scaler = StandardScaler().fit(raw.loc[drug200.row_ids("train")])

    for split in ("train", "valid", "test"):
        rows = drug200.prepared.load(split)
        expected = scaler.transform(raw.loc[rows.row_id])
        assert rows.numeric == pytest.approx(expected, abs=1e-6)


def test_seed_0_7_split_ratio_and_seed(example: Example) -> None:
    shares = 'data.split={"kind": "random", "fractions": {"train": 0.8, "test": 0.2}}'
    no_schedule = "training.schedule=null"
    first = example("drug200", shares, no_schedule, last="prepare")
    other = example("drug200", shares, no_schedule, "seed=43", last="prepare")

    assert [len(first.row_ids(split)) for split in ("train", "test")] == [160, 40]
    assert not set(first.row_ids("train")) & set(first.row_ids("test"))
    assert set(first.row_ids("test")) != set(other.row_ids("test"))


def test_seed_0_8_target_encoder(drug200: FinishedRun, patients: pd.DataFrame) -> None:
    state = drug200.prepared.preprocessing_state()

    assert state["target"]["classes"] == CLASSES
    assert "Drug" not in drug200.preprocessing
    assert drug200.class_names("test") == patients["Drug"][drug200.row_ids("test")].tolist()


def test_seed_0_9_float32_features_and_int64_labels(drug200: FinishedRun) -> None:
    rows = drug200.prepared.load("train")

    assert (rows.numeric.dtype, rows.codes.dtype) == (np.float32, np.int64)
    assert rows.target.dtype == np.int64


def worker_of(run: FinishedRun) -> ResidentWorker:
    """The loader of a run, as its training had it."""
    spec = run.loaded.spec
    order = row_order(run.prepared, seed=spec.seed)
    splits = {split: run.prepared.load(split) for split in ("train", "test")}
    return ResidentWorker(make_plan(spec.training, order), splits, torch.device("cpu"))


def test_seed_0_10_loader_over_tensors(drug200: FinishedRun) -> None:
    numeric, codes, target = drug200.tensors("test")

    ((_number, batch),) = worker_of(drug200).split_blocks("test")

    assert torch.equal(batch.numeric_BF, numeric)
    assert torch.equal(batch.codes_BC, codes)
    assert torch.equal(batch.target_B, target)


def test_seed_0_11_batches_of_32_shuffled_in_training_only(drug200: FinishedRun) -> None:
    worker = worker_of(drug200)
    numeric, _, _ = drug200.tensors("train")
    epochs = [
        [share.batches[0].numeric_BF for share in worker.shares(epoch, 0)] for epoch in (0, 1)
    ]

    assert [len(batch) for batch in epochs[0]] == [32, 32, 32, 32, 13]
    first, second = (torch.cat(batches) for batches in epochs)
    assert not torch.equal(first, numeric)
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(numeric.tolist())
    in_order = torch.cat([batch.numeric_BF for _number, batch in worker.split_blocks("train")])
    assert torch.equal(in_order, numeric)
