"""Exact resume (P1): a run that was stopped ends as one that was not, to the last bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchtrain.artifacts import RunLayout, remove_artifacts
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import ArtifactDamagedError, ArtifactError, InterruptedRunError
from batchtrain.pipeline import RunResult
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.training import loop
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.stage import train
from tests.support.builders import (
    MemoryStorage,
    all_files,
    layout_for,
    mixed_table,
    prepared_for,
    publish,
    quantity_table,
    run,
    spec_for,
    stop_training,
    storage_of,
    train_in_parts,
)

EXACT = ("best.safetensors", "last.safetensors", "history.jsonl", "parameters.json", "run.json")


def hashes(result: RunResult) -> dict[str, str]:
    assert result.trained is not None
    files = result.trained.artifact.manifest.files
    return {name: files[name].sha256 for name in EXACT}


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def broken_and_whole(
    tmp_path: Path, table: pa.Table, stops: list[int], **sections: Any
) -> tuple[RunResult, RunResult]:
    broken = train_in_parts(spec_for(folder(tmp_path, "broken"), table, **sections), stops)
    whole = train_in_parts(spec_for(folder(tmp_path, "whole"), table, **sections), [])
    assert broken.stages[-1].status == "resumed"
    assert whole.stages[-1].status == "built"
    return broken, whole


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run of 90 mixed rows that nobody stopped."""
    return run(spec_for(tmp_path_factory.mktemp("undisturbed"), mixed_table(90)))


# 63 training rows (of 90) in batches of 16: 4 steps an epoch, the last batch has 15 rows.
STEPS = 4


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([1], id="after the first step"),
        pytest.param([2], id="within an epoch"),
        pytest.param([STEPS], id="after the last step of an epoch"),
        pytest.param([STEPS + 1], id="after the first step of an epoch"),
        pytest.param([1, 1, 1, 1, 1, 2, 3], id="many times"),
        pytest.param([STEPS * 3], id="after the very last step"),
    ],
)
def test_r08_a_run_stopped_at_any_step_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: RunResult, stops: list[int]
) -> None:
    broken = train_in_parts(spec_for(tmp_path, mixed_table(90)), stops)
    assert broken.stages[-1].status == "resumed"
    assert hashes(broken) == hashes(undisturbed)
    assert broken.trained.content == undisturbed.trained.content
    assert broken.trained.content["steps"] == STEPS * 3


RECIPES: dict[str, dict[str, Any]] = {
    "adam, plateau, early stopping": {
        "optimizer": {"kind": "adam", "lr": 0.05},
        "schedule": {"kind": "plateau", "patience": 0, "factor": 0.5},
        "early_stopping": {"patience": 3},
    },
    "sgd with momentum, step": {
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
        "schedule": {"kind": "step", "every_epochs": 1, "factor": 0.7},
    },
    "adamw, cosine": {
        "optimizer": {"kind": "adamw", "lr": 0.02},
        "schedule": {"kind": "cosine", "min_lr": 0.001},
    },
    "full batch": {"batch_size": "full"},
    "one row a batch": {"batch_size": 1, "epochs": 1},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_optimizer_and_schedule_goes_on_where_it_was(tmp_path: Path, recipe: str) -> None:
    training = {"epochs": 6, "batch_size": 20, **RECIPES[recipe]}
    broken, whole = broken_and_whole(tmp_path, mixed_table(90), [2, 3], training=training)
    assert hashes(broken) == hashes(whole)


# Where a batch lies in memory shows in the last bits of MKL's products for widths such as these.
@pytest.mark.parametrize(
    ("features", "hidden", "batch"),
    [(5, [8], 5), (7, [8], 5), (33, [8], 5), (11, [8, 5], 3), (13, None, 10)],
)
def test_a_resume_is_exact_whatever_the_widths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: int,
    hidden: list[int] | None,
    batch: int,
) -> None:
    # Several blocks an epoch for some, one for others.
    monkeypatch.setattr("batchtrain.training.machine.GATHER_ROWS", 32 if features % 3 else 16_384)
    model = {"kind": "linear"} if hidden is None else {"kind": "mlp", "hidden": hidden}
    broken, whole = broken_and_whole(
        tmp_path,
        quantity_table(120, features=features),
        [3, 2],
        target="y",
        model=model,
        training={"epochs": 1, "batch_size": batch},
    )
    assert hashes(broken) == hashes(whole)


