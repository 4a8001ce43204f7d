"""A folder as a storage: whole writes, one winner, no way out of the root."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import batchtrain
from batchtrain.errors import StorageError
from batchtrain.storage import FolderStorage
from tests.support.builders import all_files

RACES = 200


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "root")


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> Iterator[None]:
    """The operating system refuses one of its calls."""

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        yield


def test_what_was_written_is_read_back(storage: FolderStorage) -> None:
    storage.write("a/b/c", b"\0\xff")
    assert storage.read("a/b/c") == b"\0\xff"
    assert storage.size("a/b/c") == 2
    storage.write("a/b/c", b"")
    assert storage.read("a/b/c") == b""
    assert storage.size("a/b/c") == 0


def test_a_key_that_is_not_there_has_no_size_and_cannot_be_read(storage: FolderStorage) -> None:
    storage.write("file", b"1")
    for key in ("nothing", "no/thing", "file/below"):
        assert storage.size(key) is None
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")


def test_only_the_first_create_puts_its_data(storage: FolderStorage) -> None:
    assert storage.create("a/name", b"first") is True
    assert storage.create("a/name", b"second") is False
    assert storage.read("a/name") == b"first"
    assert all_files(storage.root) == ["a/name"]


def test_keys_are_listed_in_order_and_below_a_prefix_only(storage: FolderStorage) -> None:
    for key in ("b/2", "b/10", "a", "bb/1", "b/sub/x"):
        storage.write(key, b"")
    assert storage.list("") == ["a", "b/10", "b/2", "b/sub/x", "bb/1"]
    assert storage.list("b") == ["b/10", "b/2", "b/sub/x"]
    assert storage.list("nothing") == []
    assert FolderStorage(storage.root / "nothing").list("") == []


def test_a_temporary_file_of_another_writer_is_no_key(storage: FolderStorage) -> None:
    storage.write("a/x", b"1")
    (storage.root / "a" / ".writing-0123").write_bytes(b"half")
    assert storage.list("") == ["a/x"]


def test_deleting_takes_the_folders_that_become_empty_but_not_the_root(
    storage: FolderStorage,
) -> None:
    storage.write("a/b/c/one", b"")
    storage.write("a/two", b"")
    storage.delete("a/b/c/one")
    assert not (storage.root / "a" / "b").exists()
    assert storage.list("") == ["a/two"]
    storage.delete("a/two")
    assert list(storage.root.iterdir()) == []
    storage.delete("a/two")


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "a/..\\b", "a\0b", "//"],
)
def test_a_key_that_could_leave_the_root_is_refused(storage: FolderStorage, key: str) -> None:
    attempts = (
        lambda: storage.read(key),
        lambda: storage.size(key),
        lambda: storage.write(key, b"x"),
        lambda: storage.create(key, b"x"),
        lambda: storage.delete(key),
    )
    for attempt in attempts:
        with pytest.raises(StorageError, match="relative key"):
            attempt()
    assert not storage.root.exists() or all_files(storage.root) == []


def test_of_two_threads_that_create_one_key_exactly_one_wins(storage: FolderStorage) -> None:
    won: list[list[bytes]] = [[] for _ in range(RACES)]
    barrier = threading.Barrier(2)

    def race(mine: bytes) -> None:
        for number in range(RACES):
            barrier.wait()
            if storage.create(f"races/{number:03d}/name", mine):
                won[number].append(mine)

    threads = [threading.Thread(target=race, args=(name,)) for name in (b"left", b"right" * 999)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in won] == [1] * RACES
    for number, winners in enumerate(won):
        assert storage.read(f"races/{number:03d}/name") == winners[0]
    assert len(all_files(storage.root)) == RACES


RACER = """
import sys
from pathlib import Path
from batchtrain.storage import FolderStorage

storage = FolderStorage(Path(sys.argv[1]))
for line in sys.stdin:
    print(storage.create(line.strip(), sys.argv[2].encode()), flush=True)
"""


def test_of_two_processes_that_create_one_key_exactly_one_wins(storage: FolderStorage) -> None:
    source = Path(batchtrain.__file__).parents[1]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(storage.root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        for name in ("left", "right")
    ]
    winners = []
    for number in range(RACES):
        for racer in racers:
            racer.stdin.write(f"{number:03d}\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline() for racer in racers]
        assert sorted(answers) == ["False\n", "True\n"], f"race {number}: {answers}"
        winners.append(("left", "right")[answers.index("True\n")].encode())
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    assert [storage.read(f"{number:03d}") for number in range(RACES)] == winners


def test_a_reader_sees_the_old_bytes_or_the_new_never_a_part(storage: FolderStorage) -> None:
    versions = [bytes([value]) * 100_000 for value in range(40)]
    storage.write("key", versions[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read("key"))

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions[1:]:
        storage.write("key", version)
    done.set()
    reader.join()
    assert seen
    assert seen <= set(versions)


@pytest.mark.parametrize(
    ("call", "code"),
    [("fsync", errno.ENOSPC), ("replace", errno.EIO), ("fsync", errno.EDQUOT)],
)
def test_a_failed_write_names_the_place_and_leaves_the_old_bytes(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    storage.write("a/key", b"old")
    with refused(monkeypatch, call, code), pytest.raises(StorageError) as caught:
        storage.write("a/key", b"new")
    assert str(storage.root / "a" / "key") in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "Check that" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert storage.read("a/key") == b"old"
    assert all_files(storage.root) == ["a/key"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSPC, errno.EMLINK])
def test_a_file_system_without_links_is_an_error_and_no_name_appears(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with refused(monkeypatch, "link", code), pytest.raises(StorageError, match="a/key"):
        storage.create("a/key", b"new")
    assert all_files(storage.root) == []


def test_a_folder_where_a_file_should_be_is_a_storage_error(storage: FolderStorage) -> None:
    storage.write("a/b", b"")
    for attempt in (
        lambda: storage.read("a"),
        lambda: storage.write("a/b/c", b""),
        lambda: storage.create("a/b/c", b""),
        lambda: storage.delete("a"),
    ):
        with pytest.raises(StorageError, match="storage refused"):
            attempt()
    assert storage.list("") == ["a/b"]


def test_r28_a_create_whose_reply_was_lost_recognises_its_own_file(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What NFS does when the answer to a link is lost: the client asks again and hears EEXIST.
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert storage.create("a/key", b"mine") is True
    assert storage.read("a/key") == b"mine"


def test_a_folder_that_another_process_prunes_meanwhile_is_no_traceback(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A discarding writer removes empty folders; another may just have made one.
    mkdir, pruned = Path.mkdir, []

    def mkdir_then_prune(path: Path, *arguments: object, **named: object) -> None:
        mkdir(path, *arguments, **named)
        if path == storage.root / "a" and not pruned:
            pruned.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir_then_prune)
    storage.write("a/key", b"new")
    assert storage.read("a/key") == b"new"
