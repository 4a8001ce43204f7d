"""Checkpoints written in the background: none is lost, torn or silent, whatever storage does."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchtrain import points
from batchtrain.artifacts import Artifact, RunLayout, open_artifact
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.claims import check_fence, read_claims
from batchtrain.artifacts.ownership import claim_run
from batchtrain.artifacts.trained import CHECKPOINT, TrainedModel
from batchtrain.errors import DivergedError, FencedError, InterruptedRunError, StorageError
from batchtrain.models.losses import Loss
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.storage import Storage
from batchtrain.testing.faults import Action, Call, Fault, FaultStorage
from batchtrain.training.lineage import CheckpointName, newest_checkpoint, superfluous
from batchtrain.training.machine import choose_machine
from batchtrain.training.saving import CheckpointWriter
from batchtrain.training.stage import run_layout, train
from batchtrain.training.state import Snapshot
from tests.support.builders import (
    MemoryStorage,
    WatchedStorage,
    mixed_table,
    prepared_for,
    quantity_table,
    spec_for,
    storage_of,
)

LONG = 60.0
"""Seconds after which a test that waits for an event fails."""

EXACT = ("best.safetensors", "last.safetensors", "history.jsonl", "parameters.json", "run.json")


# ----------------------------------------------------------------------------------------------
# Builders


def snapshot_at(step: int, *, best_epoch: int = 0, weight: float | None = None) -> Snapshot:
    """A state that no other step has."""
    value = float(step) if weight is None else weight
    return Snapshot(
        tensors={"model/weight": torch.full((8,), value)},
        learned=frozenset({"model/weight"}),
        document={"step": step, "epoch": 0, "best_epoch": best_epoch},
    )


def layout_on(storage: Storage) -> RunLayout:
    return RunLayout(storage, "small", "0123456789ab")


@dataclass
class Attempt:
    """A writer of a run and its claim, going on from what is there."""

    storage: Any
    keep: int = 3
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.layout = layout_on(self.storage)
        self.ownership = claim_run(
            self.storage, self.layout.root, continues=lambda _claims: None, take_over=True
        )
        self.ownership.release()  # ends its thread; the claim stays the newest one

    def writer(
        self,
        *,
        published: Sequence[CheckpointName] = (),
        resumed: CheckpointName | None = None,
        best_epoch: int = 0,
    ) -> CheckpointWriter:
        return CheckpointWriter(
            self.layout,
            choose_machine(ResourcesSpec(device="cpu")),
            claim=self.ownership.epoch,
            check_owner=partial(
                check_fence,
                self.storage,
                self.layout.root,
                self.ownership.epoch,
                self.ownership.token,
            ),
            keep=self.keep,
            published=list(published),
            resumed=resumed,
            best_epoch=best_epoch,
        )

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are published; each of them is whole."""
        ending = f"/{MANIFEST}"
        keys = [
            key.removesuffix(ending)
            for key in self.storage.list(self.layout.checkpoints)
            if key.endswith(ending)
        ]
        for key in keys:
            open_artifact(self.storage, key, CHECKPOINT).verify()
        return sorted(name.step for name in map(CheckpointName.of_key, keys) if name)

    def newest(self) -> Artifact | None:
        claims = read_claims(self.storage, self.layout.root)
        found = newest_checkpoint(self.layout, claims, self.progress)
        return found.artifact if found else None


def writer_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("checkpoint")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert writer_threads() == []


# ----------------------------------------------------------------------------------------------
# In the background


def test_a_checkpoint_is_written_while_the_training_goes_on() -> None:
    may_write = threading.Event()
    written: list[str] = []

    def before(verb: str, key: str) -> None:
        if "/checkpoints/" in key:
            assert may_write.wait(LONG)
            written.append(key)

    attempt = Attempt(WatchedStorage(MemoryStorage(), before=before))
    with attempt.writer() as writer:
        assert writer.is_idle
        writer.save(snapshot_at(1), wait=False)
        assert not writer.is_idle
        assert written == []
        may_write.set()
        writer.save(snapshot_at(2), wait=True)
        assert writer.is_idle
        assert attempt.steps() == [1, 2]
    # One after the other, never two at once.
    folders = ["000000000001" in key for key in written if not key.endswith("newest.json")]
    assert folders == sorted(folders, reverse=True)


