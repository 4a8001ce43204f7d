"""Every call of every commit may fail, be cut or be the last: nobody ever sees a part."""

from __future__ import annotations

import math
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batchtrain import points
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.garbage import delete_garbage, find_garbage
from batchtrain.errors import (
    ArtifactDamagedError,
    BatchtrainError,
    StorageUnavailableError,
)
from batchtrain.storage import FolderStorage, RetryingStorage, Storage
from batchtrain.storage.objects import ObjectStorage
from batchtrain.testing.faults import Call, Fault, FaultStorage, PointFaults
from tests.fault.forking import Forks
from tests.fault.scenarios import SCENARIOS, Scenario, artifacts_of, newest_step, seen
from tests.support.builders import MemoryStorage

pytestmark = pytest.mark.fault

RAISING = ("fail", "cut", "lost_reply")
KILLING = ("kill_before", "kill_after", "cut_kill")
CUTS = {"cut", "cut_kill"}

# ----------------------------------------------------------------------------------------------
# One commit, undisturbed, and what must hold after a disturbed one


@dataclass
class Undisturbed:
    """A scenario as it goes when nobody disturbs it.

    Attributes:
        scenario: Which.
        folder: That of its spec.
        base: What lies on the storage before.
        calls: Every call that it makes.
        points: Every point that a folder passes meanwhile, and how often.
        final: What is published at the end.
        ever: What is published at any moment.
        plain: The keys at the end that belong to no artifact.
    """

    scenario: Scenario
    folder: Path
    base: dict[str, bytes] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    points: dict[str, int] = field(default_factory=dict)
    final: set[tuple[str, str]] = field(default_factory=set)
    ever: set[tuple[str, str]] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)

    def fill(self, storage: Storage) -> Any:
        """Put the base onto a new storage."""
        for key, data in self.base.items():
            storage.write(key, data)
        return storage

    def look(self, storage: Storage, acknowledged: int, *, may_be_torn: bool = False) -> None:
        """An independent reader sees nothing, or the whole artifact, and what was acknowledged.

        What is torn it refuses, so that it counts as nothing.
        """
        assert seen(storage, may_be_torn=may_be_torn) <= self.ever
        if self.scenario.is_checkpoints and not may_be_torn:
            assert newest_step(storage) >= acknowledged


