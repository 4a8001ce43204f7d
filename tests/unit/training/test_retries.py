"""A training whose ranks are lost goes on by itself, and ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from batchtrain import points
from batchtrain.artifacts.claims import Claim, read_claims
from batchtrain.artifacts.ownership import claim_run
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.errors import (
    ClusterError,
    DivergedError,
    FencedError,
    InterruptedRunError,
    LauncherLostError,
    RankFailedError,
    RankLostError,
    RankMemoryError,
    RankStuckError,
    RunOwnedError,
    StorageError,
    TrainingError,
)
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.machine import MachineChoices
from batchtrain.training.owner import RunOwner
from batchtrain.training.rank import TrainTask, train_rank
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import TrainState
from batchtrain.training.train import OneProcess
from tests.support.builders import layout_for, mixed_table, spec_for
from tests.support.ranks import Told, compared

# 42 training rows in batches of 8: six steps an epoch. Fewer rows at once are no way out here.
TRAINING = {
    "epochs": 3,
    "batch_size": 8,
    "micro_batch": 8,
    "checkpoint": {"every_steps": 2, "every_seconds": None},
}

LOST = RankLostError("expected rank 1 of 2 to go on, found that its process is gone")
MEMORY = RankMemoryError("expected rank 1 of 2 to go on, found that memory ran out")


@dataclass(frozen=True)
class Blow:
    """What befalls an attempt: an error at the n-th time that its training passes a point."""

    point: str
    number: int
    error: BaseException
    before: Callable[[], None] = lambda: None


@dataclass
class Flaky:
    """A launcher in this process whose attempts are lost, one after the other, as planned."""

    blows: Sequence[Blow] = ()
    restarts: bool = True
    workers: Sequence[int] = ()
    between: Callable[[TrainTask], None] = lambda _task: None
    tasks: list[TrainTask] = field(default_factory=list)
    claims: list[tuple[Claim, ...]] = field(default_factory=list)

    def choose_machine(self, resources: Any) -> MachineChoices:
        """See `Launcher`."""
        found = OneProcess().choose_machine(resources)
        number = len(self.tasks)
        return replace(found, workers=self.workers[number]) if self.workers else found

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> TrainState:
        """See `Launcher`."""
        number = len(self.tasks)
        self.between(task)
        self.tasks.append(task)
        self.claims.append(read_claims(task.layout.storage, task.layout.root))
        if number < len(self.blows):
            points.listen(_striking(self.blows[number]))
        try:
            return OneProcess()(task, progress, stop_requested)
        finally:
            points.listen(None)


def _striking(blow: Blow) -> Callable[[str], None]:
    passed = 0

    def listener(name: str) -> None:
        nonlocal passed
        if name != blow.point or threading.current_thread() is not threading.main_thread():
            return
        passed += 1
        if passed == blow.number:
            blow.before()
            raise blow.error

    return listener


def small(folder: Path, **sections: Any) -> LoadedSpec:
    folder.mkdir(exist_ok=True)
    return spec_for(folder, mixed_table(60), training=TRAINING, **sections)


def train(
    loaded: LoadedSpec, launcher: Any = None, *, told: Progress | None = None, **options: Any
) -> TrainedModel:
    trained = run_spec(loaded, last="train", launcher=launcher, progress=told, **options).trained
    assert trained is not None
    return trained


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the run of `small` ends with."""
    return compared(train(small(tmp_path_factory.mktemp("undisturbed") / "run")))


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    points.listen(None)
    assert "batchtrain-heartbeat" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("blows", "steps"),
    [
        # The point and when it comes; the step of the checkpoint that each further attempt has.
        ([("step.forward", 1)], [None]),
        ([("step.forward", 6)], [4]),
        ([("epoch.finished", 2)], [4]),
        ([("step.backward", 18)], [16]),
        ([("step.forward", 6), ("step.forward", 1), ("step.optimizer", 8)], [4, 4, 10]),
        ([("resume.reading", 1)], [None]),
        ([("step.forward", 4), ("resume.reading", 1), ("resume.done", 1)], [2, 2, 2]),
    ],
)
def test_r12_a_training_that_is_lost_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path,
    undisturbed: dict[str, str],
    blows: list[tuple[str, int]],
    steps: list[int | None],
) -> None:
    launcher = Flaky([Blow(point, number, LOST) for point, number in blows])
    trained = train(small(tmp_path), launcher)
    assert compared(trained) == undisturbed
    if blows == [("resume.reading", 1)]:
        assert len(launcher.tasks) == 1  # there was nothing to resume
        return
    resumed = [task.resumed.step if task.resumed else None for task in launcher.tasks]
    assert resumed == [None, *steps]


