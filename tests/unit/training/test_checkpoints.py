"""Which checkpoint a new attempt goes on from, and that nothing that is done is done again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from batchtrain import points
from batchtrain.artifacts import RunLayout, remove_artifacts
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.claims import Claim, Continues, on_chain, read_claims
from batchtrain.artifacts.process_identity import this_process
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import (
    ArtifactDamagedError,
    InterruptedRunError,
    RunOwnedError,
    StorageError,
)
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.optimizers import Adam
from batchtrain.testing.faults import PointFaults
from batchtrain.training import tracking
from batchtrain.training.event_files import EventFile
from batchtrain.training.lineage import CheckpointName, published_checkpoints
from batchtrain.training.owner import RunOwner
from batchtrain.training.stage import run_layout, train
from batchtrain.training.state import KeptEpoch, Snapshot, TrainState, weights_of
from tests.support.builders import (
    MemoryStorage,
    WatchedStorage,
    mixed_table,
    prepared_for,
    quantity_table,
    run,
    spec_for,
    storage_of,
)
from tests.support.runs import open_writers, scalars

EXACT = ("best.safetensors", "last.safetensors", "history.jsonl", "parameters.json", "run.json")
STEPS = 4
"""Of an epoch: 63 training rows (of 90) in batches of 16."""

EPOCHS = 3


# ----------------------------------------------------------------------------------------------
# Builders


class Notes(Progress):
    """Remembers what a person should know."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self.texts.append(text)


@dataclass
class Runner:
    """Trains one spec on a storage, over and over.

    Attributes:
        loaded: The spec.
        storage: Where the run lies; its prepared data lie in the spec's own storage.
        notes: What was noted in the latest attempt.
        status: How the latest attempt ended that ended well.
    """

    loaded: LoadedSpec
    storage: Any = field(default_factory=MemoryStorage)
    notes: list[str] = field(default_factory=list)
    status: str = ""

    @property
    def layout(self) -> RunLayout:
        return run_layout(self.loaded, prepared_for(self.loaded), self.storage)

    def train(self, *, stop_after: int | None = None, take_over: bool = False) -> TrainedModel:
        """One attempt, which is asked to stop after so many steps."""
        taken = 0

        def requested() -> bool:
            nonlocal taken
            taken += 1
            return taken == stop_after

        heard = Notes()
        self.notes = heard.texts
        stopping = patch(
            "batchtrain.training.stage.stop_on_signals", lambda: nullcontext(requested)
        )
        with stopping if stop_after is not None else nullcontext():
            trained, self.status = train(
                self.loaded, prepared_for(self.loaded), self.layout, heard, take_over=take_over
            )
        return trained

    def stop(self, steps: int) -> str:
        """An attempt that stops after so many steps; what it said."""
        with pytest.raises(InterruptedRunError) as caught:
            self.train(stop_after=steps)
        return str(caught.value)

    def crash(self, point: str) -> None:
        """An attempt that fails at a point, such as `step.rows:2`, and saves nothing more."""
        points.listen(PointFaults.parse(f"{point}:raise"))
        try:
            with pytest.raises(RuntimeError, match="on purpose"):
                self.train()
        finally:
            points.listen(None)

    def checkpoints(self) -> list[tuple[int, int]]:
        """Step and claim of all checkpoints that are published."""
        ending = f"/{MANIFEST}"
        keys = [key.removesuffix(ending) for key in self.files(ending)]
        names = map(CheckpointName.of_key, keys)
        return [(name.step, name.claim) for name in names if name is not None]

    def files(self, ending: str = "") -> list[str]:
        """All keys of checkpoints that end so."""
        layout = self.layout
        keys = layout.storage.list(layout.checkpoints)
        return [key for key in keys if key.endswith(ending)]


def runner_in(folder: Path, storage: Any = None, **checkpoint: Any) -> Runner:
    folder.mkdir(exist_ok=True)
    rules = {"every_seconds": None, **checkpoint}
    training = {"epochs": EPOCHS, "batch_size": 16, "checkpoint": rules}
    loaded = spec_for(folder, mixed_table(90), training=training)
    return Runner(loaded, storage if storage is not None else MemoryStorage())


