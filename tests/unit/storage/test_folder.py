"""What a folder promises beyond `Storage`: whole at every kill, clean at every error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import pytest

import batchtrain
from batchtrain import points
from batchtrain.errors import StorageError, StorageUnavailableError
from batchtrain.storage import FolderStorage, RetryingStorage
from batchtrain.storage import folder as folder_module
from tests.support.builders import all_files

RACES = 200
SOURCE = Path(batchtrain.__file__).parents[1]

WRITE_POINTS = ("opened", "half", "written", "synced", "renamed", "done")
CREATE_POINTS = ("opened", "half", "written", "synced", "linked", "done")
POINTS = [
    *(pytest.param("write", f"storage.{name}", id=f"write-{name}") for name in WRITE_POINTS),
    *(pytest.param("create", f"storage.{name}", id=f"create-{name}") for name in CREATE_POINTS),
]
IS_THERE = ("storage.renamed", "storage.linked", "storage.done")

MAY_PASS = ("EIO", "ESTALE", "EAGAIN", "EBUSY", "ETIMEDOUT", "EINTR", "EHOSTDOWN", "ECONNRESET")
STAYS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENAMETOOLONG", "EMLINK", "EFBIG")


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


@pytest.fixture
def failing_at() -> Iterator[Callable[[str, int], None]]:
    """Let the operating system refuse at a named point."""

    def fail(point: str, code: int) -> None:
        def listener(name: str) -> None:
            if name == point:
                raise OSError(code, os.strerror(code))

        points.listen(listener)

    yield fail
    points.listen(None)


def test_a_temporary_file_of_another_writer_is_no_key(storage: FolderStorage) -> None:
    storage.write("a/x", b"1")
    (storage.root / "a" / ".writing-0123456789abcdef0123456789abcdef").write_bytes(b"half")
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


RACER = """
import sys
from pathlib import Path
from batchtrain.storage import FolderStorage

storage = FolderStorage(Path(sys.argv[1]))
for line in sys.stdin:
    print(storage.create(line.strip(), sys.argv[2].encode()), flush=True)