class Recorder(FaultStorage):
    """Also collects what a reader sees after each call that changes something."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.ever: set[tuple[str, str]] = set()

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        self.ever |= seen(self.inner)
        return made


@pytest.fixture(scope="module")
def undisturbed(
    trained_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """Each scenario as it goes without a fault; done once."""
    done: dict[str, Undisturbed] = {}

    def get(name: str) -> Undisturbed:
        if name not in done:
            done[name] = record(name, trained_folder, tmp_path_factory.mktemp("undisturbed"))
        return done[name]

    return get


def record(name: str, folder: Path, empty: Path) -> Undisturbed:
    trained = FolderStorage(folder / "runs")
    is_late = name == "evaluate and export"
    base = {key: trained.read(key) for key in trained.list("")} if is_late else {}
    found = Undisturbed(SCENARIOS[name], folder, base)
    storage = Recorder(found.fill(MemoryStorage()))
    found.scenario.run(storage, folder, lambda done: None)
    found.calls, found.final = storage.calls, seen(storage.inner)
    found.ever = storage.ever | found.final
    found.plain = {key for key in storage.inner.list("") if is_plain(key)}
    listener = PointFaults()
    points.listen(listener)
    found.scenario.run(found.fill(FolderStorage(empty / "s")), folder, lambda done: None)
    points.listen(None)
    found.points = {
        point: count - passed_by(found.base, point)
        for point, count in listener.passed.items()
        if point.startswith("storage.") and point != "storage.read"
    }
    return found


def passed_by(base: dict[str, bytes], point: str) -> int:
    """How often putting the base there passes a point: it is written, key by key."""
    return 0 if point == "storage.linked" else len(base)


def is_plain(key: str) -> bool:
    return "/files/" not in key and not key.endswith(f"/{MANIFEST}")


def check_all(
    before: Undisturbed, storage: Any, acknowledged: int, where: str, *, may_be_torn: bool = False
) -> None:
    """(a) nobody sees a part, (b) doing it again gives the same, (c) the rest is garbage."""
    try:
        before.look(storage, acknowledged, may_be_torn=may_be_torn)
        assert not collected(storage) & needed(storage)
        repeat(before, storage, may_be_torn=may_be_torn)
        check_rest(before, storage, may_be_torn=may_be_torn)
    except BaseException as error:
        error.add_note(f"{before.scenario.name}: {where}")
        raise


def repeat(before: Undisturbed, storage: Any, *, may_be_torn: bool) -> None:
    """Again without faults; a torn manifest must say what to delete, and then it works."""
    try:
        before.scenario.run(storage, before.folder, lambda done: None)
    except ArtifactDamagedError as error:
        assert may_be_torn
        delete_as_told(storage, str(error))
        before.scenario.run(storage, before.folder, lambda done: None)
    found = seen(storage, may_be_torn=may_be_torn)
    if before.scenario.is_checkpoints:
        assert "step 4" in dict(found)
        assert found <= before.ever
        assert newest_step(storage) == 4
    else:
        assert found == before.final


def delete_as_told(storage: Any, message: str) -> None:
    """Do what the error of a torn file says: delete the folder that it names."""
    assert "elete" in message
    keys = storage.list("")
    folders = {key.rsplit("/", depth)[0] for key in keys for depth in range(1, 1 + key.count("/"))}
    named = [folder for folder in folders if f"folder {storage.url(folder)} " in message]
    if not named:
        (torn,) = [key for key in keys if f"{storage.url(key)} " in message]
        # A claim's file lies in the folder `owner` of the run that is to be deleted.
        named = [torn.rpartition("/owner/" if "/owner/" in torn else "/")[0]]
    (folder,) = named
    for key in storage.list(folder):
        storage.delete(key)


def needed(storage: Any) -> set[str]:
    """The manifests that are whole, and all that they name."""
    keys = set()
    for artifact in artifacts_of(storage, may_be_torn=True):
        named = (entry.path for entry in artifact.manifest.files.values())
        keys |= {f"{artifact.key}/{path}" for path in (MANIFEST, *named)}
    return keys


def collected(storage: Any) -> set[str]:
    """What a garbage collection would list right now, whatever its age."""
    return {each.key for each in find_garbage(storage, older_than_seconds=0, now=math.inf)}


def check_rest(before: Undisturbed, storage: Any, *, may_be_torn: bool) -> None:
    """What is neither named by a manifest nor there on purpose is listed, and nothing else is."""
    keys = {*storage.list(""), *storage.leftovers()}
    plain = {key for key in storage.list("") if is_plain(key)}
    torn = {key for key in keys - needed(storage) if key.endswith(f"/{MANIFEST}")}
    assert not torn or may_be_torn
    assert collected(storage) == keys - needed(storage) - plain - torn
    if before.scenario.is_checkpoints:
        own = ("small/0123456789ab/owner/", "small/0123456789ab/checkpoints/newest.json")
        assert all(key.startswith(own) for key in plain)
    else:
        assert plain == before.plain
    published = seen(storage, may_be_torn=may_be_torn)
    found = find_garbage(storage, older_than_seconds=0, now=math.inf)
    assert all(each.is_kept == (f"{each.artifact}/{MANIFEST}" in torn) for each in found)
    deleted = {each.key for each in delete_garbage(storage, found)}
    assert deleted == {each.key for each in found if not each.is_kept}
    assert {*storage.list(""), *storage.leftovers()} == keys - deleted
    assert seen(storage, may_be_torn=may_be_torn) == published


# ----------------------------------------------------------------------------------------------
# Storages


@pytest.fixture(params=["memory", "folder"])
def new_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Makes empty storages, each of which is gone when the next is made."""

    def make() -> Any:
        if request.param == "memory":
            return MemoryStorage()
        shutil.rmtree(tmp_path / "storage", ignore_errors=True)
        return FolderStorage(tmp_path / "storage")

    return make


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process had written the system still has; only a power cut takes it.

    That no test here can do, and waiting for the disk would be most of the time they take.
    """
    monkeypatch.setattr(os, "fsync", lambda file: None)


def some(numbers: range, every: int) -> Iterator[int]:
    """Every so many of the numbers; the last always, since it is where commits end."""
    yield from (number for number in numbers if (numbers[-1] - number) % every == 0)


# Of how many calls one is tried in every run of the tests; `slow` tries all of them.
OFTEN = {"artifact": 1, "checkpoints": 2, "prepare": 2, "evaluate and export": 19}
KILLED_OFTEN = {"artifact": 1, "checkpoints": 4, "prepare": 3, "evaluate and export": 23}

EVERY = [
    *(pytest.param(name, False, id=name) for name in SCENARIOS),
    *(
        pytest.param(
            name, True, id=f"all of {name}", marks=[pytest.mark.long, pytest.mark.timeout(600)]
        )
        for name in SCENARIOS
    ),
]
"""A scenario, and whether all of its calls are disturbed."""


# ----------------------------------------------------------------------------------------------
# Calls that fail


@pytest.mark.parametrize(("name", "is_whole"), EVERY)
@pytest.mark.parametrize("action", RAISING)
def test_r04_r28_any_call_may_fail(
    undisturbed: Callable[[str], Undisturbed],
    new_storage: Callable[[], Any],
    name: str,
    is_whole: bool,
    action: Any,
) -> None:
    before = undisturbed(name)
    for number in some(range(1, len(before.calls) + 1), 1 if is_whole else OFTEN[name]):
        storage = before.fill(new_storage())
        faulty = FaultStorage(storage, [Fault(number, action)])
        acknowledged, _error = attempt(before, faulty)
        assert len(faulty.calls) >= number
        where = f"{action} at call {number}, {before.calls[number - 1]}"
        check_all(before, storage, acknowledged, where, may_be_torn=action in CUTS)


@pytest.mark.parametrize("name", ["artifact", "checkpoints", "prepare"])
@pytest.mark.parametrize("action", ["unavailable", "lost_reply"])
def test_r27_r28_what_passes_when_it_is_tried_again_changes_nothing(
    undisturbed: Callable[[str], Undisturbed], name: str, action: Any
) -> None:
    before = undisturbed(name)
    for number in range(1, len(before.calls) + 1):
        storage = before.fill(MemoryStorage())
        faulty = FaultStorage(storage, [Fault(number, action)])
        retrying = RetryingStorage(faulty, sleep=lambda seconds: None)
        before.scenario.run(retrying, before.folder, lambda done: None)
        where = f"{action} at call {number}, {before.calls[number - 1]}"
        assert seen(storage) == before.final, where
        assert collected(storage) == set(), where
        assert retrying.retried >= 1 or before.calls[number - 1].verb == "create", where


@pytest.mark.parametrize("name", ["artifact", "checkpoints", "prepare"])
def test_r27_a_storage_that_never_answers_again_ends_in_an_error_that_says_so(
    undisturbed: Callable[[str], Undisturbed], name: str
) -> None:
    before = undisturbed(name)
    for number in range(1, len(before.calls)):
        storage = before.fill(MemoryStorage())
        gone = FaultStorage(storage, [Fault(number, "unavailable", lasting=True)])
        acknowledged, error = attempt(before, RetryingStorage(gone, sleep=lambda seconds: None))
        if isinstance(error, StorageUnavailableError):
            assert "Check the storage" in str(error)
        else:
            # Giving a run back is tried, and that it failed harms nobody.
            assert all("/owner/" in call.key for call in before.calls[number - 1 :])
        check_all(before, storage, acknowledged, f"no answer from call {number} on")


def attempt(before: Undisturbed, storage: Storage) -> tuple[int, BatchtrainError | None]:
    """Do it, and return what was acknowledged and the error that it ended with."""
    acknowledged = [0]
    try:
        before.scenario.run(storage, before.folder, acknowledged.append)
    except BatchtrainError as error:
        return max(acknowledged), error
    return max(acknowledged), None


@pytest.mark.parametrize("name", ["artifact", "checkpoints", "prepare"])
def test_r26_a_full_disk_is_named_and_nothing_is_deleted_to_make_room(
    undisturbed: Callable[[str], Undisturbed], name: str, new_storage: Callable[[], Any]
) -> None:
    before = undisturbed(name)
    verbs = [call.verb for call in before.calls if call.verb in {"write", "create"}]
    for number in range(1, len(verbs) + 1):
        storage = before.fill(new_storage())
        # From this write on the disk takes neither a file nor a name.
        faults = [
            Fault(1 + verbs[: number - 1].count(verb), "full", verb=verb, lasting=True)
            for verb in ("write", "create")
        ]
        full = FaultStorage(storage, faults)
        acknowledged, error = attempt(before, full)
        is_release = before.scenario.is_checkpoints and number == len(verbs)
        assert ("No space left" in str(error)) != is_release
        check_deletions(full.calls, number)
        check_all(before, storage, acknowledged, f"full from write {number} on")


def check_deletions(calls: list[Call], number: int) -> None:
    """From the n-th write on, all of which failed, only those attempts' own files were deleted."""
    writes = [place for place, call in enumerate(calls) if call.verb in {"write", "create"}]
    failed = {
        calls[place].key.removesuffix(f"/{MANIFEST}").partition("/files/")[0]
        for place in writes[number - 1 :]
    }
    later = calls[writes[number - 1] :]
    assert {call.key.rpartition("/files/")[0] for call in later if call.verb == "delete"} <= failed