def hashes(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    return {name: files[name].sha256 for name in EXACT}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hashes(runner_in(tmp_path_factory.mktemp("undisturbed")).train())


@contextmanager
def counted_steps() -> Iterator[list[str]]:
    """The steps taken meanwhile."""
    taken: list[str] = []
    points.listen(lambda name: taken.append(name) if name == "step.optimizer" else None)
    try:
        yield taken
    finally:
        points.listen(None)


# ----------------------------------------------------------------------------------------------
# Interrupted, over and over


@pytest.mark.parametrize(
    ("every_steps", "stops"),
    [
        pytest.param(None, [1, 2], id="2, both in one epoch"),
        pytest.param(3, [2, 1, 3, 1, 4], id="5"),
        pytest.param(1, [1] * 12, id="at each step, saved at once after each resume"),
    ],
)
def test_r07_a_run_that_is_interrupted_often_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str], every_steps: int | None, stops: list[int]
) -> None:
    runner = runner_in(tmp_path, every_steps=every_steps)
    for steps in stops:
        runner.stop(steps)
    with counted_steps() as taken:
        trained = runner.train()
    assert hashes(trained) == undisturbed
    assert trained.inexact() == []
    assert len(taken) == STEPS * EPOCHS - sum(stops)


def test_r07_twenty_interruptions_of_one_run(tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 5, "checkpoint": {"every_steps": 2, "keep": 1}}
    table = quantity_table(90)
    runners = []
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
        loaded = spec_for(tmp_path / name, table, target="y", training=training)
        runners.append(Runner(loaded))
    broken, whole = runners
    for _ in range(20):
        broken.stop(1)
    assert hashes(broken.train()) == hashes(whole.train())
    assert broken.status == "resumed"


def test_r07_an_attempt_that_crashes_costs_no_more_than_its_steps_since_the_last_checkpoint(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path, every_steps=3, keep=1)
    for point in ("step.backward:2", "step.rows:6", "epoch.schedule:1", "checkpoint.named:1"):
        runner.crash(point)
    with counted_steps() as taken:
        assert hashes(runner.train()) == undisturbed
    assert len(taken) <= STEPS * EPOCHS - 6


@pytest.mark.parametrize("epochs_done", [1, 2, EPOCHS])
def test_r08_a_checkpoint_at_the_end_of_an_epoch_is_resumed_without_an_extra_step(
    tmp_path: Path, undisturbed: dict[str, str], epochs_done: int
) -> None:
    runner = runner_in(tmp_path, every_steps=STEPS)
    runner.stop(STEPS * epochs_done)
    with counted_steps() as taken:
        trained = runner.train()
    assert len(taken) == STEPS * (EPOCHS - epochs_done)
    assert hashes(trained) == undisturbed
    assert runner.status == "resumed"
    assert [record["epoch"] for record in trained.history()] == list(range(EPOCHS + 1))


def test_r08_a_run_that_early_stopping_ended_is_not_woken_by_a_resume(tmp_path: Path) -> None:
    training = {
        "epochs": 50,
        "batch_size": 16,
        "optimizer": {"kind": "sgd", "lr": 1e-9},
        "early_stopping": {"patience": 1, "min_delta": 10.0},
    }
    loaded = spec_for(tmp_path, mixed_table(90), training=training)
    whole = Runner(loaded).train()
    assert whole.content["ended_by"] == "early_stopping"
    for stop in range(1, int(whole.content["steps"]) + 1):
        broken = Runner(loaded)
        broken.stop(stop)
        assert hashes(broken.train()) == hashes(whole)
        assert broken.status == "resumed"


def test_a_snapshot_is_a_copy_that_later_steps_do_not_change() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(3, 1)
        rows_BF = torch.randn(8, 3)
    optimizer = build_optimizer(Adam(kind="adam"), model.parameters(), fused=True)
    state = TrainState(model, optimizer, build_schedule(None, optimizer, 10), None)

    def step() -> None:
        state.optimizer.zero_grad()
        state.model(rows_BF).square().mean().backward()
        state.optimizer.step()
        state.step += 1
        state.loss_sum += 1.0
        state.best = [KeptEpoch(state.step, 0.0, weights_of(state.model))]
        state.history.append({"epoch": state.step})
        state.inexact.append({"step": state.step})

    step()
    snapshot = state.snapshot()
    before = snapshot.to_bytes()
    for _ in range(3):
        step()
    assert snapshot.to_bytes() == before
    assert state.snapshot().to_bytes() != before


