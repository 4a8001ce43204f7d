"""Event files hold everything once, however often the run was cut, as TensorBoard reads them."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from batchtrain import points
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.training import event_files
from batchtrain.training.event_files import (
    EventFile,
    event_bytes,
    first_event,
    scalar_bytes,
    scalar_event,
    written_events,
)
from batchtrain.training.hyper_parameters import flat
from batchtrain.training.tensorboard_log import EventFolder, TensorBoardLog
from tests.support.builders import (
    layout_for,
    mixed_table,
    quantity_table,
    run,
    spec_for,
    stop_training,
    storage_of,
)
from tests.support.runs import event_files as files_in

WATCHED = {"tensorboard": True, "log_every_steps": 1}


def spec(folder: Path, **sections: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return spec_for(folder, mixed_table(60), **{"tracking": WATCHED, **sections})


def events_of(loaded: Any) -> Path:
    return storage_of(loaded).root / layout_for(loaded).tensorboard


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def numbers(folder: Path) -> Counter[tuple[str, str, int, float]]:
    """Every scalar of a run and of the runs in its subfolders, with how often it is there."""
    found: Counter[tuple[str, str, int, float]] = Counter()
    for place in ("", "loss_training", "loss_validation"):
        events = read(folder / place)
        for tag in events.Tags()["scalars"]:
            found.update((place, tag, each.step, each.value) for each in events.Scalars(tag))
    return found


def hyper_parameters(events: EventAccumulator) -> dict[str, Any]:
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


class CutError(Exception):
    """The process ends here."""


def cut_after(loaded: Any, steps: int) -> None:
    """Train, and let an error come out of the loop after so many steps."""
    taken = 0

    def listener(name: str) -> None:
        nonlocal taken
        taken += name == "step.optimizer"
        if taken == steps:
            raise CutError

    points.listen(listener)
    try:
        with pytest.raises(CutError):
            run_spec(loaded, last="train", take_over=True)
    finally:
        points.listen(None)


def test_a_run_shows_losses_scores_the_graph_hyper_parameters_and_final_metrics(
    tmp_path: Path,
) -> None:
    loaded = spec(tmp_path)
    result = run(loaded, last="evaluate")
    events = read(events_of(loaded))
    epochs = [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("learning_rate")] == epochs
    assert [event.step for event in events.Scalars("Accuracy/valid")] == epochs
    assert result.trained is not None
    assert result.prepared is not None
    steps = result.trained.content["steps"]
    assert [event.step for event in events.Scalars("Loss/train")] == list(range(steps))
    assert {node.op for node in events.Graph().node} >= {"IO Node", "aten::linear"}

    given = hyper_parameters(events)
    assert given["training.batch_size"] == 16
    assert given["training.optimizer.kind"] == "adamw"
    assert given["model.hidden"] == "8"
    assert given["rows.train"] == result.prepared.num_rows("train")
    assert not [key for key in given if "columns" in key or "checkpoint" in key]

    # As TensorBoard keeps them, in 32 bits.
    report = result.report
    assert report is not None
    best = result.trained.content["best_epoch"]
    for split, metrics in report.metrics.items():
        for name, value in metrics.items():
            if value is not None:
                (event,) = events.Scalars(f"final/{split}/{name}")
                rounded = struct.unpack("f", struct.pack("f", value))[0]
                assert (event.step, event.value) == (best, rounded)
    assert metadata.SESSION_END_INFO_TAG in events.Tags()["tensors"]


@given(
    steps=st.sets(st.integers(0, 2**40), max_size=30).map(sorted),
    value=st.floats(-(2.0**99), 2.0**99, width=32),
)
def test_many_steps_at_once_are_the_same_bytes_as_one_after_the_other(
    steps: list[int], value: float
) -> None:
    values = [value + place for place in range(len(steps))]
    walls = [1.7e9 + place / 7 for place in range(len(steps))]
    rows = zip(steps, values, walls, strict=True)
    expected = event_bytes(scalar_event("Loss/train", v, s, w) for s, v, w in rows)
    assert scalar_bytes("Loss/train", steps, values, walls) == expected


def test_a_loss_is_never_missing_a_digit_that_the_file_can_hold() -> None:
    data = event_bytes([first_event(0.0), scalar_event("a", 1e30, 1, 0.0)])
    assert written_events({"events.out.tfevents.1": data}, without="x").steps == {"a": {1}}
    assert written_events({"events.out.tfevents.1": data}, without="a").steps == {}
    # What a killed process was about to write is not there yet.
    assert written_events({"events.out.tfevents.1": data[:-1]}, without="x").steps == {}


@pytest.mark.parametrize("batch", [16, "full"])
@pytest.mark.parametrize("is_lost", [False, True], ids=["all written", "the rest lost"])
def test_r26_after_a_crash_and_a_resume_every_event_is_there_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Any, is_lost: bool
) -> None:
    training = {"epochs": 8, "batch_size": batch, "checkpoint": {"every_steps": 4}}
    whole, broken = (spec(tmp_path / name, training=training) for name in ("whole", "broken"))
    run(whole, last="train")
    steps = 8 * (3 if batch == 16 else 1)
    for taken in (steps // 2 + 1, 2):
        with monkeypatch.context() as patch:
            if is_lost:
                # A killed process: nothing that was not flushed by then gets to the file.
                patch.setattr(EventFile, "close", lambda self: self._file.close())
            cut_after(broken, taken)
    # Nobody let go of the run.
    run_spec(broken, last="train", take_over=True)
    expected = numbers(events_of(whole))
    assert set(expected.values()) == {1}
    assert numbers(events_of(broken)) == expected
    events = read(events_of(broken))
    assert len(events.Tensors(metadata.SESSION_START_INFO_TAG)) == 1
    assert hyper_parameters(events)["training.epochs"] == 8
    graphs = [path for path in files_in(events_of(broken)) if b"aten::linear" in path.read_bytes()]
    assert len(graphs) == 1


def test_a_training_that_goes_back_voids_the_steps_that_it_takes_again(tmp_path: Path) -> None:
    loaded = spec(tmp_path)
    log = TensorBoardLog(
        EventFolder(loaded, layout_for(loaded)),
        run="small/1",
        every_steps=1,
        monitored=["valid"],
        step=0,
        history=[],
    )
    record = {"epoch": 0, "lr": 0.1, "train_loss": None, "valid_loss": 0.5, "valid_accuracy": 0.5}
    log.epoch(record)
    log.steps(0, [5.0, 4.0, 3.0])
    log.epoch({**record, "epoch": 1})
    log.steps(1, [2.0, 1.0])
    log.close("finished")
    events = read(events_of(loaded))
    losses = [(event.step, event.value) for event in events.Scalars("Loss/train")]
    assert losses == [(0, 5.0), (1, 2.0), (2, 1.0)]
    assert [event.step for event in events.Scalars("learning_rate")] == [0, 1]


def test_a_file_is_read_after_one_from_a_clock_that_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files.time, "time", lambda: 1000.5)
    earlier = ["events.out.tfevents.0000002000.z.1.0", "events.out.tfevents.9999999999.final.x"]
    file = EventFile(tmp_path, earlier=earlier, purge_step=None)
    file.close()
    (path,) = tmp_path.iterdir()
    assert sorted([*earlier, path.name])[1] == path.name


def test_what_is_there_once_is_not_written_by_a_run_that_reuses(tmp_path: Path) -> None:
    loaded = spec(tmp_path)

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/small").rglob("*")}

    run(loaded, last="evaluate")
    before = written()
    stages = run(loaded, last="evaluate").stages
    assert {stage.status for stage in stages} == {"reused"}
    assert written() == before


def test_the_final_metrics_are_those_of_the_newest_report(tmp_path: Path) -> None:
    for metrics in (["accuracy", "log_loss"], ["accuracy", "f1_macro"]):
        loaded = spec(tmp_path, evaluation={"metrics": metrics})
        run(loaded, last="evaluate")
        events = read(events_of(loaded))
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("final/test/")]
        assert tags == [f"final/test/{name}" for name in metrics]
        assert len(events.Scalars("final/test/accuracy")) == 1


def test_a_folder_of_the_platform_gets_the_final_metrics_too(tmp_path: Path) -> None:
    tracking = {"tensorboard": {"dir": "watched"}}
    loaded = spec(tmp_path / "run", tracking=tracking)
    run(loaded, last="evaluate")
    folder = tmp_path / "run" / "watched" / layout_for(loaded).root
    tags = read(folder).Tags()["scalars"]
    assert {"learning_rate", "final/test/accuracy"} <= set(tags)
    assert not (storage_of(loaded).root / layout_for(loaded).tensorboard).exists()


def test_r26_final_metrics_that_cannot_be_written_cost_a_note_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            texts.append(text)

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    loaded = spec(tmp_path)
    monkeypatch.setattr("batchtrain.training.outcome._event_bytes", refuse)
    assert run_spec(loaded, progress=Notes(), last="evaluate").report is not None
    assert [text for text in texts if "final metrics" in text and "No space" in text]
    # A later call makes up for it.
    monkeypatch.undo()
    run(loaded, last="evaluate")
    assert "final/test/accuracy" in read(events_of(loaded)).Tags()["scalars"]


def test_a_regression_shows_r2_and_no_accuracy(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, quantity_table(60), target="y", tracking=WATCHED)
    run(loaded, last="train")
    tags = read(events_of(loaded)).Tags()["scalars"]
    assert "R2/valid" in tags
    assert not [tag for tag in tags if tag.startswith("Accuracy")]


def test_a_graceful_stop_leaves_everything_too(tmp_path: Path) -> None:
    whole, broken = spec(tmp_path / "whole"), spec(tmp_path / "broken")
    run(whole, last="train")
    stop_training(broken, 4)
    run(broken, last="train")
    assert numbers(events_of(broken)) == numbers(events_of(whole))


def test_names_of_hyper_parameters_are_plain_and_values_are_set() -> None:
    found = dict(flat({"a": {"b": None, "c": [1, 2]}, "d": {"x y": 1.5}, "e": True, "f": [[1]]}))
    assert found == {"a.c": "1-2", "d": '{"x y": 1.5}', "e": True, "f": "[[1]]"}
    assert all(isinstance(value, str | bool) or math.isfinite(value) for value in found.values())
