"""The probe at the start: a storage that breaks a promise is refused before it costs a run."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from batchtrain import points
from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.storage import FolderStorage, ProbedStorage, RetryingStorage, probe_storage
from batchtrain.storage.probe import PROBE_LIMIT_S
from tests.support.builders import MemoryStorage, all_files
from tests.unit.storage.conftest import Clock, Unreliable


class Overwriting(MemoryStorage):
    def create(self, key: str, data: bytes) -> bool:
        self.files[key] = data
        return True


class SayingNoButOverwriting(MemoryStorage):
    def create(self, key: str, data: bytes) -> bool:
        is_new = key not in self.files
        self.files[key] = data
        return is_new


class SayingYes(MemoryStorage):
    def create(self, key: str, data: bytes) -> bool:
        super().create(key, data)
        return True


class SayingNo(MemoryStorage):
    def create(self, key: str, data: bytes) -> bool:
        super().create(key, data)
        return False


class ForgettingWrites(MemoryStorage):
    def write(self, key: str, data: bytes) -> None:
        self.files.setdefault(key, data)


class WrongSize(MemoryStorage):
    def size(self, key: str) -> int | None:
        return 0 if key in self.files else None


class AlwaysThere(MemoryStorage):
    def size(self, key: str) -> int | None:
        return 7


class WithoutTime(MemoryStorage):
    def modified(self, key: str) -> float | None:
        return None


class ListingLate(MemoryStorage):
    def list(self, prefix: str) -> list[str]:
        return []


class KeepingDeleted(MemoryStorage):
    def delete(self, key: str) -> None:
        pass


class ShowingLate(MemoryStorage):
    def read(self, key: str) -> bytes:
        raise FileNotFoundError(key)


BROKEN = [
    (Overwriting, "exclusive create"),
    (SayingNoButOverwriting, "exclusive create"),
    (SayingYes, "exclusive create"),
    (SayingNo, "exclusive create"),
    (ForgettingWrites, "overwrite"),
    (WrongSize, "size"),
    (AlwaysThere, "size"),
    (WithoutTime, "time"),
    (ListingLate, "list"),
    (KeepingDeleted, "delete"),
    (ShowingLate, "not there"),
]


@pytest.mark.parametrize(("broken", "promise"), BROKEN)
def test_j13_a_storage_that_breaks_a_promise_is_refused_before_the_first_write(
    broken: type[MemoryStorage], promise: str
) -> None:
    inner = broken({"mine": b"1"})
    storage = ProbedStorage(inner)
    for attempt in (
        lambda: storage.write("key", b"data"),
        lambda: storage.create("key", b"data"),
    ):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert promise in str(caught.value)
        assert "memory:" in str(caught.value)
        assert "hoose a" in str(caught.value)
        assert "key" not in inner.files
    if broken is not KeepingDeleted:
        assert inner.files == {"mine": b"1"}


def test_j12_a_right_that_is_missing_is_named_with_the_step(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        if name == "storage.opened":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    points.listen(refuse)
    try:
        with pytest.raises(StorageError) as caught:
            ProbedStorage(FolderStorage(tmp_path)).write("key", b"data")
    finally:
        points.listen(None)
    assert "expected to create a new file at the start" in str(caught.value)
    assert "Permission denied" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert all_files(tmp_path) == []


def test_j12_a_storage_that_does_not_answer_is_told_soon(clock: Clock) -> None:
    inner = Unreliable(MemoryStorage(), {"size": ["fails"] * 99}, clock, latency=5.0)
    storage = RetryingStorage(inner, limit=PROBE_LIMIT_S, sleep=clock.sleep, clock=clock)
    with pytest.raises(StorageUnavailableError, match="at the start"):
        probe_storage(storage)
    assert [call for call in inner.calls if call != "url"] == ["size"]


@pytest.mark.parametrize("verb", ["create", "read", "size", "modified", "list", "write", "delete"])
@pytest.mark.parametrize("outcome", ["fails", "loses"])
def test_a_probe_that_fails_takes_away_what_it_wrote(verb: str, outcome: Any) -> None:
    inner = MemoryStorage({"mine": b"1"})
    with pytest.raises(StorageUnavailableError):
        probe_storage(Unreliable(inner, {"url": [], verb: [outcome]}))
    assert inner.files == {"mine": b"1"}


def test_a_storage_is_probed_once_and_only_before_a_write() -> None:
    inner = Unreliable(MemoryStorage({"there": b"1"}), {})
    storage = ProbedStorage(inner)
    assert storage.read("there") == b"1"
    assert storage.size("there") == 1
    assert storage.list("") == ["there"]
    assert storage.leftovers() == []
    storage.delete("nothing")
    assert {"create", "write"}.isdisjoint(inner.calls)
    storage.write("key", b"1")
    assert inner.calls.count("create") == 2
    storage.create("other", b"2")
    storage.write("key", b"3")
    assert inner.calls.count("create") == 3
    assert sorted(inner.inner.files) == ["key", "other", "there"]


def test_a_probe_that_failed_is_made_again_at_the_next_write() -> None:
    inner = Unreliable(MemoryStorage(), {"list": ["fails"] * 9})
    storage = ProbedStorage(inner)
    storage._quick._sleep = lambda seconds: None
    with pytest.raises(StorageUnavailableError):
        storage.write("key", b"1")
    inner.outcomes.clear()
    storage.write("key", b"1")
    assert inner.inner.files == {"key": b"1"}


def test_retries_of_the_probe_are_counted() -> None:
    inner = Unreliable(MemoryStorage(), {"list": ["fails"]})
    storage = ProbedStorage(inner)
    storage._quick._sleep = lambda seconds: None
    storage.write("key", b"1")
    assert storage.inner.retried == 1


def test_many_threads_that_write_first_wait_for_one_probe() -> None:
    inner = Unreliable(MemoryStorage(), {})
    storage = ProbedStorage(inner)
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        storage.write(f"key/{number}", b"1")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inner.calls.count("create") == 2
    assert len(inner.inner.files) == 8


def test_what_a_killed_probe_left_is_a_leftover() -> None:
    inner = MemoryStorage({"_probe/0123/name": b"first", "mine": b"1"})
    storage = ProbedStorage(inner)
    assert storage.leftovers() == ["_probe/0123/name"]
    storage.delete("_probe/0123/name")
    assert storage.leftovers() == []


def test_no_run_can_be_named_as_the_folder_of_the_probes() -> None:
    from batchtrain.spec.run import RunSpec

    with pytest.raises(ValueError, match="name"):
        RunSpec.model_validate_json('{"version": 1, "name": "_probe", "data": {"source": "a.csv"}}')