def test_the_hash_of_a_state_does_not_say_how_it_came_about() -> None:
    tensors = {"model/weight": torch.ones(2)}
    document = {"step": 1, "epoch": 0, "best_epoch": 0, "inexact": []}
    first = Snapshot(tensors, frozenset(tensors), document)
    other = Snapshot(tensors, frozenset(tensors), {**document, "inexact": [{"what": "torch"}]})
    later = Snapshot(tensors, frozenset(tensors), {**document, "step": 2})
    assert first.sha256() == other.sha256() != later.sha256()


# ----------------------------------------------------------------------------------------------
# Which one is the newest


@dataclass
class LaggingStorage(MemoryStorage):
    """A storage whose listings are ten seconds behind; everything else is up to date.

    Attributes:
        now: Its clock, in seconds.
        seen: Key to when it was made, for keys that are there.
        gone: Key to when it was deleted.
    """

    now: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)

    def write(self, key: str, data: bytes) -> None:
        super().write(key, data)
        self.seen.setdefault(key, self.now)

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        self.seen.setdefault(key, self.now)
        return made

    def delete(self, key: str) -> None:
        super().delete(key)
        self.gone[key] = self.now
        self.seen.pop(key, None)

    def list(self, prefix: str) -> list[str]:
        old = {key for key, at in self.seen.items() if at <= self.now - 10}
        ghosts = {key for key, at in self.gone.items() if at > self.now - 10}
        return sorted(key for key in old | ghosts if key.startswith(f"{prefix}/") or not prefix)