def test_what_is_watched_does_not_change_the_weights(tmp_path: Path) -> None:
    weights = set()
    for number, (tensorboard, monitor) in enumerate(
        [(False, []), (True, ["valid"]), (False, ["train", "valid", "test"])]
    ):
        tracking = {"tensorboard": tensorboard, "monitor": monitor, "log_every_steps": 1}
        loaded = spec_for(folder(tmp_path, str(number)), mixed_table(60), tracking=tracking)
        found = hashes(train_in_parts(loaded, [2] if number == 1 else []))
        weights.add((found["best.safetensors"], found["last.safetensors"]))
    assert len(weights) == 1


def test_a_resumed_run_leaves_its_model_and_no_checkpoint(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    result = train_in_parts(loaded, [1, 2])
    layout = layout_for(loaded)
    assert layout.storage.list(layout.checkpoints) == []
    model = result.trained.artifact
    assert layout.storage.list(layout.owner) == []
    assert set(all_files(storage_of(loaded).root / layout.root)) == {
        "run.json",
        "model/manifest.json",
        *(f"model/{entry.path}" for entry in model.manifest.files.values()),
    }
    assert run(loaded, last="train").stages[-1].status == "reused"


def test_an_interrupted_run_says_where_it_is_and_how_to_go_on(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    message = str(stop_training(loaded, STEPS + 1))
    layout = layout_for(loaded)
    assert f"after step {STEPS + 1}; 1 of 3 epochs are done" in message
    assert layout.storage.url(layout.checkpoint(STEPS + 1, claim=1)) in message
    assert "again" in message
    assert layout.storage.size(f"{layout.model}/manifest.json") is None


class Notes(Progress):
    """Remembers what a person should know."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self.texts.append(text)


def go_on(loaded: LoadedSpec) -> tuple[TrainedModel, str, list[str]]:
    notes = Notes()
    layout = layout_for(loaded)
    trained, status = train(loaded, prepared_for(loaded), layout, notes)
    return trained, status, notes.texts


def state_file(loaded: LoadedSpec, step: int, name: str = "state.safetensors") -> Path:
    layout = layout_for(loaded)
    keys = layout.storage.list(layout.checkpoints)
    (key,) = [key for key in keys if f"/{step:012d}-" in key and key.endswith(name)]
    return storage_of(loaded).root / key


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
def test_r30_a_damaged_checkpoint_is_passed_over_with_a_note(
    tmp_path: Path, undisturbed: RunResult, damage: str, file: str
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    stop_training(loaded, 2)
    stop_training(loaded, 3)
    DAMAGE[damage](state_file(loaded, 5, file))
    trained, status, notes = go_on(loaded)
    assert status == "resumed"
    if (file, damage) != ("manifest.json", "gone"):
        assert len(notes) == 1
        assert "000000000005" in notes[0]
    files = trained.artifact.manifest.files
    assert {name: files[name].sha256 for name in EXACT} == hashes(undisturbed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_does_not_stand_in_the_way_of_a_good_one(
    tmp_path: Path, damage: str
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    stop_training(loaded, 2)
    stop_training(loaded, 3)
    DAMAGE[damage](state_file(loaded, 5))
    stop_training(loaded, 3)  # from step 2 to step 5 again
    _trained, status, notes = go_on(loaded)
    assert (status, notes) == ("resumed", [])


def test_r05_checkpoints_are_removed_manifests_first() -> None:
    class Watched(MemoryStorage):
        def delete(self, key: str) -> None:
            deleted.append(key)
            super().delete(key)

    deleted: list[str] = []
    layout = RunLayout(Watched(), "run", "0123456789ab")
    for step in (1, 2):
        publish(layout.storage, {"state": b"x"}, key=layout.checkpoint(step, claim=1))
    remove_artifacts(layout.storage, layout.checkpoints)
    assert layout.storage.list("") == []
    assert [key.endswith(MANIFEST) for key in deleted] == [True, True, False, False]


def test_r31_where_all_checkpoints_are_damaged_nothing_begins_anew_in_silence(
    tmp_path: Path,
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    stop_training(loaded, 2)
    stop_training(loaded, 3)
    for step in (2, 5):
        flip(state_file(loaded, step))
    with pytest.raises(ArtifactDamagedError, match="2 damaged"):
        go_on(loaded)


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "1.0"), ("capability", "DEFAULT"), ("threads", 7)]
)
def test_r11_a_resume_on_another_machine_is_never_silent(
    tmp_path: Path, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    stop_training(loaded, 1)
    here = choose_machine(loaded.spec.resources)
    elsewhere = replace(here, **{name: value})
    monkeypatch.setattr("batchtrain.training.train.choose_machine", lambda _spec: elsewhere)
    _trained, status, notes = go_on(loaded)
    assert status == "resumed"
    assert len(notes) == 1
    assert name in notes[0]
    assert repr(value) in notes[0]
    assert repr(getattr(here, name)) in notes[0]


def test_a_resume_does_not_need_the_record_beside_the_checkpoint(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    stop_training(loaded, 1)
    (storage_of(loaded).root / layout_for(loaded).run_record).unlink()
    assert go_on(loaded)[1] == "resumed"


@pytest.mark.parametrize("snapshot", [b"", b'{"ray_version": "1.0"', b"\x80\x04"])
def test_r35_what_another_program_leaves_in_the_run_is_not_looked_at(
    tmp_path: Path, undisturbed: RunResult, snapshot: bytes
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    stop_training(loaded, 2)
    layout = layout_for(loaded)
    for folder in (layout.root, layout.checkpoints, layout.checkpoint(2, claim=1)):
        layout.storage.write(f"{folder}/checkpoint_manager_snapshot.json", snapshot)
    resumed = run(loaded, last="train")
    assert resumed.stages[-1].status == "resumed"
    assert hashes(resumed) == hashes(undisturbed)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"{}", b'{"device": "cpu"}'])
def test_what_is_no_record_of_a_machine_is_a_clear_error(record: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"run\.json"):
        MachineChoices.from_bytes(record, where="run.json")


def test_a_record_of_the_machine_comes_back_as_it_was(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    trained = train_in_parts(loaded, [1]).trained
    recorded = trained.artifact.read("run.json")
    choices = MachineChoices.from_bytes(recorded, where="here")
    assert choices.to_json() == trained.machine()
    assert choices.threads == 1


@pytest.fixture
def signal_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Send this process a real signal as soon as a training has taken so many steps."""

    def arm(steps: int, number: signal.Signals) -> None:
        add = loop.StepLosses.add
        taken = 0

        def add_and_signal(self: loop.StepLosses, *arguments: Any) -> None:
            nonlocal taken
            add(self, *arguments)
            taken += 1
            if taken == steps:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(loop.StepLosses, "add", add_and_signal)

    return arm


@pytest.mark.parametrize(
    ("number", "steps"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, STEPS - 1),
        (signal.SIGINT, STEPS),
        (signal.SIGTERM, STEPS + 1),
    ],
)
def test_r20_a_signal_commits_a_checkpoint_and_the_run_goes_on_from_there(
    tmp_path: Path,
    undisturbed: RunResult,
    monkeypatch: pytest.MonkeyPatch,
    signal_after: Callable[[int, signal.Signals], None],
    number: signal.Signals,
    steps: int,
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    signal_after(steps, number)
    with pytest.raises(InterruptedRunError, match=f"after step {steps};") as caught:
        run(loaded)
    assert caught.value.exit_code == 130
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.undo()
    resumed = run(loaded)
    assert [stage.status for stage in resumed.stages] == ["reused", "resumed", "built", "built"]
    assert hashes(resumed) == hashes(undisturbed)
    predictions = "predictions/test.parquet"
    files = [each.report.artifact.manifest.files[predictions] for each in (resumed, undisturbed)]
    assert files[0].sha256 == files[1].sha256


def test_a_second_ctrl_c_acts_as_it_always_does_and_leaves_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90))
    add = loop.StepLosses.add

    def add_and_signal(self: loop.StepLosses, *arguments: Any) -> None:
        add(self, *arguments)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.StepLosses, "add", add_and_signal)
    with pytest.raises(KeyboardInterrupt):
        run(loaded)
    monkeypatch.undo()
    layout = layout_for(loaded)
    assert layout.storage.list(layout.checkpoints) == []
    assert run(loaded, last="train").stages[-1].status == "built"


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(run(loaded, last="train")))
    thread.start()
    thread.join()
    assert results[0].stages[-1].status == "built"
