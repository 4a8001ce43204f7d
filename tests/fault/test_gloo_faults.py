"""Ranks of a training that are killed, find wrong numbers, or run code that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchtrain.errors import (
    BatchtrainError,
    DivergedError,
    RankFailedError,
    RankLostError,
    TrainingError,
)
from batchtrain.spec.run import Determinism
from tests.support.builders import quantity_table
from tests.support.ranks import (
    KILLED_WHEN_SAVED,
    STUCK,
    Told,
    compared,
    custom_spec,
    forwards_before,
    newest_step,
    small_spec,
    telling_pids,
    train_ranks,
)

pytestmark = pytest.mark.fault


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a `FAULTY_NET` tells its processes; at the end none of them may be left."""
    with telling_pids(tmp_path / "pids", monkeypatch) as folder:
        yield folder


# --- killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 4))]
)
def test_r01_a_run_in_which_each_rank_is_killed_ends_with_the_same_bytes(
    tmp_path: Path, size: int
) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), size)
    loaded = small_spec(tmp_path / "killed")
    steps = [0]
    for rank in reversed(range(size)):
        with pytest.raises(RankLostError, match=rf"rank {rank} of {size} .*killed by SIGKILL"):
            train_ranks(loaded, size, faults={rank: KILLED_WHEN_SAVED})
        steps.append(newest_step(loaded))
    assert steps == sorted(set(steps))
    assert compared(train_ranks(loaded, size)) == compared(quiet)


@pytest.mark.long
def test_r03_r06_r07_five_kills_in_one_run_change_no_byte(tmp_path: Path) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet", epochs=4), 3)
    loaded = small_spec(tmp_path / "killed", epochs=4)
    kills = [
        (1, KILLED_WHEN_SAVED),
        (0, "checkpoint.named:1:kill"),  # a resume that saves at once and is killed
        (2, "resume.done:1:kill"),
        (0, "epoch.steps:1:kill"),
        (2, "step.rows:2:kill"),
    ]
    for rank, fault in kills:
        with pytest.raises(RankLostError, match=f"rank {rank} of 3"):
            train_ranks(loaded, 3, faults={rank: fault})
    assert compared(train_ranks(loaded, 3)) == compared(quiet)


def test_r08_a_kill_after_the_last_checkpoint_leaves_no_step_to_do(tmp_path: Path) -> None:
    quiet = train_ranks(small_spec(tmp_path / "quiet"), 3)
    loaded = small_spec(tmp_path / "killed")
    # The ninth checkpoint of 18 steps is that of the last one.
    with pytest.raises(RankLostError):
        train_ranks(loaded, 3, faults={0: "checkpoint.named:9:kill"})
    assert newest_step(loaded) == 18
    told = Told()
    assert compared(train_ranks(loaded, 3, progress=told)) == compared(quiet)
    assert told.epochs == []


# --- wrong numbers ----------------------------------------------------------------------------

SPOILT = [
    pytest.param("order", "nan", 7),
    pytest.param("order", "infinite_gradient", 8, marks=pytest.mark.long),
    pytest.param("canonical", "nan", 7, marks=pytest.mark.long),
    pytest.param("canonical", "infinite_gradient", 8),
]


@pytest.mark.parametrize(("determinism", "what", "found_in"), SPOILT)
def test_r23_what_one_rank_spoils_ends_all_and_is_in_no_checkpoint(
    tmp_path: Path,
    pids: Path,
    monkeypatch: pytest.MonkeyPatch,
    determinism: Determinism,
    what: str,
    found_in: int,
) -> None:
    quiet = train_ranks(custom_spec(tmp_path / "quiet", determinism=determinism), 3)
    loaded = custom_spec(tmp_path / "spoilt", determinism=determinism)
    with monkeypatch.context() as patch:
        patch.setenv("RANK_FAULT", f"{what}:1:{forwards_before(7, determinism) + 1}")
        # Every rank says so, and the lowest of those that say the same is named.
        with pytest.raises(DivergedError, match=f"^rank 0: .*found (nan|inf) in step {found_in} "):
            train_ranks(loaded, 3)
    assert newest_step(loaded) in {4, 6}
    assert compared(train_ranks(loaded, 3)) == compared(quiet)


