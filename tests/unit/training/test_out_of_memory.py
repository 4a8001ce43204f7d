"""Memory that runs out halves the rows at once, and the training goes on as if it had not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from batchtrain import points
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import RankMemoryError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.rank import TrainTask
from batchtrain.training.train import OneProcess
from tests.support.builders import layout_for, mixed_table, spec_for
from tests.support.ranks import Told

# 42 training rows in batches of 8: six steps an epoch.
TRAINING = {"epochs": 3, "batch_size": 8, "checkpoint": {"every_steps": 2, "every_seconds": None}}


def small(folder: Path, **training: Any) -> LoadedSpec:
    model = {"kind": "mlp", "hidden": [8], "dropout": 0.0}
    folder.mkdir(exist_ok=True)
    return spec_for(folder, mixed_table(60), model=model, training={**TRAINING, **training})


class Short:
    """A launcher in this process whose memory runs out at the n-th forward of each attempt."""

    restarts = False

    def __init__(self, forwards: Sequence[int]) -> None:
        self.forwards = forwards
        self.tasks: list[TrainTask] = []

    choose_machine = OneProcess().choose_machine

    def __call__(self, task: TrainTask, *rest: Any) -> Any:
        """See `Launcher`."""
        number = len(self.tasks)
        self.tasks.append(task)
        if number < len(self.forwards):
            points.listen(_running_out(self.forwards[number]))
        try:
            return OneProcess()(task, *rest)
        finally:
            points.listen(None)

    @property
    def micro_rows(self) -> list[int | None]:
        return [task.machine.micro_rows for task in self.tasks]


def _running_out(forward: int) -> Any:
    count = 0

    def listener(name: str) -> None:
        nonlocal count
        count += name == "step.forward"
        if name == "step.forward" and count == forward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return listener


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    points.listen(None)


def train(loaded: LoadedSpec, launcher: Any = None, told: Progress | None = None) -> TrainedModel:
    trained = run_spec(loaded, last="train", launcher=launcher, progress=told).trained
    assert trained is not None
    return trained


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return train(small(tmp_path_factory.mktemp("undisturbed") / "run"))


def assert_same_curve(trained: TrainedModel, other: TrainedModel) -> None:
    curves = [
        [each[name] or 0.0 for each in model.history() for name in ("train_loss", "valid_loss")]
        for model in (trained, other)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=0, abs=1e-6)


def inexact_of(trained: TrainedModel) -> Any:
    return json.loads(trained.artifact.read("inexact.json"))


def test_the_rows_at_once_are_halved_and_the_loss_curve_stays(
    tmp_path: Path, undisturbed: TrainedModel
) -> None:
    told, launcher = Told(), Short([6])
    trained = train(small(tmp_path), launcher, told)
    assert launcher.micro_rows == [None, 4]
    assert_same_curve(trained, undisturbed)
    assert inexact_of(trained) == [{"step": 4, "what": "micro_rows", "then": None, "now": 4}]
    assert trained.machine()["micro_rows"] == 4
    (note,) = told.notes
    assert "expected the step to fit into memory" in note
    assert "Tried to allocate 2.00 GiB" in note
    assert "goes on from step 4 with at most 4 rows at once" in note


def test_they_are_halved_down_to_one_row_before_a_retry_is_used_up(
    tmp_path: Path, undisturbed: TrainedModel
) -> None:
    told, launcher = Told(), Short([6, 2, 3, 5])
    with pytest.raises(RankMemoryError, match=r"Lower `training\.micro_batch`"):
        train(small(tmp_path), launcher, told)
    assert launcher.micro_rows == [None, 4, 2, 1]
    # Nothing is forgotten: the next start goes on with what was found out.
    launcher = Short([])
    trained = train(small(tmp_path), launcher)
    assert launcher.micro_rows == [1]
    assert_same_curve(trained, undisturbed)


def test_before_the_first_checkpoint_the_run_is_one_that_began_with_fewer_rows(
    tmp_path: Path,
) -> None:
    trained = train(small(tmp_path / "cut"), Short([1, 2]))
    assert trained.machine()["micro_rows"] == 2
    assert inexact_of(trained) == []
    asked = train(small(tmp_path / "asked", micro_batch=2))
    for name in ("last.safetensors", "history.jsonl"):
        assert trained.artifact.read(name) == asked.artifact.read(name)


def test_what_was_halved_counts_although_no_checkpoint_has_it_yet(tmp_path: Path) -> None:
    loaded, launcher = small(tmp_path), Short([6, 1])
    train(loaded, launcher)
    assert [task.resumed.step for task in launcher.tasks[1:] if task.resumed] == [4, 4]
    assert launcher.micro_rows == [None, 4, 2]


def test_what_cannot_be_halved_is_an_error(tmp_path: Path) -> None:
    loaded = small(tmp_path, micro_batch=3)
    launcher = Short([2])
    with pytest.raises(RankMemoryError):
        train(loaded, launcher)
    assert launcher.micro_rows == [3]
    layout = layout_for(loaded)
    assert json.loads(layout.storage.read(layout.run_record))["micro_rows"] == 3


class Restarting(Short):
    restarts = True


def test_r25_where_halving_is_no_way_out_the_retries_count(tmp_path: Path) -> None:
    launcher, told = Restarting([2, 2, 2]), Told()
    with pytest.raises(RankMemoryError):
        train(small(tmp_path, micro_batch=3), launcher, told)
    assert launcher.micro_rows == [3, 3]
    assert [("retry out_of_memory: 1 of 1" in note) for note in told.notes] == [True]