def test_r27_a_slow_storage_changes_nothing(undisturbed: Callable[[str], Undisturbed]) -> None:
    before = undisturbed("checkpoints")
    slow = Fault(1, "delay", lasting=True, seconds=0.002)
    storage = FaultStorage(MemoryStorage(), [slow])
    before.scenario.run(storage, before.folder, lambda done: None)
    assert seen(storage.inner) == before.final


def test_r29_a_resume_finds_checkpoints_that_no_listing_shows_yet(
    undisturbed: Callable[[str], Undisturbed],
) -> None:
    class Lagging(MemoryStorage):
        def list(self, prefix: str) -> list[str]:
            return []

    before = undisturbed("checkpoints")
    for number in range(1, len(before.calls) + 1):
        storage = Lagging()
        acknowledged, _error = attempt(before, FaultStorage(storage, [Fault(number, "fail")]))
        assert newest_step(storage) >= acknowledged
        before.scenario.run(storage, before.folder, lambda done: None)
        assert newest_step(storage) == 4


# ----------------------------------------------------------------------------------------------
# Processes that are killed


def check_kill(
    before: Undisturbed,
    killer: Forks,
    storage: Any,
    where: str,
    *,
    may_be_torn: bool,
    **faults: Any,
) -> None:
    """Kill a process at one place and look at what it left."""
    before.fill(storage)
    ended_by, acknowledged = killer.run(
        before.scenario.name, storage.url(), before.folder, **faults
    )
    assert ended_by == signal.SIGKILL, f"{where}: it lived"
    check_all(before, storage, acknowledged, where, may_be_torn=may_be_torn)