def test_r29_a_checkpoint_that_no_listing_shows_yet_is_resumed_from(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    storage = LaggingStorage()
    runner = runner_in(tmp_path, storage, every_steps=2, keep=1)
    for steps, at in [(2, 2), (3, 5), (1, 6)]:
        assert f"after step {at};" in runner.stop(steps)
        assert runner.files() == []
        assert runner.notes == []
    assert hashes(runner.train()) == undisturbed
    assert runner.status == "resumed"
    # What no listing showed then is cleaned up by whoever comes later.
    storage.now = 1000.0
    runner.train()
    assert runner.status == "reused"
    layout = runner.layout
    storage.now = 2000.0
    assert storage.list(layout.checkpoints) == storage.list(layout.owner) == []


def test_r29_some_are_listed_and_the_newest_is_not(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    storage = LaggingStorage()
    runner = runner_in(tmp_path, storage)
    runner.stop(2)
    storage.now += 60.0
    runner.stop(2)
    assert runner.checkpoints() == [(2, 1)]
    assert "after step 5;" in runner.stop(1)
    assert hashes(runner.train()) == undisturbed


@pytest.mark.parametrize("pointer", [b"", b"{", b"[]", b"5", b'{"step": "x"}', b"\xff", None])
def test_r29_the_claims_remember_what_neither_listing_nor_pointer_show(
    tmp_path: Path, undisturbed: dict[str, str], pointer: bytes | None
) -> None:
    storage = LaggingStorage()
    runner = runner_in(tmp_path, storage)
    runner.stop(5)
    runner.crash("step.rows:1")
    key = runner.layout.newest_checkpoint
    if pointer is None:
        storage.delete(key)
    else:
        storage.write(key, pointer)
    with counted_steps() as taken:
        assert hashes(runner.train()) == undisturbed
    assert len(taken) == STEPS * EPOCHS - 5


def test_r29_a_pointer_of_a_writer_that_was_taken_over_leads_nobody_astray(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path)
    runner.stop(1)
    stale = runner.storage.read(runner.layout.newest_checkpoint)
    runner.stop(3)
    runner.storage.write(runner.layout.newest_checkpoint, stale)
    assert "after step 6;" in runner.stop(2)
    assert hashes(runner.train()) == undisturbed


def test_r30_a_stale_file_beside_a_checkpoint_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path)
    runner.stop(5)
    (folder,) = [key.removesuffix(MANIFEST) for key in runner.files(f"/{MANIFEST}")]
    layout = runner.layout
    runner.storage.write(f"{folder}files/0123456789ab/state.safetensors", b"stale")
    runner.storage.write(f"{folder}state.json", b"{}")
    # Begun, and never published: it is none.
    later = layout.checkpoint(9, claim=1)
    runner.storage.write(f"{later}/files/0123456789ab/state.safetensors", b"cut")
    runner.storage.write(f"{layout.checkpoints}/000000000011-000001", b"a file, no folder")
    with counted_steps() as taken:
        assert hashes(runner.train()) == undisturbed
    assert len(taken) == STEPS * EPOCHS - 5
    assert runner.notes == []


def test_r30_of_many_damaged_ones_each_is_noted_and_the_newest_whole_one_is_used(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path, every_steps=1, keep=9)
    runner.stop(6)
    assert [step for step, _claim in runner.checkpoints()] == [1, 2, 3, 4, 5, 6]
    for key in runner.files("state.json"):
        if any(f"{step:012d}" in key for step in (4, 5, 6)):
            runner.storage.files[key] = runner.storage.files[key][:-1]
    with counted_steps() as taken:
        assert hashes(runner.train()) == undisturbed
    assert len(taken) == STEPS * EPOCHS - 3
    assert [f"{step:012d}" in note for step, note in zip((6, 5, 4), runner.notes, strict=True)] == [
        True,
        True,
        True,
    ]


LOST: dict[str, Callable[[Runner], None]] = {
    "every manifest": lambda runner: forget(runner, runner.files(MANIFEST)),
    "all checkpoints, remembered by a claim": lambda runner: forget(runner, runner.files()),
    "the claims": lambda runner: remove_artifacts(runner.storage, runner.layout.owner),
    "the first claim": lambda runner: forget(runner, [f"{runner.layout.owner}/1.json"]),
}


def forget(runner: Runner, keys: list[str]) -> None:
    for key in keys:
        runner.storage.delete(key)


@pytest.mark.parametrize("lost", LOST)
def test_r31_a_run_whose_checkpoints_are_lost_never_begins_anew_in_silence(
    tmp_path: Path, lost: str
) -> None:
    runner = runner_in(tmp_path)
    runner.stop(3)
    runner.stop(2)
    LOST[lost](runner)
    with pytest.raises(ArtifactDamagedError, match=r"delete the run's folder .* to begin anew"):
        runner.train()
    # Nor after another try.
    with pytest.raises(ArtifactDamagedError):
        runner.train()
    remove_artifacts(runner.storage, runner.layout.root)
    runner.train()
    assert runner.status == "built"


def test_r32_checkpoints_are_ordered_by_their_steps_whatever_the_clock_said(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path)
    runner.storage = storage_of(runner.loaded)
    runner.stop(2)
    runner.stop(3)
    # The clock went back an hour before the second one; then all of them became of one time.
    for hours in (1, 0):
        for key in runner.files():
            seconds = 1_000_000 - (3600 * hours if "000000000005" in key else 0)
            os.utime(runner.storage.root / key, (seconds, seconds))
        if hours:
            assert "after step 6;" in runner.stop(1)
    with counted_steps() as taken:
        assert hashes(runner.train()) == undisturbed
    assert len(taken) == STEPS * EPOCHS - 6


# ----------------------------------------------------------------------------------------------
# The line of claims

ROOT = RunLayout(MemoryStorage(), "small", "0123456789ab").root


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[Claim, ...], list[CheckpointName]]:
    """Some claims, each of which goes on from a checkpoint, and the checkpoints that are there."""
    claims: list[Claim] = []
    names: list[CheckpointName] = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        line = [name for name in names if on_chain(claims, name.claim, name.step)]
        begun = draw(st.sampled_from(line)) if line else None
        continues = Continues(begun.claim, begun.step) if begun else None
        claims.append(Claim(number, f"token-{number}", this_process(), continues))
        first = begun.step + 1 if begun else 1
        steps = draw(st.sets(st.integers(first, first + 5), max_size=4))
        names += [CheckpointName(step, number) for step in sorted(steps)]
        # A writer that is taken over may publish one more.
        if len(claims) > 1 and draw(st.booleans()):
            last = draw(st.integers(1, number - 1))
            names.append(CheckpointName(draw(st.integers(1, 12)), last))
    return tuple(claims), sorted(set(names))


