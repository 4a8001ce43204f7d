"""A trace shows the steps that were asked for, and changes nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.training import profiling
from tests.support.builders import layout_for, mixed_table, spec_for, stop_training, storage_of


class Notes(Progress):
    """Remembers what a person should know."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def train(folder: Path, profile: Any) -> tuple[Any, str, list[str], list[Path]]:
    """Train 3 epochs of 3 steps; the spec, the hash of the end, the notes and the traces."""
    folder.mkdir(exist_ok=True)
    tracking = {"tensorboard": False, **({"profile": profile} if profile else {})}
    loaded = spec_for(folder, mixed_table(60), tracking=tracking)
    notes = Notes()
    trained = run_spec(loaded, progress=notes, last="train").trained
    assert trained is not None
    root = storage_of(loaded).root / layout_for(loaded).root
    return loaded, trained.content["state_sha256"], notes.texts, sorted(root.glob("profile/*"))


def times(trace: Path, name: str) -> int:
    """How often an operation was called."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(event.get("name") == name and event.get("ph") == "X" for event in events)


def test_the_trace_has_the_steps_that_were_asked_for_and_no_bit_changes(tmp_path: Path) -> None:
    _, plain, said, traces = train(tmp_path / "plain", None)
    assert (said, traces) == ([], [])
    # From the second step of the first epoch to the first of the second.
    _, traced, said, traces = train(tmp_path / "traced", {"start_step": 1, "steps": 3})
    assert traced == plain
    (trace,) = traces
    assert trace.name == "rank-0-steps-1-3.json.gz"
    (note,) = said
    assert note.startswith(f"the trace of steps 1 to 3 is {trace}")
    assert "perfetto" in note
    assert times(trace, "autograd::engine::evaluate_function: AddmmBackward0") == 3 * 2


def test_a_training_that_ends_among_the_steps_leaves_what_there_is(tmp_path: Path) -> None:
    _, _, said, (trace,) = train(tmp_path, {"start_step": 8, "steps": 100})
    assert "steps 8 to 8" in said[0]
    assert times(trace, "autograd::engine::evaluate_function: AddmmBackward0") == 2


def test_a_training_that_ends_before_the_steps_says_so(tmp_path: Path) -> None:
    _, _, (note,), traces = train(tmp_path, {"start_step": 9})
    assert traces == []
    assert "begins with step 9, and the last was 8" in note


def test_r26_a_trace_that_cannot_be_stored_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiling.profile, "export_chrome_trace", refuse)
    _, traced, (note,), _ = train(tmp_path / "traced", {"start_step": 0, "steps": 2})
    assert "No space left" in note
    assert traced == train(tmp_path / "plain", None)[1]


def test_a_run_that_is_stopped_and_resumed_has_one_trace(tmp_path: Path) -> None:
    tracking = {"tensorboard": False, "profile": {"start_step": 1, "steps": 1}}
    loaded = spec_for(tmp_path, mixed_table(60), tracking=tracking)
    stop_training(loaded, 4)
    _, _, said, traces = train(tmp_path, {"start_step": 1, "steps": 1})
    assert len(traces) == 1
    assert said == []