def test_leaving_waits_for_the_checkpoint_in_the_making() -> None:
    attempt = Attempt(MemoryStorage())
    with attempt.writer() as writer:
        writer.save(snapshot_at(1), wait=False)
    assert attempt.steps() == [1]
    assert writer.is_idle


def test_a_state_is_saved_once_however_often_it_is_asked_for() -> None:
    attempt = Attempt(FaultStorage(MemoryStorage()))
    with attempt.writer() as writer:
        writer.save(snapshot_at(1), wait=False)
        writer.save(snapshot_at(1), wait=True)
        calls = len(attempt.storage.calls)
        writer.save(snapshot_at(1), wait=True)
        assert len(attempt.storage.calls) == calls
    assert attempt.steps() == [1]


class OwnError(Exception):
    """Something that went wrong elsewhere."""


def refuse_writes(verb: str, key: str) -> None:
    if "/checkpoints/" in key:
        raise StorageError(f"No space left on device: {key}")


def test_r26_an_error_in_the_background_comes_out_at_the_next_save() -> None:
    attempt = Attempt(WatchedStorage(MemoryStorage(), before=refuse_writes))
    with attempt.writer() as writer:
        writer.save(snapshot_at(1), wait=False)
        with pytest.raises(StorageError, match="No space left"):
            writer.save(snapshot_at(2), wait=False)
        # It was said once, and what was asked for then was not begun.
        assert writer.is_idle


def test_r26_an_error_of_the_last_checkpoint_comes_out_at_the_end() -> None:
    attempt = Attempt(WatchedStorage(MemoryStorage(), before=refuse_writes))

    def save_once() -> None:
        with attempt.writer() as writer:
            writer.save(snapshot_at(1), wait=False)

    with pytest.raises(StorageError, match="No space left"):
        save_once()


def test_the_first_error_is_the_one_to_see() -> None:
    attempt = Attempt(WatchedStorage(MemoryStorage(), before=refuse_writes))

    def fail_elsewhere() -> None:
        with attempt.writer() as writer:
            writer.save(snapshot_at(1), wait=False)
            raise OwnError

    with pytest.raises(OwnError):
        fail_elsewhere()


def test_r23_a_state_that_is_not_finite_is_never_published_and_the_one_before_stays() -> None:
    attempt = Attempt(MemoryStorage(), keep=1)

    def diverge() -> None:
        with attempt.writer() as writer:
            writer.save(snapshot_at(1), wait=True)
            writer.save(snapshot_at(2, weight=float("inf")), wait=False)

    with pytest.raises(DivergedError, match=r"model/weight.*training\.optimizer\.lr"):
        diverge()
    assert attempt.steps() == [1]
    newest = attempt.newest()
    assert newest is not None
    assert newest.manifest.content["step"] == 1
    assert [key for key in attempt.storage.files if "000000000002" in key] == []


def test_r33_a_fenced_writer_publishes_and_deletes_nothing() -> None:
    storage = MemoryStorage()
    attempt = Attempt(storage, keep=1)
    with attempt.writer() as writer:
        writer.save(snapshot_at(1), wait=True)
        writer.save(snapshot_at(2), wait=True)
        before = checkpoint_files(storage)
        Attempt(storage)
        with pytest.raises(FencedError):
            writer.save(snapshot_at(3), wait=True)
    assert checkpoint_files(storage) == before


def test_r33_a_writer_that_is_taken_over_while_it_publishes_deletes_nothing() -> None:
    storage = MemoryStorage()
    inner = MemoryStorage(storage.files)

    def after(verb: str, key: str) -> None:
        if verb == "create" and "000000000002" in key:
            Attempt(inner)

    attempt = Attempt(WatchedStorage(storage, after=after), keep=1)
    with attempt.writer() as writer:
        writer.save(snapshot_at(1, best_epoch=1), wait=True)
        with pytest.raises(FencedError):
            writer.save(snapshot_at(2, best_epoch=2), wait=True)
    # Who took over may go on from the first one, which it was about to delete.
    assert attempt.steps() == [1, 2]


def checkpoint_files(storage: MemoryStorage) -> dict[str, bytes]:
    return {key: data for key, data in storage.files.items() if "/checkpoints/" in key}


# ----------------------------------------------------------------------------------------------
# Whatever call of the storage fails

LAST = 4