@pytest.mark.parametrize(("name", "is_whole"), EVERY)
@pytest.mark.parametrize("action", KILLING)
def test_r04_r05_d25_a_process_may_be_killed_at_any_call(
    undisturbed: Callable[[str], Undisturbed],
    killer: Forks,
    tmp_path: Path,
    name: str,
    is_whole: bool,
    action: Any,
) -> None:
    before = undisturbed(name)
    for number in some(range(1, len(before.calls) + 1), 1 if is_whole else KILLED_OFTEN[name]):
        storage = FolderStorage(tmp_path / str(number))
        where = f"{action} at call {number}, {before.calls[number - 1]}"
        check_kill(
            before,
            killer,
            storage,
            where,
            may_be_torn=action in CUTS,
            faults=[Fault(number, action)],
        )


@pytest.mark.parametrize(("name", "is_whole"), EVERY)
def test_r04_d25_a_process_may_be_killed_at_any_point_within_a_write(
    undisturbed: Callable[[str], Undisturbed],
    killer: Forks,
    tmp_path: Path,
    name: str,
    is_whole: bool,
) -> None:
    before = undisturbed(name)
    assert set(before.points) >= {
        *("storage.opened", "storage.half", "storage.written", "storage.synced"),
        *("storage.renamed", "storage.linked", "storage.done"),
    }
    places = [(point, n) for point in before.points for n in range(1, before.points[point] + 1)]
    every = 1 if is_whole else 3 * KILLED_OFTEN[name] - 2
    for place in some(range(len(places)), every):
        point, number = places[place]
        storage = FolderStorage(tmp_path / f"{point}-{number}")
        kill = f"{point}:{number}:kill"
        check_kill(before, killer, storage, kill, may_be_torn=False, point_faults=kill)


