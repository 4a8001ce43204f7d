"""Every storage keeps the promises of `Storage`, alone and inside of what wraps it.

With S3_TEST_ENDPOINT (and credentials) in the environment the object store is the one there, and
its bucket `bucket`; else it is a server in this process.
"""

from __future__ import annotations

import os
import pickle  # noqa: TID251  # a storage goes to the processes of the ranks
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchtrain.errors import StorageError
from batchtrain.storage import (
    FolderStorage,
    ProbedStorage,
    RetryingStorage,
    Storage,
    local_folder,
    probe_storage,
)
from batchtrain.storage.objects import PART_BYTES, ObjectStorage
from tests.support.builders import MemoryStorage
from tests.support.s3 import serving_s3, use_s3

KINDS = ("folder", "memory", pytest.param("s3", marks=pytest.mark.s3))
WRAPPERS: dict[str, Callable[[Storage], Storage]] = {
    "plain": lambda storage: storage,
    "retrying": RetryingStorage,
    "probed": ProbedStorage,
}
WRITERS = 4
RACES = 25

ODD_NAMES = (
    *("a b", "\u00fc", "\u65e5\u672c", "a%2Fb", "a%", "a#b", "a?b", "a+b", "a*b", "a~b", "a&b"),
    *("a'b", 'a"b', "a;b", "a:b", "a=b", "a,b", "[x]", "{x}", "a|b", "`", "...", "-rf", "$(id)"),
    *(".hidden", "UPPER", "upper", "x" * 200),
)