def test_r12_each_attempt_has_a_claim_that_continues_what_the_one_before_published(
    tmp_path: Path,
) -> None:
    blows = [("step.forward", 6), ("step.forward", 4), ("step.forward", 1)]
    launcher = Flaky([Blow(point, number, LOST) for point, number in blows])
    train(small(tmp_path), launcher)
    assert [len(claims) for claims in launcher.claims] == [1, 2, 3, 4]
    assert [task.claim for task in launcher.tasks] == [1, 2, 3, 4]
    last = launcher.claims[-1]
    continues = [(each.continues.epoch, each.continues.step) for each in last[1:] if each.continues]
    # Steps 2 and 4 under claim 1; one of 6 under claim 2; none under claim 3.
    assert continues == [(1, 4), (2, 6), (2, 6)]
    assert [task.token for task in launcher.tasks] == [claim.token for claim in last]
    assert len({task.token for task in launcher.tasks}) == 4


def test_r33_a_rank_of_the_attempt_before_that_is_still_alive_writes_no_more(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    fenced: list[FencedError] = []

    def old_rank_goes_on(_task: TrainTask) -> None:
        for old in launcher.tasks:
            before = _checkpoints(old)
            with pytest.raises(FencedError) as caught:
                train_rank(old, OneRank(), Progress(), lambda: False, save_last=False)
            fenced.append(caught.value)
            assert _checkpoints(old) == before

    launcher = Flaky(
        [Blow("step.forward", 6, LOST), Blow("step.forward", 3, LOST)], between=old_rank_goes_on
    )
    assert compared(train(small(tmp_path), launcher)) == undisturbed
    assert len(fenced) == 3


def _checkpoints(task: TrainTask) -> list[str]:
    keys = task.layout.storage.list(task.layout.checkpoints)
    return [key for key in keys if key.endswith("manifest.json")]


def test_r12_what_is_left_of_the_budget_is_said_with_the_step(tmp_path: Path) -> None:
    told = Told()
    blows = [Blow("step.forward", 1, LOST), Blow("step.forward", 6, MEMORY)]
    train(small(tmp_path), Flaky(blows), told=told)
    first, second = told.notes
    assert first.startswith(f"{LOST}\n")
    assert "begins anew, since there is no checkpoint yet (retry lost_worker: 1 of 3)" in first
    assert second.startswith(f"{MEMORY}\n")
    assert "goes on from step 4 (retry out_of_memory: 1 of 1)" in second


@pytest.mark.parametrize(
    ("retries", "errors", "attempts"),
    [
        ({"lost_worker": 0}, [LOST], 1),
        ({}, [LOST] * 9, 4),
        ({"out_of_memory": 0}, [MEMORY], 1),
        ({}, [MEMORY] * 9, 2),
        ({"lost_worker": 1}, [LOST, MEMORY, LOST], 3),
        ({}, [LauncherLostError("controller"), RankStuckError("stuck"), LOST, LOST], 4),
    ],
)
def test_r25_when_the_budget_is_used_up_the_error_comes_out_as_it_was(
    tmp_path: Path,
    undisturbed: dict[str, str],
    retries: dict[str, int],
    errors: list[TrainingError],
    attempts: int,
) -> None:
    loaded = small(tmp_path, retries=retries)
    launcher = Flaky([Blow("step.forward", 4, error) for error in errors])
    with pytest.raises(type(errors[attempts - 1])) as caught:
        train(loaded, launcher)
    assert caught.value is errors[attempts - 1]
    assert len(launcher.tasks) == attempts
    # Nobody holds the run any more, and it is as good as new.
    assert compared(train(loaded)) == undisturbed


@pytest.mark.parametrize(
    "error",
    [
        RankFailedError("a user's error on rank 1"),
        DivergedError("the loss is NaN"),
        TrainingError("the ranks differ"),
        ClusterError("no room"),
        StorageError("the disk is full"),
        ValueError("these rows are not to my taste"),
        MemoryError(),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_r24_what_would_happen_again_is_never_tried_again(
    tmp_path: Path, error: BaseException
) -> None:
    launcher = Flaky([Blow("step.forward", 4, error)])
    told = Told()
    with pytest.raises(type(error)) as caught:
        train(small(tmp_path), launcher, told=told)
    assert caught.value is error
    assert len(launcher.tasks) == 1
    assert told.notes == []


def test_a_launcher_that_starts_nothing_again_is_not_asked_to(tmp_path: Path) -> None:
    launcher = Flaky([Blow("step.forward", 4, LOST)], restarts=False)
    with pytest.raises(RankLostError) as caught:
        train(small(tmp_path), launcher)
    assert caught.value is LOST
    assert len(launcher.tasks) == 1


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_r20_a_stop_that_comes_when_a_rank_is_lost_is_an_interruption(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    loaded = small(tmp_path)
    launcher = Flaky([Blow("step.forward", 6, LOST, before=sigterm)])
    with pytest.raises(InterruptedRunError) as caught:
        train(loaded, launcher)
    assert caught.value.exit_code == 130
    assert caught.value.__cause__ is LOST
    assert "again" in str(caught.value)
    assert len(launcher.tasks) == 1
    assert compared(train(loaded)) == undisturbed


def test_r20_a_stop_in_an_attempt_after_a_loss_saves_as_any_stop_does(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    loaded = small(tmp_path)
    asked: list[int] = []

    def stop_the_second(task: TrainTask) -> None:
        if task.claim == 2 and not asked:
            asked.append(task.claim)
            sigterm()

    launcher = Flaky([Blow("step.forward", 6, LOST)], between=stop_the_second)
    with pytest.raises(InterruptedRunError, match="stopped after step 5"):
        train(loaded, launcher)
    layout = layout_for(loaded)
    assert layout.storage.size(f"{layout.checkpoint(5, claim=2)}/manifest.json") is not None
    assert compared(train(loaded)) == undisturbed


def take_over(task: TrainTask) -> None:
    """What another process does that thinks this one is dead."""
    claim_run(
        task.layout.storage, task.layout.root, continues=lambda _claims: None, take_over=True
    ).release()


def test_r33_a_run_that_another_process_took_is_not_taken_back(tmp_path: Path) -> None:
    loaded = small(tmp_path)
    tasks: list[TrainTask] = []
    launcher = Flaky(
        [Blow("step.forward", 4, LOST, before=lambda: take_over(tasks[0]))], between=tasks.append
    )
    with pytest.raises(FencedError) as caught:
        train(loaded, launcher)
    assert caught.value.__context__ is LOST
    assert len(launcher.tasks) == 1


def test_r30_a_checkpoint_that_was_damaged_meanwhile_is_passed_over(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, told = small(tmp_path), Told()

    def damage() -> None:
        layout = layout_for(loaded)
        keys = layout.storage.list(layout.checkpoint(4, claim=1))
        (key,) = [key for key in keys if key.endswith("state.safetensors")]
        layout.storage.write(key, layout.storage.read(key)[:-5])

    launcher = Flaky([Blow("step.forward", 6, LOST)])
    claim_again = RunOwner.claim_again

    def claim_after_damage(self: RunOwner) -> Any:
        damage()
        return claim_again(self)

    monkeypatch.setattr(RunOwner, "claim_again", claim_after_damage)
    trained = train(loaded, launcher, told=told)
    assert compared(trained) == undisturbed
    assert [task.resumed.step for task in launcher.tasks[1:] if task.resumed] == [2]
    assert any("damaged checkpoint is passed over" in note for note in told.notes)


def test_r10_another_number_of_workers_after_a_loss_is_said_and_recorded(tmp_path: Path) -> None:
    told = Told()
    launcher = Flaky([Blow("step.forward", 6, LOST)], workers=[4, 2])
    trained = train(small(tmp_path), launcher, told=told)
    assert json.loads(trained.artifact.read("inexact.json")) == [
        {"step": 4, "what": "workers", "then": 4, "now": 2}
    ]
    assert any("workers is 2 here, and the attempt before had 4" in note for note in told.notes)


def test_r09_in_canonical_mode_it_is_the_same_and_so_it_is_not_recorded(tmp_path: Path) -> None:
    launcher, told = Flaky([Blow("step.forward", 20, LOST)], workers=[4, 2]), Told()
    trained = train(small(tmp_path, determinism="canonical"), launcher, told=told)
    assert len(launcher.tasks) == 2
    assert json.loads(trained.artifact.read("inexact.json")) == []
    assert [note for note in told.notes if "workers" in note and "retry" not in note] == []


def owner_of(loaded: LoadedSpec, *, take_over: bool = False) -> RunOwner:
    return RunOwner(layout_for(loaded), Progress(), take_over=take_over)


def test_a_second_claim_of_the_same_owner_fences_the_first(tmp_path: Path) -> None:
    owner = owner_of(small(tmp_path))
    first = owner.claim()
    second = owner.claim_again()
    assert (first.epoch, second.epoch) == (1, 2)
    assert owner.ownership is second
    with pytest.raises(FencedError):
        first.check()
    owner.check()
    owner.close()


def test_r33_take_over_is_meant_for_the_first_claim_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = small(tmp_path)
    owner, other = owner_of(loaded, take_over=True), owner_of(loaded)
    owner.claim()
    released = owner.close

    def another_is_faster() -> None:
        released()
        other.claim()

    monkeypatch.setattr(owner, "close", another_is_faster)
    with pytest.raises(RunOwnedError):
        owner.claim_again()
    other.check()
    other.close()


def test_a_claim_that_is_lost_already_is_not_renewed(tmp_path: Path) -> None:
    loaded = small(tmp_path)
    owner, other = owner_of(loaded), owner_of(loaded, take_over=True)
    owner.claim()
    other.claim()
    with pytest.raises(FencedError):
        owner.claim_again()
    other.check()
    other.close()
    owner.close()