def save_all(attempt: Attempt, first: int, *, wait: bool, known: list[int] | None = None) -> None:
    """Save the steps up to the last; `known` gets those that are surely there.

    Only one is kept beside the best, which the second is; so nearly every save deletes one.
    """
    with attempt.writer() as writer:
        for step in range(first, LAST + 1):
            writer.save(snapshot_at(step, best_epoch=min(step, 2)), wait=wait)
            if known is not None:
                known.append(step if wait else step - 1)


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    """The calls of the storage when nothing fails."""
    attempt = Attempt(FaultStorage(MemoryStorage()), keep=1)
    before = len(attempt.storage.calls)
    save_all(attempt, 1, wait=True)
    made = list(attempt.storage.calls[before:])
    assert attempt.steps() == [2, LAST]
    return made


def test_every_kind_of_call_is_among_those_that_fail_below(calls: list[Call]) -> None:
    assert {call.verb for call in calls} == {"read", "size", "write", "create", "list", "delete"}


@pytest.mark.parametrize("wait", [True, False], ids=["waited for", "in the background"])
@pytest.mark.parametrize("action", ["full", "lost_reply"])
def test_r04_r05_whatever_call_of_a_save_fails_the_checkpoint_before_stays(
    calls: list[Call], action: Action, wait: bool
) -> None:
    for number in range(1, len(calls) + 1):
        storage = FaultStorage(MemoryStorage())
        attempt = Attempt(storage, keep=1)
        storage.faults = (Fault(len(storage.calls) + number, action),)
        known = [0]
        # It names what storage said.
        with pytest.raises(StorageError, match=r"No space left|no answer|refused"):
            save_all(attempt, 1, wait=wait, known=known)
        storage.faults = ()
        at = f"{action} at call {number}, {calls[number - 1]}"
        # Whole and as it was, though it may be a later one than is known.
        steps = attempt.steps()
        found = attempt.newest()
        newest = 0 if found is None else int(found.manifest.content["step"])
        assert newest >= known[-1], at
        assert (newest, found is None) == (max(steps, default=0), not steps), at
        if found is not None:
            tensors, document = snapshot_at(newest, best_epoch=min(newest, 2)).to_bytes()
            assert found.read("state.safetensors") == tensors, at
            assert found.read("state.json") == document, at
        # The next attempt ends as if nothing had happened.
        again = Attempt(storage, keep=1)
        save_all(again, newest + 1, wait=wait)
        assert LAST in again.steps() or newest == LAST, at


def test_r26_on_a_full_disk_nothing_is_deleted_to_make_room() -> None:
    inner = MemoryStorage()
    storage = FaultStorage(inner)
    attempt = Attempt(storage, keep=1)
    with attempt.writer() as writer:
        for step in (1, 2):
            writer.save(snapshot_at(step, best_epoch=1), wait=True)
        before = dict(inner.files)
        storage.faults = (
            Fault(1, "full", "write", lasting=True),
            Fault(1, "full", "create", lasting=True),
        )
        with pytest.raises(StorageError, match="No space left"):
            writer.save(snapshot_at(3, best_epoch=1), wait=True)
    assert inner.files == before


def test_r05_a_checkpoint_is_deleted_manifest_first_and_after_the_next_is_named() -> None:
    storage = FaultStorage(MemoryStorage())
    attempt = Attempt(storage, keep=1)
    with attempt.writer() as writer:
        writer.save(snapshot_at(1, best_epoch=1), wait=True)
        writer.save(snapshot_at(2, best_epoch=2), wait=True)
    calls = [(call.verb, call.key) for call in storage.calls]
    deleted = [key for verb, key in calls if verb == "delete"]
    assert deleted[0].endswith(f"{1:012d}-000001/{MANIFEST}")
    named = [place for place, call in enumerate(calls) if call[1].endswith("newest.json")]
    assert calls.index(("delete", deleted[0])) > named[-1]
    assert attempt.steps() == [2]


# ----------------------------------------------------------------------------------------------
# What is kept

NAMES = st.builds(CheckpointName, st.integers(0, 30), st.integers(1, 4))


@given(names=st.lists(NAMES, unique=True), keep=st.integers(1, 6), data=st.data())
def test_r05_all_but_the_newest_and_the_protected_are_superfluous(
    names: list[CheckpointName], keep: int, data: st.DataObject
) -> None:
    some = st.sampled_from(names) | NAMES if names else NAMES
    protected = data.draw(st.lists(some, max_size=3))
    gone = superfluous(names, keep=keep, protected=protected)
    left = set(names) - set(gone)
    assert left == set(sorted(names)[-keep:]) | (set(protected) & set(names))
    assert gone == sorted(gone)
    assert not names or max(names) in left
    # What was deleted once is not found superfluous again.
    assert superfluous(left, keep=keep, protected=protected) == []