def test_r23_what_one_rank_spoils_in_the_last_step_is_not_published(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"kind": "random", "fractions": {"train": 1.0}}
    loaded = custom_spec(tmp_path, data={"split": split}, training={"epochs": 1})
    last = -(-60 // 8) - 1
    monkeypatch.setenv("RANK_FAULT", f"infinite_gradient:1:{forwards_before(last, 'order') + 1}")
    with pytest.raises(DivergedError, match="found NaN or infinity in"):
        train_ranks(loaded, 3)
    assert newest_step(loaded) < last + 1
    monkeypatch.delenv("RANK_FAULT")
    assert train_ranks(loaded, 3).content["steps"] == last + 1


def test_r23_a_poisoned_row_is_found_in_the_step_in_which_one_process_finds_it(
    tmp_path: Path,
) -> None:
    table = quantity_table(60, features=4)
    values = table["y"].to_pylist()
    values[17] = 1e30  # its square is infinite in float32
    table = table.set_column(table.num_columns - 1, "y", [values])
    split = {"kind": "ordered", "fractions": {"train": 0.8, "valid": 0.2}}
    said = []
    for size in (0, 2, 3):
        loaded = custom_spec(tmp_path / str(size), table=table, data={"split": split})
        with pytest.raises(DivergedError) as caught:
            train_ranks(loaded, size)
        said.append(str(caught.value).removeprefix("rank 0: "))
    assert said == [said[0]] * 3
    assert re.search(r"found inf in step \d ", said[0])


# --- code that fails on one rank --------------------------------------------------------------

SKIPPING_NET = """
import torch.distributed as dist
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.other = nn.Linear(inputs.num_numeric, inputs.num_outputs)
        self.forwards = 0

    def forward(self, numeric_BF, codes_BC):
        outputs_BK = self.line(numeric_BF)
        if self.training and dist.is_initialized():
            self.forwards += 1
            if self.forwards == {forward} and dist.get_rank() in {ranks}:
                return outputs_BK
        return outputs_BK + self.other(numeric_BF)
"""


@pytest.mark.parametrize("ranks", [(1,), (0, 1, 2)])
def test_r24_a_step_that_skips_a_parameter_is_an_error_before_anything_comes_of_it(
    tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    code = SKIPPING_NET.format(forward=forwards_before(5, "order") + 1, ranks=ranks)
    every_step = {"every_steps": 1, "every_seconds": None}
    loaded = custom_spec(tmp_path, code, training={"checkpoint": every_step})
    with pytest.raises(TrainingError, match=r"one that does not use 'other\.weight'") as caught:
        train_ranks(loaded, 3, limits=STUCK)
    assert type(caught.value) is TrainingError
    assert newest_step(loaded) <= 5


FAILURES: list[tuple[str, type[BatchtrainError], str]] = [
    ("raise", RankFailedError, r"rank 1 of 3 .*ValueError: these rows are not to my taste"),
    ("exit", RankFailedError, r"rank 1 of 3 .*found SystemExit: 0"),
    ("leave", RankLostError, r"rank 1 of 3 .*its process ended with exit code 0"),
    ("build", TrainingError, r"rank 1: model\.target .*ValueError: this machine is not to my"),
]


FAILING = [
    pytest.param(
        *failure,
        determinism,
        # What one way of the batch shows, the other one seldom hides.
        marks=[] if (failure[0] == "raise") == (determinism == "canonical") else pytest.mark.long,
        id=f"{failure[0]}, {determinism}",
    )
    for failure in FAILURES
    for determinism in ("order", "canonical")
]


@pytest.mark.parametrize(("what", "kind", "said", "determinism"), FAILING)
def test_r24_code_that_fails_on_one_rank_ends_all_with_its_error(
    tmp_path: Path,
    pids: Path,
    monkeypatch: pytest.MonkeyPatch,
    determinism: Determinism,
    what: str,
    kind: type[BatchtrainError],
    said: str,
) -> None:
    number = 0 if what == "build" else forwards_before(4, determinism) + 1
    monkeypatch.setenv("RANK_FAULT", f"{what}:1:{number}")
    with pytest.raises(kind, match=said) as caught:
        train_ranks(custom_spec(tmp_path / "failing", determinism=determinism), 3)
    assert type(caught.value) is kind
    if what == "raise":
        assert "in strike" in str(caught.value)