BAD_KEYS = (
    *("", "/a", "a/", "a//b", "//", ".", "..", "../a", "a/../b", "a/./b"),
    *("a\\b", "a/..\\b", "a\0b", "a\nb", "a\x7fb"),
)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an object store with a bucket `bucket`."""
    given = os.environ.get("S3_TEST_ENDPOINT")
    if given:
        yield given
    else:
        with serving_s3() as (_, endpoint):
            yield endpoint


@pytest.fixture(params=WRAPPERS)
def wrapper(request: pytest.FixtureRequest) -> Callable[[Storage], Storage]:
    return WRAPPERS[request.param]


@pytest.fixture(params=KINDS)
def storage(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrapper: Callable[[Storage], Storage],
) -> Storage:
    """An empty storage."""
    if request.param == "folder":
        return wrapper(FolderStorage(tmp_path / "root"))
    if request.param == "memory":
        return wrapper(MemoryStorage())
    use_s3(monkeypatch, request.getfixturevalue("s3_endpoint"))
    return wrapper(ObjectStorage(f"s3://bucket/{uuid.uuid4().hex}/runs"))


@pytest.mark.parametrize("data", [b"", b"\0\xff", b"x" * 100_000])
def test_what_was_written_is_read_back(storage: Storage, data: bytes) -> None:
    storage.write("a/b/c", b"what was there before")
    storage.write("a/b/c", data)
    assert storage.read("a/b/c") == data
    assert storage.size("a/b/c") == len(data)
    assert storage.create("a/b/d", data)
    assert storage.read("a/b/d") == data


def test_data_that_travel_in_parts_are_whole(storage: Storage) -> None:
    data = os.urandom(2 * PART_BYTES + 17)
    storage.write("large", data)
    assert storage.read("large") == data
    assert storage.size("large") == len(data)
    assert storage.create("created", data)
    assert storage.read("created") == data


def test_what_is_not_there_has_no_bytes_no_size_and_no_time(storage: Storage) -> None:
    storage.write("folder/file", b"1")
    for key in ("nothing", "no/thing", "folder", "folder/file/below"):
        assert storage.size(key) is None
        assert storage.modified(key) is None
        with pytest.raises(FileNotFoundError):
            storage.read(key)


def test_the_time_of_a_later_write_is_not_before_that_of_an_earlier_one(storage: Storage) -> None:
    storage.write("first", b"1")
    storage.write("second", b"2")
    first, second = storage.modified("first"), storage.modified("second")
    assert first is not None
    assert second is not None
    assert first <= second


def test_only_the_first_create_puts_its_data(storage: Storage) -> None:
    assert storage.create("a/name", b"first") is True
    assert storage.create("a/name", b"second") is False
    assert storage.read("a/name") == b"first"
    storage.write("a/other", b"written")
    assert storage.create("a/other", b"third") is False
    assert storage.read("a/other") == b"written"
    storage.delete("a/name")
    assert storage.create("a/name", b"fourth") is True


def test_of_many_that_create_one_key_exactly_one_wins(storage: Storage) -> None:
    won: list[list[bytes]] = [[] for _ in range(RACES)]
    barrier = threading.Barrier(WRITERS)

    def race(mine: bytes) -> None:
        for number in range(RACES):
            barrier.wait()
            if storage.create(f"races/{number:03d}/name", mine):
                won[number].append(mine)

    names = [f"writer {number}".encode() * 1000 for number in range(WRITERS)]
    threads = [threading.Thread(target=race, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in won] == [1] * RACES
    for number, winners in enumerate(won):
        assert storage.read(f"races/{number:03d}/name") == winners[0]


def test_keys_are_listed_in_order_and_below_a_prefix_only(storage: Storage) -> None:
    for key in ("b/2", "b/10", "a", "bb/1", "b/sub/x", "c/b/1"):
        storage.write(key, b"")
    assert storage.list("b") == ["b/10", "b/2", "b/sub/x"]
    assert storage.list("b/sub") == ["b/sub/x"]
    assert storage.list("nothing") == []
    assert storage.list("a") == []
    assert storage.list("") == ["a", "b/10", "b/2", "b/sub/x", "bb/1", "c/b/1"]


def test_a_listing_of_many_keys_is_whole(storage: Storage) -> None:
    keys = [f"many/{number:04d}" for number in range(120)]
    for key in keys:
        assert storage.create(key, b"")
    assert storage.list("many") == keys


def test_odd_names_are_kept_as_they_are(storage: Storage) -> None:
    for name in ODD_NAMES:
        storage.write(f"odd {name}/{name}", name.encode())
    assert {key: storage.read(key) for key in storage.list("")} == {
        f"odd {name}/{name}": name.encode() for name in ODD_NAMES
    }
    for name in ODD_NAMES:
        assert storage.list(f"odd {name}") == [f"odd {name}/{name}"]
        assert storage.size(f"odd {name}/{name}") == len(name.encode())
        storage.delete(f"odd {name}/{name}")
    assert storage.list("") == []


def test_what_was_deleted_is_gone_and_nothing_else(storage: Storage) -> None:
    for key in ("a/b/one", "a/b/two", "a/three"):
        storage.write(key, b"1")
    storage.delete("a/b/one")
    assert storage.size("a/b/one") is None
    assert storage.list("") == ["a/b/two", "a/three"]
    for key in ("a/b/one", "nothing/at/all", "a/three/below"):
        storage.delete(key)
    assert storage.list("") == ["a/b/two", "a/three"]


def test_nothing_is_left_over_where_nobody_was_killed(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.create("a", b"2")
    assert storage.leftovers() == []


def test_a_key_that_could_leave_the_root_is_refused(storage: Storage) -> None:
    if storage.url().startswith("memory:"):
        pytest.skip("a dictionary has no root that a key could leave")
    for key in BAD_KEYS:
        attempts = (
            lambda key=key: storage.read(key),
            lambda key=key: storage.size(key),
            lambda key=key: storage.modified(key),
            lambda key=key: storage.write(key, b"x"),
            lambda key=key: storage.create(key, b"x"),
            lambda key=key: storage.delete(key),
            lambda key=key: storage.list(key or ".."),
        )
        for attempt in attempts:
            with pytest.raises(StorageError, match="relative key"):
                attempt()
    assert storage.list("") == []


def test_a_person_finds_a_key_below_the_root(storage: Storage) -> None:
    assert storage.url("a/b").startswith(storage.url())
    assert storage.url("a/b").endswith("a/b")


def test_the_probe_finds_nothing_wrong_and_leaves_nothing(storage: Storage) -> None:
    storage.write("mine", b"1")
    probe_storage(storage)
    assert storage.list("") == ["mine"]
    assert storage.leftovers() == []


def test_a_storage_goes_to_another_process(storage: Storage) -> None:
    storage.write("a", b"1")
    other = pickle.loads(pickle.dumps(storage))
    assert other.read("a") == b"1"
    other.write("b", b"2")
    assert other.url("b") == storage.url("b")
    if not storage.url().startswith("memory:"):
        assert storage.read("b") == b"2"


def test_only_a_folder_has_a_local_folder(storage: Storage) -> None:
    expected = None if ":" in storage.url() else Path(storage.url())
    assert local_folder(storage) == expected
