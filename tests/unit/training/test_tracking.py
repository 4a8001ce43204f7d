"""Event files are for people: losing them never costs a run, nor another run's files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from batchtrain.training import tracking
from tests.support.builders import (
    layout_for,
    mixed_table,
    run,
    spec_for,
    stop_training,
    storage_of,
)

WATCHED = {"tensorboard": True, "log_every_steps": 1}


def event_files(folder: Path) -> set[Path]:
    return set(folder.rglob("events.out.tfevents*"))


@pytest.mark.parametrize("call", ["steps", "epoch", "flush", "hyper_parameters", "graph"])
def test_r26_a_run_whose_event_files_cannot_be_written_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tracking.TensorBoardLog, call, refuse)
    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    assert run(loaded, last="train").stages[-1].status == "built"


def test_a_run_that_begins_deletes_no_event_file_of_another_that_is_under_way(
    tmp_path: Path,
) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    folder = storage_of(loaded).root / layout_for(loaded).tensorboard
    folder.mkdir(parents=True)
    other = folder / "events.out.tfevents.1.other"
    other.write_bytes(b"")
    assert run(loaded, last="train").stages[-1].status == "built"
    assert other in event_files(folder)


def test_a_resume_adds_event_files_and_keeps_those_before_it(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    stop_training(loaded, 2)
    folder = storage_of(loaded).root / layout_for(loaded).tensorboard
    before = event_files(folder)
    assert before
    assert run(loaded, last="train").stages[-1].status == "resumed"
    assert before < event_files(folder)


def test_without_tensorboard_there_are_no_event_files(tmp_path: Path) -> None:
    run(spec_for(tmp_path, mixed_table(60)), last="train")
    assert event_files(tmp_path) == set()
