"""Several ranks train what one process trains: weights, history, and what is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from batchtrain.errors import ArtifactDamagedError, RankLostError, TrainingError
from batchtrain.preparation import prepare
from batchtrain.preparation import shards as writing
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import Determinism
from batchtrain.training import machine
from tests.support.builders import mixed_table, prepared_for, quantity_table, spec_for
from tests.support.ranks import (
    KILLED_WHEN_SAVED,
    SAVED_OFTEN,
    Told,
    compared,
    custom_spec,
    last_weights,
    newest_step,
    train_ranks,
)

pytestmark = pytest.mark.fault

SIZES = [1, 2, 3, 4]

# --- whole trainings --------------------------------------------------------------------------


def test_p2_sgd_without_dropout_ends_with_the_same_weights_and_begins_with_the_same_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that each split is several blocks, of which every rank measures some.
    monkeypatch.setattr(machine, "GATHER_ROWS", 10)
    found = {}
    for size in (0, *SIZES):
        folder = tmp_path / str(size)
        folder.mkdir()
        loaded = spec_for(
            folder,
            mixed_table(230),
            model={"kind": "mlp", "hidden": [16, 8], "dropout": 0.0},
            training={"epochs": 3, "batch_size": 24, "optimizer": {"kind": "sgd", "lr": 0.1}},
            tracking={"tensorboard": False, "monitor": ["train", "valid", "test"]},
        )
        found[size] = train_ranks(loaded, size)
    first = {
        size: each.artifact.read("history.jsonl").splitlines()[0] for size, each in found.items()
    }
    assert b"test_accuracy" in first[0]
    assert set(first.values()) == {first[0]}
    expected = last_weights(found[0])
    assert compared(found[1]) == compared(found[0])
    for size in (2, 3, 4):
        for name, value in last_weights(found[size]).items():
            assert float((value - expected[name]).norm() / expected[name].norm()) < 1e-5


@pytest.mark.parametrize("determinism", ["order", "canonical"])
@pytest.mark.parametrize("num_rows", [1, 5, pytest.param(2, marks=pytest.mark.long)])
def test_d04_fewer_rows_than_ranks_train_as_in_one_process(
    tmp_path: Path, num_rows: int, determinism: Determinism
) -> None:
    split = {"kind": "ordered", "fractions": {"train": 0.5, "valid": 0.5}}
    found = []
    for size in (0, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        loaded = spec_for(
            folder,
            quantity_table(2 * num_rows),
            target="y",
            data={"split": split},
            model={"kind": "mlp", "hidden": [4], "dropout": 0.0},
            training={"epochs": 3, "batch_size": 2, "optimizer": {"kind": "sgd"}},
            determinism=determinism,
        )
        found.append(train_ranks(loaded, size))
    assert found[0].content["steps"] == found[1].content["steps"] == 3 * -(-num_rows // 2)
    if determinism == "canonical":
        assert compared(found[0]) == compared(found[1])
    expected, weights = map(last_weights, found)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


SELDOM_USED_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.seldom = nn.Linear(inputs.num_numeric, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        outputs_BK = self.line(numeric_BF)
        wanted = numeric_BF[:, :1] > 1.0
        if wanted.any():
            outputs_BK = outputs_BK + wanted * self.seldom(numeric_BF)
        return outputs_BK
"""


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_p2_a_part_of_the_network_that_few_rows_use_learns_as_in_one_process(
    tmp_path: Path, determinism: Determinism
) -> None:
    found = []
    for size in (0, 3):
        # The row of zeros with which DDP is tried does not use it.
        loaded = custom_spec(
            tmp_path / str(size),
            SELDOM_USED_NET,
            training={"optimizer": {"kind": "sgd", "lr": 0.05}},
            determinism=determinism if size else "order",
        )
        found.append(last_weights(train_ranks(loaded, size)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


# --- rows in memory, or streaming -------------------------------------------------------------


@pytest.mark.parametrize("determinism", ["order", "canonical"])
def test_p2_ranks_whose_rows_stream_end_with_the_same_bytes_after_a_kill_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, determinism: Determinism
) -> None:
    # Nine shards, in windows of two.
    monkeypatch.setattr(writing, "SHARD_ROWS", 8)
    monkeypatch.setattr(prepare, "WINDOW_ROWS", 16)
    sections: dict[str, Any] = {
        "data": {"lanes": 2 if determinism == "order" else 1},
        "training": {"epochs": 3, "batch_size": 6, "checkpoint": SAVED_OFTEN},
        "tracking": {"tensorboard": False, "monitor": ["train", "valid"]},
        "determinism": determinism,
    }
    found = {}
    for rows in ("resident", "streaming", "killed"):
        folder = tmp_path / rows
        folder.mkdir()
        resources = {"rows": "resident" if rows == "resident" else "streaming"}
        loaded = spec_for(folder, mixed_table(103), **sections, resources=resources)
        if rows == "killed":
            with pytest.raises(RankLostError):
                train_ranks(loaded, 3, faults={1: "step.optimizer:15:kill"})
            assert newest_step(loaded) > 0
        found[rows] = train_ranks(loaded, 3)
    assert found["streaming"].machine()["rows"] == "streaming"
    expected = compared(found["resident"])
    assert compared(found["streaming"]) == expected
    assert compared(found["killed"]) == expected


def test_d26_one_rank_that_finds_a_damaged_shard_ends_all_with_its_name(tmp_path: Path) -> None:
    loaded = spec_for(
        tmp_path, mixed_table(103), data={"lanes": 6}, resources={"rows": "streaming"}
    )
    prepared = prepared_for(loaded)
    # Of the last lane, which the last rank alone reads.
    name = prepared.shard_names("train")[-1]
    storage, key = prepared.artifact.storage, prepared.artifact.key
    path = f"{key}/{prepared.artifact.manifest.files[name].path}"
    storage.write(path, storage.read(path)[:-1] + b"!")
    with pytest.raises(ArtifactDamagedError, match=rf"{name}.*found other bytes"):
        train_ranks(loaded, 3)


# --- canonical: the number of ranks does not show ---------------------------------------------

ADAM = {"kind": "adam", "lr": 0.01}
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True}