@settings(max_examples=40)
@given(
    keep=st.integers(1, 4),
    improves=st.lists(st.booleans(), min_size=1, max_size=12),
    resumed=st.none() | st.integers(1, 3),
    older=st.lists(st.integers(1, 9), unique=True, max_size=4),
    wait=st.booleans(),
)
def test_r05_the_newest_the_resumed_and_the_first_with_the_best_weights_stay(
    keep: int, improves: list[bool], resumed: int | None, older: list[int], wait: bool
) -> None:
    storage = MemoryStorage()
    first = Attempt(storage, keep=100)
    before = sorted({*older, *([resumed] if resumed else [])})
    with first.writer() as writer:
        for step in before:
            writer.save(snapshot_at(step), wait=True)
    attempt = Attempt(storage, keep=keep)
    resumed_name = CheckpointName(resumed, 1) if resumed else None
    best_step, best_epoch = resumed, 0
    with attempt.writer(
        published=[CheckpointName(step, 1) for step in before], resumed=resumed_name
    ) as writer:
        for step, is_better in enumerate(improves, start=10):
            if is_better or best_step is None:
                best_step, best_epoch = step, best_epoch + is_better
            writer.save(snapshot_at(step, best_epoch=best_epoch), wait=wait)
    saved = [*before, *range(10, 10 + len(improves))]
    expected = {*saved[-keep:], best_step, *([resumed] if resumed else [])}
    assert attempt.steps() == sorted(expected)


# ----------------------------------------------------------------------------------------------
# Whole trainings


def hashes(trained: TrainedModel) -> dict[str, str]:
    files = trained.artifact.manifest.files
    return {name: files[name].sha256 for name in EXACT}


def training_of(
    loaded: LoadedSpec, storage: Any = None, *, stop_after: int | None = None
) -> TrainedModel:
    """Train on a storage, and ask for a stop after so many steps of this attempt."""
    prepared = prepared_for(loaded)
    layout = run_layout(loaded, prepared, storage or storage_of(loaded))
    taken = 0

    def requested() -> bool:
        nonlocal taken
        taken += 1
        return taken == stop_after

    stopping: Any = nullcontext()
    if stop_after is not None:
        stopping = patch(
            "batchtrain.training.stage.stop_on_signals", lambda: nullcontext(requested)
        )
    with stopping:
        # An attempt before may not have been able to say that it ended.
        return train(loaded, prepared, layout, Progress(), take_over=True)[0]


def saving(folder: Path, **checkpoint: Any) -> LoadedSpec:
    """A spec of 9 steps in 3 epochs, with other rules for its checkpoints."""
    rules = {"every_seconds": None, **checkpoint}
    training = {"epochs": 3, "batch_size": 16, "checkpoint": rules}
    folder.mkdir(exist_ok=True)
    table = None if (folder / "rows.parquet").exists() else mixed_table(60)
    return spec_for(folder, table, training=training)