"""


def test_of_two_processes_that_create_one_key_exactly_one_wins(storage: FolderStorage) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(storage.root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
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
        lambda: storage.write("a/b/c", b""),
        lambda: storage.create("a/b/c", b""),
        lambda: storage.delete("a"),
    ):
        with pytest.raises(StorageError, match="storage refused"):
            attempt()
    assert storage.list("") == ["a/b"]
    for key in ("a", "a/b/c"):
        with pytest.raises(FileNotFoundError):
            storage.read(key)


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


def test_a_folder_that_goes_away_while_it_is_listed_has_no_files(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a/gone/key", b"1")
    storage.write("a/key", b"1")
    scandir = os.scandir

    def scan_then_prune(path: str) -> Iterator[os.DirEntry[str]]:
        found = list(scandir(path))
        storage.delete("a/gone/key")
        return iter(found)

    monkeypatch.setattr(os, "scandir", scan_then_prune)
    assert storage.list("") == ["a/key"]


def test_a_folder_that_may_not_be_listed_is_an_error_not_an_empty_list(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a/key", b"1")
    with refused(monkeypatch, "scandir", errno.EACCES), pytest.raises(StorageError, match="denied"):
        storage.list("")


def test_the_system_may_take_fewer_bytes_than_it_was_given(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = folder_module._opened_new

    class Sip:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, view: memoryview) -> int:
            return self.file.write(view[:7])

    monkeypatch.setattr(folder_module, "_opened_new", lambda path: Sip(opened(path)))
    storage.write("key", bytes(range(256)))
    assert storage.read("key") == bytes(range(256))


# ----------------------------------------------------------------------------------------------
# R26, R27: what the operating system refuses


@pytest.mark.parametrize(("verb", "point"), POINTS)
def test_r26_a_full_disk_leaves_what_was_there_and_no_more(
    storage: FolderStorage, failing_at: Callable[[str, int], None], verb: str, point: str
) -> None:
    storage.write("other/key", b"kept")
    if verb == "write":
        storage.write("a/b/key", b"old")
    before = all_files(storage.root)
    failing_at(point, errno.ENOSPC)
    if point == "storage.done":  # there is nothing left to refuse
        with pytest.raises(OSError, match="No space"):
            getattr(storage, verb)("a/b/key", b"new")
    else:
        with pytest.raises(StorageError, match="No space left on device") as caught:
            getattr(storage, verb)("a/b/key", b"new")
        assert not isinstance(caught.value, StorageUnavailableError)
        assert str(storage.root / "a/b/key") in str(caught.value)
        assert "Free some space" in str(caught.value)
    if point in IS_THERE:
        assert storage.read("a/b/key") == b"new"
        assert all_files(storage.root) == ["a/b/key", "other/key"]
    else:
        assert all_files(storage.root) == before
        assert (storage.root / "a").exists() == (verb == "write")
    points.listen(None)
    assert storage.read("other/key") == b"kept"
    storage.write("a/b/key", b"after some space was freed")
    assert storage.read("a/b/key") == b"after some space was freed"


def test_r26_a_disk_that_is_full_for_folders_too_leaves_none(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("kept", b"1")
    mkdir = Path.mkdir

    def refuse_the_third(path: Path, *arguments: object, **named: object) -> None:
        if path.name == "c":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refuse_the_third)
    with pytest.raises(StorageError, match="No space left"):
        storage.write("a/b/c/key", b"new")
    assert [path.name for path in storage.root.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", MAY_PASS)
@pytest.mark.parametrize("verb", ["write", "create", "read"])
def test_r27_an_error_that_may_pass_says_so(
    storage: FolderStorage, failing_at: Callable[[str, int], None], verb: str, name: str
) -> None:
    failing_at("storage.read" if verb == "read" else "storage.half", getattr(errno, name))
    arguments = () if verb == "read" else (b"data",)
    with pytest.raises(StorageUnavailableError) as caught:
        getattr(storage, verb)("a/key", *arguments)
    assert os.strerror(getattr(errno, name)) in str(caught.value)
    assert all_files(storage.root) == []


@pytest.mark.parametrize("name", STAYS)
@pytest.mark.parametrize("verb", ["write", "create", "read"])
def test_r27_an_error_that_stays_is_told_at_once(
    storage: FolderStorage, failing_at: Callable[[str, int], None], verb: str, name: str
) -> None:
    failing_at("storage.read" if verb == "read" else "storage.half", getattr(errno, name))
    arguments = () if verb == "read" else (b"data",)
    sleeps: list[float] = []
    retrying = RetryingStorage(storage, sleep=sleeps.append)
    with pytest.raises(StorageError) as caught:
        getattr(retrying, verb)("a/key", *arguments)
    assert type(caught.value) is StorageError
    assert os.strerror(getattr(errno, name)) in str(caught.value)
    assert sleeps == []
    assert all_files(storage.root) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_r27_a_file_system_that_cannot_sync_a_folder_is_left_alone(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    open_file = os.open

    def refuse_folders(path: Path, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module.os, "open", refuse_folders)
    storage.write("a/key", b"1")
    assert storage.create("a/other", b"2")
    monkeypatch.setattr(folder_module.os, "open", open_file)
    assert storage.list("") == ["a/key", "a/other"]


def test_r27_a_name_that_was_made_but_could_not_be_synced_is_tried_again_and_won(
    storage: FolderStorage, failing_at: Callable[[str, int], None]
) -> None:
    failing_at("storage.linked", errno.EIO)
    retrying = RetryingStorage(storage, sleep=lambda seconds: points.listen(None))
    assert retrying.create("a/key", b"mine") is True
    assert storage.read("a/key") == b"mine"


# ----------------------------------------------------------------------------------------------
# A writer that is killed

KILLED = """
import os, sys
from pathlib import Path
from batchtrain import points
from batchtrain.storage import FolderStorage

root, verb, point = sys.argv[1:]
points.listen(lambda name: os._exit(9) if name == point else None)
getattr(FolderStorage(Path(root)), verb)("a/key", b"new" * 100_000)
"""


@pytest.mark.fault
@pytest.mark.parametrize(("verb", "point"), POINTS)
def test_a_killed_writer_leaves_the_old_or_the_new_and_at_most_a_leftover(
    storage: FolderStorage, verb: str, point: str
) -> None:
    if verb == "write":
        storage.write("a/key", b"old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(storage.root), verb, point],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 9
    found = storage.read("a/key") if storage.list("") else None
    assert found == (b"new" * 100_000 if point in IS_THERE else {"write": b"old"}.get(verb))
    # A rename takes the temporary name away, a link leaves it until the end.
    leftovers = storage.leftovers()
    assert len(leftovers) == (point not in {"storage.renamed", "storage.done"})
    for name in leftovers:
        assert storage.modified(name) is not None
        storage.delete(name)
    assert storage.leftovers() == []
    assert all_files(storage.root) == storage.list("")