def canonical_spec(
    folder: Path,
    *,
    rows: int = 61,
    epochs: int = 2,
    batch_size: int | str = 16,
    lanes: int = 1,
    optimizer: Mapping[str, Any] = ADAM,
    training: Mapping[str, Any] | None = None,
    **sections: Any,
) -> LoadedSpec:
    folder.mkdir()
    return spec_for(
        folder,
        mixed_table(rows),
        data={"lanes": lanes},
        training={
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "checkpoint": SAVED_OFTEN,
            **(training or {}),
        },
        determinism="canonical",
        **sections,
    )


def states_of(folder: Path, sizes: list[int], **options: Any) -> list[dict[str, str]]:
    return [
        compared(train_ranks(canonical_spec(folder / str(size), **options), size)) for size in sizes
    ]


STOPS_EARLY = {
    "early_stopping": {"patience": 2},
    "schedule": {"kind": "plateau", "factor": 0.5, "patience": 0},
}
LONG = pytest.mark.long
CANONICAL = [
    pytest.param({"optimizer": ADAM}, [0, 2, 4], id="adam"),
    pytest.param({"optimizer": SGD, "lanes": 4}, [0, 3], id="sgd, 4 lanes"),
    pytest.param({"batch_size": 3, "lanes": 16}, [0, 3], id="fewer rows than groups, 16 lanes"),
    pytest.param({"epochs": 30, "training": STOPS_EARLY}, [0, 3], id="early stop", marks=LONG),
    pytest.param({"resources": {"cpus_per_worker": 2}}, [0, 2], id="two threads", marks=LONG),
]
CANONICAL_LONG = [
    pytest.param({"rows": rows, "batch_size": size, "optimizer": optimizer, "lanes": lanes})
    for rows, size, lanes in (
        (12, 5, 4),
        (12, "full", 16),
        (61, 5, 1),
        (61, 5, 16),
        (61, 16, 4),
        (61, "full", 1),
    )
    for optimizer in (ADAM, SGD)
]


@pytest.mark.parametrize(("options", "sizes"), CANONICAL)
def test_r09_canonical_runs_are_the_same_bytes_on_any_number_of_ranks(
    tmp_path: Path, options: dict[str, Any], sizes: list[int]
) -> None:
    first, *others = states_of(tmp_path, sizes, **options)
    assert others == [first] * len(others)


@pytest.mark.long
@pytest.mark.parametrize("options", CANONICAL_LONG)
def test_r09_canonical_runs_are_the_same_bytes_on_every_number_of_ranks(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    first, *others = states_of(tmp_path, [0, 1, 2, 3, 4, 8], **options)
    assert others == [first] * len(others)


def test_r09_a_canonical_run_that_changes_its_ranks_at_each_kill_is_the_same_bytes(
    tmp_path: Path,
) -> None:
    whole = train_ranks(canonical_spec(tmp_path / "whole", epochs=6))
    loaded = canonical_spec(tmp_path / "killed", epochs=6)
    told = Told()
    steps = [0]
    for size, rank in ((2, 1), (4, 3), (3, 0)):
        with pytest.raises(RankLostError, match=f"rank {rank} of {size}"):
            train_ranks(loaded, size, progress=told, faults={rank: KILLED_WHEN_SAVED})
        steps.append(newest_step(loaded))
    assert steps == sorted(set(steps))
    killed = train_ranks(loaded, progress=told)
    assert killed.inexact() == []
    assert killed.machine()["workers"] == 1
    assert compared(killed) == compared(whole)
    assert [note for note in told.notes if "workers" in note] == []


def test_r09_more_ranks_than_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"rank 0: expected at most 8 workers.*found 9"):
        train_ranks(canonical_spec(tmp_path / "many"), 9)