STEPS = 9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the run that nobody disturbed and that saved nothing."""
    loaded = saving(tmp_path_factory.mktemp("undisturbed"))
    trained = training_of(loaded)
    assert trained.content["steps"] == STEPS
    return hashes(trained)


def kinds_of(calls: Sequence[Call]) -> dict[tuple[str, str], int]:
    """Verb and kind of key to the last call of that kind, from 1."""
    kinds: dict[tuple[str, str], int] = {}
    for number, call in enumerate(calls, start=1):
        folder, _, name = call.key.rpartition("/")
        place = next((each for each in ("checkpoints", "owner", "model") if each in folder), "")
        kinds[call.verb, f"{place}/{name if '-' not in name else ''}"] = number
    return kinds


@pytest.mark.parametrize("action", ["full", "lost_reply"])
def test_r04_r26_a_training_that_storage_fails_goes_on_to_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str], action: Action
) -> None:
    quiet = FaultStorage(MemoryStorage())
    assert hashes(training_of(saving(tmp_path, every_steps=2, keep=1), quiet)) == undisturbed
    kinds = kinds_of(quiet.calls)
    assert len(kinds) > 20
    failed = 0
    for kind, number in kinds.items():
        storage = FaultStorage(MemoryStorage(), [Fault(number, action)])
        loaded = saving(tmp_path, every_steps=2, keep=1)
        ended = False
        # What only cleans up, or says that the run is free again, may fail in peace.
        with suppress(StorageError):
            training_of(loaded, storage)
            ended = True
        failed += not ended
        storage.faults = ()
        assert hashes(training_of(loaded, storage)) == undisturbed, kind
    assert failed > 10


class Meter:
    """Knows how many steps the training has taken, and whether it waits for the writer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._steps = 0
        self._is_waiting = False

    def heard(self, point: str) -> None:
        """A listener for `points.listen`."""
        if point == "step.optimizer":
            with self._changed:
                self._steps += 1
                self._changed.notify_all()

    def waiting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """What the training may wait in."""

        def watched(*arguments: Any, **named: Any) -> Any:
            with self._changed:
                self._is_waiting = True
                self._changed.notify_all()
            try:
                return call(*arguments, **named)
            finally:
                with self._changed:
                    self._is_waiting = False

        return watched

    def hold(self, steps: int) -> None:
        """Return when the training has taken so many more steps, or waits itself."""
        with self._changed:
            until = self._steps + steps
            assert self._changed.wait_for(
                lambda: self._is_waiting or self._steps >= until, timeout=LONG
            )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    every_steps=st.integers(1, 10),
    keep=st.integers(1, 3),
    slow=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    stops=st.lists(st.integers(1, 5), max_size=4),
)
@example(every_steps=1, keep=1, slow=[1], stops=[])
@example(every_steps=1, keep=1, slow=[3, 0], stops=[2, 2, 1])
def test_r07_how_slow_storage_is_and_when_the_state_is_saved_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: dict[str, str],
    every_steps: int,
    keep: int,
    slow: list[int],
    stops: list[int],
) -> None:
    meter = Meter()
    calls = 0

    def before(verb: str, key: str) -> None:
        nonlocal calls
        if threading.current_thread() in writer_threads():
            calls += 1
            meter.hold(slow[calls % len(slow)])

    storage = WatchedStorage(MemoryStorage(), before=before)
    loaded = saving(tmp_path_factory.mktemp("slow"), every_steps=every_steps, keep=keep)
    points.listen(meter.heard)
    try:
        with (
            patch.object(CheckpointWriter, "save", meter.waiting(CheckpointWriter.save)),
            patch.object(CheckpointWriter, "__exit__", meter.waiting(CheckpointWriter.__exit__)),
        ):
            left = STEPS
            for stop_after in stops:
                if stop_after > left:
                    break
                with pytest.raises(InterruptedRunError):
                    training_of(loaded, storage, stop_after=stop_after)
                left -= stop_after
            assert hashes(training_of(loaded, storage)) == undisturbed
    finally:
        points.listen(None)


# ----------------------------------------------------------------------------------------------
# Signals while a checkpoint is being written