@given(history=histories(), data=st.data())
def test_r33_the_checkpoints_of_a_run_are_those_on_the_line_of_its_newest_claim(
    history: tuple[tuple[Claim, ...], list[CheckpointName]], data: st.DataObject
) -> None:
    claims, names = history
    layout = RunLayout(MemoryStorage(), "small", "0123456789ab")
    listed = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    for name in listed:
        layout.storage.write(f"{name.key(layout)}/{MANIFEST}", b"")
    pointed = data.draw(st.none() | st.sampled_from(names)) if names else None
    if pointed is not None:
        pointer = f'{{"step": {pointed.step}, "claim": {pointed.claim}}}'
        layout.storage.write(layout.newest_checkpoint, pointer.encode())
    found = published_checkpoints(layout, claims)
    assert found == sorted(found)
    line = {name for name in names if on_chain(claims, name.claim, name.step)}
    known = {*listed, *([pointed] if pointed else [])} & line
    if known:
        assert set(found) == known
    else:
        continued = [claim.continues for claim in claims if claim.continues is not None]
        assert set(found) == {
            CheckpointName(each.step, each.epoch)
            for each in continued
            if on_chain(claims, each.epoch, each.step)
        }


def train_beside(runner: Runner) -> TrainedModel:
    """Another attempt of the same run, which takes over and ends."""
    return Runner(runner.loaded, runner.storage).train(take_over=True)


@pytest.mark.parametrize("point", ["step.rows:3", "step.backward:6", "epoch.finished:3"])
def test_r33_who_is_taken_over_is_told_and_one_model_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, str], point: str
) -> None:
    # The first attempt stands still while the other trains in its midst.
    monkeypatch.setattr("batchtrain.training.machine._one_at_a_time", nullcontext())
    runner = runner_in(tmp_path, every_steps=2)
    wanted, _, count = point.partition(":")
    passed = 0
    models: list[TrainedModel] = []

    def take_over_once(name: str) -> None:
        nonlocal passed
        passed += name == wanted
        if passed == int(count) and not models:
            points.listen(None)
            models.append(train_beside(runner))

    points.listen(take_over_once)
    try:
        # It may not publish, finds that the other has, and gives back what is there.
        beside = runner.train()
    finally:
        points.listen(None)
    assert hashes(models[0]) == undisturbed
    assert beside.artifact.manifest == models[0].artifact.manifest
    # The one that was fenced left nothing of its own in the model.
    model = models[0].artifact
    listed = runner.storage.list(model.key)
    assert listed == sorted(
        [
            f"{model.key}/{MANIFEST}",
            *(f"{model.key}/{x.path}" for x in model.manifest.files.values()),
        ]
    )
    assert runner.train().artifact.manifest.digest == model.manifest.digest
    assert runner.files() == []


def test_r33_a_run_that_another_process_seems_to_write_is_left_alone(tmp_path: Path) -> None:
    runner = runner_in(tmp_path)
    with closing(RunOwner(runner.layout, Progress(), take_over=False)) as owner:
        owner.claim()
        with counted_steps() as taken, pytest.raises(RunOwnedError, match="--take-over"):
            runner.train()
        assert taken == []
    runner.train()
    assert runner.status == "built"


def test_r33_what_a_writer_publishes_after_it_was_taken_over_is_not_gone_on_from(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path)
    runner.stop(2)
    runner.stop(2)
    layout = runner.layout
    ahead = {
        key.replace(f"{4:012d}-000002", f"{9:012d}-000001"): data
        for key, data in runner.storage.files.items()
        if f"{4:012d}-000002" in key
    }
    assert ahead
    runner.storage.files.update(ahead)
    runner.storage.write(layout.newest_checkpoint, b'{"step": 9, "claim": 1}')
    assert "after step 5;" in runner.stop(1)
    assert read_claims(runner.storage, layout.root)[-1].continues == Continues(epoch=2, step=4)
    assert hashes(runner.train()) == undisturbed


