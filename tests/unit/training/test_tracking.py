"""Event files are for people: losing them never costs a run, nor another run's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from batchtrain.training import loop
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


def test_a_run_whose_event_files_vanish_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    folder = storage_of(loaded).root / layout_for(loaded).tensorboard
    add = loop.StepLosses.add

    def add_and_remove(self: loop.StepLosses, *arguments: Any) -> None:
        add(self, *arguments)
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(loop.StepLosses, "add", add_and_remove)
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