class Interrupting:
    """Signals a training while its first checkpoint is being written, and once more if asked to.

    The write goes on when the training waits for it.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, twice: bool = False
    ) -> None:
        self._is_written, self._may_go_on = threading.Event(), threading.Event()
        save, leave = CheckpointWriter.save, CheckpointWriter.__exit__

        def watched_save(writer: CheckpointWriter, snapshot: Snapshot, *, wait: bool) -> None:
            if not wait:
                save(writer, snapshot, wait=False)
                assert self._is_written.wait(LONG)
            elif not twice:
                self._may_go_on.set()
                save(writer, snapshot, wait=True)
            if not wait or twice:
                signal.raise_signal(number)

        def watched_leave(writer: CheckpointWriter, *error: Any) -> None:
            self._may_go_on.set()
            leave(writer, *error)

        monkeypatch.setattr(CheckpointWriter, "save", watched_save)
        monkeypatch.setattr(CheckpointWriter, "__exit__", watched_leave)

    def before(self, verb: str, key: str) -> None:
        """Hold a write of a checkpoint back."""
        if "/checkpoints/" in key:
            self._is_written.set()
            assert self._may_go_on.wait(LONG)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_r20_a_signal_while_a_checkpoint_is_written_commits_one_more(
    tmp_path: Path,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    interrupting = Interrupting(monkeypatch, number)
    loaded = saving(tmp_path, every_steps=2)
    storage = WatchedStorage(MemoryStorage(), before=interrupting.before)
    with pytest.raises(InterruptedRunError, match="after step") as caught:
        training_of(loaded, storage)
    assert caught.value.exit_code == 130
    layout = run_layout(loaded, prepared_for(loaded), storage)
    found = newest_checkpoint(layout, read_claims(storage, layout.root), Progress())
    assert found is not None
    assert found.name.step == 3
    assert f"after step {found.name.step};" in str(caught.value)
    assert storage.url(found.artifact.key) in str(caught.value)
    monkeypatch.undo()
    assert hashes(training_of(loaded, storage)) == undisturbed


def test_r20_a_second_ctrl_c_while_the_writer_is_waited_for_leaves_nothing_torn(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting = Interrupting(monkeypatch, signal.SIGINT, twice=True)
    loaded = saving(tmp_path, every_steps=2)
    storage = WatchedStorage(MemoryStorage(), before=interrupting.before)
    with pytest.raises(KeyboardInterrupt):
        training_of(loaded, storage)
    assert writer_threads() == []
    layout = run_layout(loaded, prepared_for(loaded), storage)
    found = newest_checkpoint(layout, read_claims(storage, layout.root), Progress())
    assert found is not None
    assert found.name.step == 2
    monkeypatch.undo()
    assert hashes(training_of(loaded, storage)) == undisturbed


# ----------------------------------------------------------------------------------------------
# What diverges


class Poison:
    """Spoils the n-th step of a training: its loss, or only the gradient of a finite loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, what: str, by: float) -> None:
        self.losses: list[float] = []
        call = Loss.__call__

        def poisoned(loss: Loss, outputs_BK: Tensor, batch: Any, denominator: Any = None) -> Tensor:
            if not outputs_BK.requires_grad:
                return call(loss, outputs_BK, batch, denominator)
            is_due = len(self.losses) == step - 1
            if is_due and what == "loss":
                outputs_BK = outputs_BK * by
            found = call(loss, outputs_BK, batch, denominator)
            self.losses.append(float(found.detach()))
            if is_due and what == "gradient":
                outputs_BK.register_hook(lambda gradient: gradient * by)
            return found

        monkeypatch.setattr(Loss, "__call__", poisoned)


@pytest.mark.parametrize("by", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [2, 5, 6])
def test_r23_a_state_that_diverged_is_never_saved_and_the_last_good_one_is_resumed(
    tmp_path: Path,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    what: str,
    by: float,
) -> None:
    loaded, storage = saving(tmp_path, every_steps=1, keep=1), MemoryStorage()
    poison = Poison(monkeypatch, step, what, by)
    with pytest.raises(DivergedError, match=r"training\.optimizer\.lr"):
        training_of(loaded, storage)
    if what == "gradient":
        # Nobody could have seen it in the loss of that step.
        assert all(math.isfinite(loss) for loss in poison.losses[:step])
    monkeypatch.undo()
    layout = run_layout(loaded, prepared_for(loaded), storage)
    found = newest_checkpoint(layout, read_claims(storage, layout.root), Progress())
    assert found is not None
    assert found.name.step == step - 1
    assert storage.size(f"{layout.model}/{MANIFEST}") is None
    assert hashes(training_of(loaded, storage)) == undisturbed


def test_r23_a_stop_right_after_an_infinite_gradient_does_not_save_it(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, storage = saving(tmp_path, every_steps=3), MemoryStorage()
    Poison(monkeypatch, 5, "gradient", float("inf"))
    with pytest.raises(DivergedError, match="after step 5"):
        training_of(loaded, storage, stop_after=5)
    monkeypatch.undo()
    assert hashes(training_of(loaded, storage)) == undisturbed


def test_r23_without_validation_a_last_step_that_diverged_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"kind": "random", "fractions": {"train": 0.8, "valid": 0, "test": 0.2}}
    loaded = spec_for(
        tmp_path,
        quantity_table(40),
        target="y",
        data={"split": split},
        training={"epochs": 2, "batch_size": 16, "checkpoint": {"every_steps": 1}},
        tracking={"tensorboard": False, "monitor": []},
    )
    Poison(monkeypatch, 4, "gradient", float("inf"))
    with pytest.raises(DivergedError):
        training_of(loaded)
    monkeypatch.undo()
    layout = run_layout(loaded, prepared_for(loaded), storage_of(loaded))
    assert layout.storage.list(layout.model) == []
    assert training_of(loaded).content["best_epoch"] == 2