def test_r05_r33_checkpoints_of_a_writer_that_was_taken_over_are_better_than_none(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    storage = MemoryStorage()
    first = runner_in(tmp_path, storage, every_steps=1, keep=1)
    layout = first.layout
    first.stop(2)
    second_step = {key: storage.files[key] for key in first.files()}
    first.stop(3)
    # The second claim said that it goes on from step 2. Had its owner been slow, and the first
    # one alive, the first would have gone on to step 5 and deleted step 2 by then.
    fifth, as_of_first = layout.checkpoint(5, claim=2), layout.checkpoint(5, claim=1)
    for key in [*first.files(), *second_step]:
        data = storage.files.pop(key, b"")
        if key.startswith(f"{fifth}/"):
            storage.files[key.replace(fifth, as_of_first)] = data
    assert first.checkpoints() == [(5, 1)]
    with counted_steps() as taken:
        assert hashes(first.train()) == undisturbed
    assert first.status == "resumed"
    assert len(taken) == STEPS * EPOCHS - 5
    assert any("taken over" in note for note in first.notes)


def test_r05_r33_what_is_deleted_while_the_run_is_taken_over_is_not_gone_on_from(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    inner = MemoryStorage()
    first = runner_in(tmp_path, inner, every_steps=1, keep=1)
    first.stop(3)
    first.stop(2)

    def delete_the_newest(verb: str, key: str) -> None:
        if verb == "create" and key.endswith("owner/3.json"):
            remove_artifacts(inner, first.layout.checkpoint(5, claim=2))

    runner = Runner(first.loaded, WatchedStorage(inner, before=delete_the_newest))
    assert hashes(runner.train()) == undisturbed
    assert runner.status == "resumed"


# ----------------------------------------------------------------------------------------------
# Done stays done


def test_a_model_that_is_published_while_the_run_is_claimed_is_not_trained_again(
    tmp_path: Path,
) -> None:
    inner = MemoryStorage()
    models: list[TrainedModel] = []
    is_published = False

    def publish_meanwhile(verb: str, key: str) -> None:
        nonlocal is_published
        if verb == "create" and key.endswith("owner/1.json") and not is_published:
            is_published = True
            models.append(Runner(runner.loaded, inner).train())

    runner = runner_in(tmp_path, WatchedStorage(inner, before=publish_meanwhile))
    with counted_steps() as taken:
        trained = runner.train()
    assert len(taken) == STEPS * EPOCHS
    assert runner.status == "reused"
    assert trained.artifact.manifest == models[0].artifact.manifest
    assert runner.files() == []


class Undeletable(MemoryStorage):
    """A storage that takes files and gives none up."""

    def delete(self, key: str) -> None:
        raise StorageError(f"storage refused to delete {key}")


def test_r27_a_published_model_counts_although_nothing_can_be_deleted(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    runner = runner_in(tmp_path, Undeletable())
    for status in ("built", "reused"):
        assert hashes(runner.train()) == undisturbed
        assert runner.status == status
        assert len(runner.notes) == 1
        assert "refused to delete" in runner.notes[0]


def test_r36_an_edited_spec_is_another_run_and_leaves_the_first_alone(tmp_path: Path) -> None:
    table = mixed_table(90)
    first = runner_in(tmp_path / "first")
    first.stop(3)
    before = dict(first.storage.files)
    training = {"epochs": EPOCHS, "batch_size": 16}
    edits: dict[str, Any] = {
        "lr": {"training": {**training, "optimizer": {"kind": "adam", "lr": 0.5}}},
        "epochs": {"training": {**training, "epochs": 4}},
        "batch size": {"training": {**training, "batch_size": 8}},
        "model": {"training": training, "model": {"kind": "mlp", "hidden": [9]}},
        "seed": {"training": training, "seed": 1},
        "target": {"training": training, "target": "pressure"},
        "monitor": {"training": training, "tracking": {"monitor": ["train"]}},
    }
    roots = {first.layout.root}
    for name, edit in edits.items():
        (tmp_path / name).mkdir()
        other = Runner(spec_for(tmp_path / name, table, **edit), first.storage)
        roots.add(other.layout.root)
    # And other rows.
    (tmp_path / "data").mkdir()
    other = Runner(
        spec_for(tmp_path / "data", table.slice(0, 89), training=training), first.storage
    )
    roots.add(other.layout.root)
    assert len(roots) == len(edits) + 2
    other.train()
    assert other.status == "built"
    assert {key: first.storage.files[key] for key in before} == before
    first.train()
    assert first.status == "resumed"


def test_r36_when_the_state_is_saved_is_no_part_of_the_run(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    storage = MemoryStorage()
    for number, rules in enumerate([{"every_steps": 1, "keep": 1}, {"every_steps": 2}, {}]):
        runner = runner_in(tmp_path / str(number), storage, **rules)
        runner.stop(2)
    assert hashes(runner.train()) == undisturbed
    assert runner.status == "resumed"


def test_a_run_that_reuses_everything_never_loads_torch(tmp_path: Path) -> None:
    loaded = spec_for(tmp_path, mixed_table(60))
    run(loaded)
    code = f"""
import sys
from batchtrain.pipeline import run_spec
from batchtrain.spec.load import load_spec
result = run_spec(load_spec({str(loaded.path)!r}))
assert {{stage.status for stage in result.stages}} == {{"reused"}}
print(sorted({{"torch", "tensorboard", "sklearn", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# ----------------------------------------------------------------------------------------------
# Event files on a storage without a folder, and where they cannot be written

WATCHED = {"tensorboard": True, "log_every_steps": 1}


def event_keys(storage: MemoryStorage) -> list[str]:
    return [key for key in storage.files if "/tensorboard/" in key]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_event_files_of_all_attempts_reach_a_storage_without_a_folder(
    tmp_path: Path, temporary: Path
) -> None:
    runner = Runner(spec_for(tmp_path, mixed_table(90), tracking=WATCHED))
    runner.stop(5)
    assert event_keys(runner.storage)
    runner.train()
    # Each file by itself: TensorBoard orders those of one second by chance.
    steps: set[int] = set()
    for number, key in enumerate(event_keys(runner.storage)):
        path = tmp_path / str(number) / key.rpartition("/")[2]
        path.parent.mkdir()
        path.write_bytes(runner.storage.files[key])
        with suppress(KeyError):  # it holds other tags
            steps |= {step for step, _value in scalars(path.parent, "Loss/train")}
    assert steps == set(range(STEPS * EPOCHS))
    assert list(temporary.iterdir()) == []


def test_r26_event_files_that_cannot_be_uploaded_leave_no_folder_behind(
    tmp_path: Path, temporary: Path
) -> None:
    def refuse(verb: str, key: str) -> None:
        if "/tensorboard/" in key:
            raise StorageError(f"No space left on device: {key}")

    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    runner = Runner(loaded, WatchedStorage(MemoryStorage(), before=refuse))
    runner.train()
    assert runner.status == "built"
    assert len(runner.notes) == 1
    assert "No space left" in runner.notes[0]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("place", ["opened", "in the way", "epoch", "close"])
def test_r26_event_files_that_cannot_be_written_cost_no_run_and_leave_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = open_writers()
    loaded = spec_for(tmp_path, mixed_table(60), tracking=WATCHED)
    runner = Runner(loaded, storage_of(loaded))
    if place == "opened":
        monkeypatch.setattr("batchtrain.training.tensorboard_log.EventFile", refuse)
    elif place == "in the way":
        runner.storage.write(runner.layout.tensorboard, b"a file where a folder must be")
    elif place == "epoch":
        monkeypatch.setattr(tracking.TensorBoardLog, place, refuse)
    else:
        monkeypatch.setattr(EventFile, "flush", refuse)
    runner.train()
    assert runner.status == "built"
    assert len(runner.notes) == 1
    assert "TensorBoard" in runner.notes[0]
    assert open_writers() == before


def test_a_resume_writes_again_what_is_lost_to_tensorboard(tmp_path: Path) -> None:
    training = {"epochs": 4, "batch_size": "full"}
    loaded = spec_for(tmp_path, mixed_table(60), training=training, tracking=WATCHED)
    runner = Runner(loaded, storage_of(loaded))
    runner.stop(2)
    folder = runner.storage.root / runner.layout.tensorboard
    for path in folder.glob("events.out.tfevents*"):
        path.rename(tmp_path / path.name)
    runner.train()
    assert [step for step, _value in scalars(folder, "learning_rate")] == [0, 1, 2, 3, 4]