NORMED_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        return self.last(self.norm(self.line(numeric_BF)))
"""


@pytest.mark.parametrize(
    ("determinism", "size", "where"),
    [
        ("canonical", 0, "with `determinism: canonical`"),
        ("canonical", 2, "with `determinism: canonical`"),
        ("order", 2, "with several workers"),
    ],
)
def test_batch_normalisation_is_refused_where_a_batch_is_divided(
    tmp_path: Path, determinism: Determinism, size: int, where: str
) -> None:
    loaded = custom_spec(tmp_path, NORMED_NET, determinism=determinism)
    with pytest.raises(TrainingError, match=f"{where}, found BatchNorm1d in 'norm'.*LayerNorm"):
        train_ranks(loaded, size)


# --- order: another number of ranks is other rounding -----------------------------------------


def test_r10_a_resume_on_another_number_of_ranks_is_noted_and_recorded(tmp_path: Path) -> None:
    loaded = spec_for(
        tmp_path,
        mixed_table(90),
        training={"epochs": 4, "batch_size": 16, "checkpoint": SAVED_OFTEN},
    )
    notes, expected = [], []
    for then, now in ((2, 3), (3, 2)):
        told = Told()
        with pytest.raises(RankLostError):
            train_ranks(loaded, then, progress=told, faults={1: KILLED_WHEN_SAVED})
        notes.append([note for note in told.notes if note.startswith("workers")])
        step = newest_step(loaded)
        expected.append({"step": step, "what": "workers", "then": then, "now": now})
    told = Told()
    trained = train_ranks(loaded, 2, progress=told)
    notes.append([note for note in told.notes if note.startswith("workers")])
    assert trained.inexact() == expected
    assert trained.machine()["workers"] == 2
    assert [len(each) for each in notes] == [0, 1, 1]
    assert notes[1][0].startswith("workers is 3 here, and the attempt before had 2")
    assert notes[2][0].startswith("workers is 2 here, and the attempt before had 3")


# --- what the ranks check and what is told ----------------------------------------------------

OWN_NUMBERS_NET = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        if {in_weights}:
            self.line.bias.data += os.getpid() % 1000
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, numeric_BF, codes_BC):
        if not {in_weights} and self.training:
            self.shift = torch.full((1,), float(os.getpid() % 1000))
        return self.line(numeric_BF) + self.shift
"""


@pytest.mark.parametrize("determinism", ["order", "canonical"])
@pytest.mark.parametrize("in_weights", [False, True])
def test_ranks_that_begin_or_end_with_other_weights_are_an_error(
    tmp_path: Path, determinism: Determinism, in_weights: bool
) -> None:
    code = OWN_NUMBERS_NET.format(in_weights=in_weights)
    loaded = custom_spec(
        tmp_path, code, training={"optimizer": {"kind": "sgd", "lr": 1e-9}}, determinism=determinism
    )
    told = Told()
    with pytest.raises(TrainingError, match=r"same weights on all 3 ranks, found others on ranks"):
        train_ranks(loaded, 3, progress=told)
    assert told.epochs == ([] if in_weights else [0, 1, 2, 3])


def test_only_rank_0_writes_event_files_and_every_epoch_is_told_once(tmp_path: Path) -> None:
    folders = {}
    for size in (0, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        told = Told()
        loaded = spec_for(folder, mixed_table(60), tracking={"tensorboard": True})
        trained = train_ranks(loaded, size, progress=told)
        assert told.records == trained.history()
        assert told.epochs == [0, 1, 2, 3]
        assert told.notes == []
        files = sorted((folder / "runs").rglob("events.out.tfevents.*"))
        folders[size] = [path.parent.name for path in files]
        writers = {path.name.split(".")[-2] for path in files}
        assert len(writers) == 1
        assert (str(os.getpid()) in writers) == (size == 0)
    assert folders[3] == folders[0] != []


def test_r26_what_a_rank_notes_arrives(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    loaded = spec_for(tmp_path, mixed_table(60), tracking={"tensorboard": {"dir": "file/events"}})
    told = Told()
    train_ranks(loaded, 2, progress=told)
    assert len(told.notes) == 1
    assert told.notes[0].startswith("there are no event files for TensorBoard")