def test_a_scenario_that_nobody_disturbs_ends_by_itself(
    undisturbed: Callable[[str], Undisturbed], killer: Forks, tmp_path: Path
) -> None:
    before = undisturbed("artifact")
    storage = FolderStorage(tmp_path / "storage")
    assert killer.run("artifact", storage.url(), before.folder) == (0, 1)
    assert seen(storage) == before.final
    assert collected(storage) == set()


# ----------------------------------------------------------------------------------------------
# The object store


def check_s3(before: Undisturbed, address: str, killer: Forks, number: int, action: Any) -> None:
    storage = ObjectStorage(f"{address}/{uuid.uuid4().hex}")
    where = f"s3, {action} at call {number}, {before.calls[number - 1]}"
    faults = [Fault(number, action)]
    if action in KILLING:
        environ = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        check_kill(
            before,
            killer,
            storage,
            where,
            may_be_torn=action in CUTS,
            faults=faults,
            environ=environ,
        )
    else:
        before.fill(storage)
        acknowledged, _error = attempt(before, FaultStorage(storage, faults))
        check_all(before, storage, acknowledged, where, may_be_torn=action in CUTS)


@pytest.mark.s3
@pytest.mark.parametrize("action", [*RAISING, *KILLING])
def test_r04_r28_any_call_of_a_commit_to_s3_may_fail_or_be_the_last(
    undisturbed: Callable[[str], Undisturbed], s3_address: str, killer: Forks, action: Any
) -> None:
    before = undisturbed("artifact")
    for number in range(1, len(before.calls) + 1):
        check_s3(before, s3_address, killer, number, action)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("checkpoints", 9),
        ("prepare", 9),
        pytest.param("checkpoints", 2, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param("prepare", 1, marks=pytest.mark.long),
        pytest.param("evaluate and export", 5, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_r04_r05_calls_to_s3_may_fail_or_be_the_last(
    undisturbed: Callable[[str], Undisturbed],
    s3_address: str,
    killer: Forks,
    name: str,
    every: int,
) -> None:
    before = undisturbed(name)
    actions = (*RAISING, *KILLING)
    for place, number in enumerate(some(range(1, len(before.calls) + 1), every)):
        check_s3(before, s3_address, killer, number, actions[place % len(actions)])
