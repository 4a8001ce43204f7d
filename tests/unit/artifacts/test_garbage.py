"""Garbage is what nobody will ever read; everything else is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.artifacts import (
    Artifact,
    ArtifactKind,
    Draft,
    RunLayout,
    open_artifact,
    remove_artifacts,
    reuse_or_build,
)
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.garbage import Garbage, delete_garbage, find_garbage, storage_time
from batchtrain.cli.collect import collect, show_collected
from batchtrain.errors import StorageError
from batchtrain.storage import FolderStorage, ProbedStorage
from batchtrain.testing.faults import Fault, FaultStorage
from tests.support.builders import THING, all_files, publish

FILES = {"a.bin": b"\0\1\2" * 50, "deep/b.json": b'{"x": 1}\n'}
KEY = "things/aaaaaaaaaaaa/model"
ATTEMPT = "0123456789ab"
DAY = 24 * 3600.0
NOW = 2_000_000_000.0


class EndOfProcess(BaseException):
    """As if the process had been killed: nothing may be cleaned up after it."""


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "storage")


def put(storage: FolderStorage, key: str, *, age: float = 2 * DAY, data: bytes = b"12345") -> str:
    """A file that was written so many seconds before NOW."""
    storage.write(key, data)
    path = storage.root / key
    os.utime(path, (NOW - age, NOW - age))
    return key


def grow_old(storage: FolderStorage, age: float = 2 * DAY) -> None:
    for name in all_files(storage.root):
        os.utime(storage.root / name, (NOW - age, NOW - age), follow_symlinks=False)


def find(storage: Any, *, older_than_seconds: float = DAY) -> list[Garbage]:
    return find_garbage(storage, older_than_seconds=older_than_seconds, now=NOW)


def keys(found: list[Garbage]) -> list[str]:
    return [each.key for each in found]


def abandon(storage: FolderStorage, key: str = KEY) -> None:
    """Write the files of an artifact as a process does that is killed before the manifest."""

    def build(draft: Draft) -> Mapping[str, Any]:
        for name, data in FILES.items():
            draft.add(name, data)
        draft.discard = lambda: None  # type: ignore[method-assign]
        raise EndOfProcess

    with pytest.raises(EndOfProcess):
        reuse_or_build(storage, key, THING, inputs={"of": key}, build=build)


# ----------------------------------------------------------------------------------------------
# What is garbage


def test_an_empty_storage_and_a_whole_one_have_none(storage: FolderStorage) -> None:
    assert find(storage) == []
    publish(storage, FILES, key=KEY)
    put(storage, "name/0123456789ab/report.html")
    put(storage, "_cache/content-hashes.json")
    grow_old(storage)
    assert find(storage) == []


def test_d25_the_files_of_an_attempt_that_was_killed_are_garbage(storage: FolderStorage) -> None:
    abandon(storage)
    left = all_files(storage.root)
    assert len(left) == len(FILES)
    grow_old(storage)
    found = find(storage)
    assert sorted(keys(found)) == left
    assert sum(each.size for each in found) == sum(map(len, FILES.values()))
    assert {each.why for each in found} == {"its attempt was never published"}
    assert keys(delete_garbage(storage, found)) == keys(found)
    assert all_files(storage.root) == []
    assert publish(storage, FILES, key=KEY).verify() == len(FILES)


def test_d25_an_attempt_beside_a_published_one_is_garbage_alone(storage: FolderStorage) -> None:
    abandon(storage)
    orphans = all_files(storage.root)
    artifact = publish(storage, FILES, key=KEY)
    grow_old(storage)
    found = find(storage)
    assert keys(found) == orphans
    delete_garbage(storage, found)
    assert len(all_files(storage.root)) == len(FILES) + 1
    assert artifact.verify() == len(FILES)


def test_r30_a_stale_file_below_a_published_attempt_is_garbage(storage: FolderStorage) -> None:
    artifact = publish(storage, FILES, key=KEY)
    place = artifact.manifest.files["a.bin"].path.rpartition("/")[0]
    extra = put(storage, f"{KEY}/{place}/extra.bin")
    grow_old(storage)
    (found,) = find(storage)
    assert (found.key, found.size) == (extra, 5)
    assert "does not name it" in found.why


def test_what_a_deletion_left_that_was_killed_is_garbage(storage: FolderStorage) -> None:
    publish(storage, FILES, key=KEY)
    with pytest.raises(StorageError):
        remove_artifacts(FaultStorage(storage, [Fault(3, "fail")]), "things")
    grow_old(storage)
    assert keys(find(storage)) == all_files(storage.root) != []


def test_temporary_files_and_those_of_a_probe_are_garbage(storage: FolderStorage) -> None:
    temporary = put(storage, "name/.writing-0123456789abcdef0123456789abcdef")
    probe = put(storage, "_probe/0123/name")
    put(storage, "name/.writing-4567456789abcdef0123456789abcdef", age=60)
    put(storage, "_probe/4567/name", age=60)
    for opened in (storage, ProbedStorage(storage)):
        found = {each.key: each.why for each in find(opened)}
        assert found == {
            temporary: "a temporary file of a writer that was killed",
            probe: "left by a probe that was killed",
        }
    delete_garbage(storage, find(storage))
    assert all_files(storage.root) == [
        "_probe/4567/name",
        "name/.writing-4567456789abcdef0123456789abcdef",
    ]


# ----------------------------------------------------------------------------------------------
# What is not


def test_an_attempt_is_as_old_as_its_newest_file(storage: FolderStorage) -> None:
    old = put(storage, f"{KEY}/files/{ATTEMPT}/shard-0", age=40 * 3600)
    new = put(storage, f"{KEY}/files/{ATTEMPT}/shard-1", age=20 * 3600)
    assert find(storage) == []
    assert keys(find(storage, older_than_seconds=20 * 3600)) == [old, new]
    assert find(storage, older_than_seconds=20 * 3600 + 1) == []


@given(age=st.floats(0, 1e6), limit=st.floats(0, 1e6))
def test_only_what_is_older_than_the_limit_is_found(age: float, limit: float) -> None:
    class Dated:
        def list(self, prefix: str) -> list[str]:
            return [] if prefix else [f"{KEY}/files/{ATTEMPT}/x"]

        def leftovers(self) -> list[str]:
            return []

        def read(self, key: str) -> bytes:
            raise FileNotFoundError(key)

        def url(self, key: str) -> str:
            return key

        def size(self, key: str) -> int:
            return 1

        def modified(self, key: str) -> float:
            return NOW - age

    found = find_garbage(Dated(), older_than_seconds=limit, now=NOW)
    assert bool(found) == (NOW - age <= NOW - limit)


def test_files_of_others_in_the_folder_are_never_touched(storage: FolderStorage) -> None:
    put(storage, f"uploads/files/{ATTEMPT}/thesis.pdf")
    put(storage, f"a/b/0123456789ab/model/files/{ATTEMPT}/thesis.pdf")
    put(storage, "notes/.writing-plan.txt")
    assert find(storage, older_than_seconds=0) == []


@pytest.mark.parametrize(
    "key",
    [
        "name/0123456789ab/report.html",
        "name/0123456789ab/stages.json",
        "name/0123456789ab/owner/1.json",
        "name/0123456789ab/model/notes.txt",
        "name/0123456789ab/files/notes.txt",
        "name/0123456789ab/files/0123456789AB/notes.txt",
        "name/0123456789ab/files/0123456789abc/notes.txt",
        "name/0123456789ab/files/0123456789ab",
        "files/0123456789ab/run.json",
        "files/0123456789ab/model/notes.txt",
        "_cache/content-hashes.json",
        "notes.txt",
        "_probes",
    ],
)
def test_a_file_elsewhere_is_never_touched(storage: FolderStorage, key: str) -> None:
    put(storage, key)
    assert find(storage, older_than_seconds=0) == []


def test_a_run_with_the_name_files_is_no_attempt(storage: FolderStorage) -> None:
    layout = RunLayout(storage, "files", ATTEMPT)
    publish(storage, FILES, key=layout.model)
    abandon(storage, layout.checkpoint(10, 1))
    put(storage, layout.run_record)
    put(storage, layout.report_page)
    grow_old(storage)
    found = find(storage)
    assert len(found) == len(FILES)
    assert all(key.startswith(layout.checkpoints) for key in keys(found))


def test_links_are_not_followed_out_of_the_root(storage: FolderStorage, tmp_path: Path) -> None:
    outside = FolderStorage(tmp_path / "outside")
    precious = put(outside, f"{KEY}/files/{ATTEMPT}/precious")
    put(outside, "files/.writing-0123456789abcdef0123456789abcdef")
    put(storage, f"{KEY}/files/{ATTEMPT}/orphan")
    (storage.root / "linked").symlink_to(outside.root)
    (storage.root / KEY / "files" / "ba9876543210").symlink_to(
        outside.root / KEY / "files" / ATTEMPT
    )
    (storage.root / KEY / "files" / ATTEMPT / "link").symlink_to(outside.root / precious)
    before = all_files(outside.root)
    found = find(storage)
    assert {key.partition(ATTEMPT)[0] for key in keys(found)} == {f"{KEY}/files/"}
    delete_garbage(storage, found)
    assert all_files(outside.root) == before
    assert outside.read(precious) == b"12345"


# ----------------------------------------------------------------------------------------------
# Manifests that cannot be read, or that appear meanwhile


def torn(manifest: bytes) -> bytes:
    return manifest[: len(manifest) // 2]


def flipped(manifest: bytes) -> bytes:
    return manifest.replace(b'"size": 150', b'"size": 151')


def of_the_future(manifest: bytes) -> bytes:
    return json.dumps({"kind": "thing", "format": 9, "parts": [], "sha256": "0" * 64}).encode()


@pytest.mark.parametrize("damage", [torn, flipped, of_the_future, lambda manifest: b""])
def test_d26_a_manifest_that_cannot_be_read_protects_its_folder(
    storage: FolderStorage, damage: Callable[[bytes], bytes]
) -> None:
    publish(storage, FILES, key=KEY)
    abandon(storage, "things/bbbbbbbbbbbb/model")
    path = storage.root / KEY / MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    grow_old(storage)
    before = all_files(storage.root)
    found = find(storage)
    kept = [each for each in found if each.is_kept]
    assert {each.artifact for each in kept} == {KEY}
    assert len(kept) == len(FILES)
    assert all(f"{KEY}/{MANIFEST}" in each.why for each in kept)
    deleted = delete_garbage(storage, found)
    assert {each.artifact for each in deleted} == {"things/bbbbbbbbbbbb/model"}
    assert all_files(storage.root) == [key for key in before if key.startswith(f"{KEY}/")]


def test_a_manifest_that_storage_refuses_to_read_protects_its_folder(
    storage: FolderStorage,
) -> None:
    publish(storage, FILES, key=KEY)
    grow_old(storage)
    found = find(FaultStorage(storage, [Fault(1, "unavailable", verb="read")]))
    assert len(found) == len(FILES)
    assert all(each.is_kept for each in found)
    assert delete_garbage(storage, found) == []


def test_d27_what_is_published_between_the_search_and_the_deletion_stays(
    storage: FolderStorage,
) -> None:
    found: list[Garbage] = []

    def build(draft: Draft) -> Mapping[str, Any]:
        for name, data in FILES.items():
            draft.add(name, data)
        # A day long pause, in which somebody looks for garbage.
        grow_old(storage)
        found.extend(find(storage))
        return {}

    artifact, _status = reuse_or_build(storage, KEY, THING, inputs={}, build=build)
    assert len(found) == len(FILES)
    assert delete_garbage(storage, found) == []
    assert artifact.verify() == len(FILES)
    (storage.root / KEY / MANIFEST).write_bytes(b"torn")
    assert delete_garbage(storage, found) == []


def test_what_was_deleted_before_storage_refused_stays_deleted(storage: FolderStorage) -> None:
    abandon(storage)
    grow_old(storage)
    found = find(storage)
    with pytest.raises(StorageError):
        delete_garbage(FaultStorage(storage, [Fault(2, "fail", verb="delete")]), found)
    assert all_files(storage.root) == keys(found)[1:]
    assert keys(find(storage)) == keys(found)[1:]


def test_a_file_that_goes_meanwhile_is_no_error(storage: FolderStorage) -> None:
    abandon(storage)
    put(storage, "name/.writing-0123456789abcdef0123456789abcdef")
    grow_old(storage)
    found = find(storage)
    for each in found:
        storage.delete(each.key)
    assert keys(delete_garbage(storage, found)) == keys(found)


# ----------------------------------------------------------------------------------------------
# The clock, and the command


def test_the_time_is_the_storages_own_and_asking_leaves_nothing(storage: FolderStorage) -> None:
    class Behind(FolderStorage):
        def modified(self, key: str) -> float | None:
            found = super().modified(key)
            return None if found is None else NOW

    assert storage_time(Behind(storage.root)) == NOW
    assert all_files(storage.root) == []


@pytest.fixture
def littered(storage: FolderStorage) -> FolderStorage:
    """A published artifact, an attempt of two days ago, one of now, and a torn manifest."""
    abandon(storage)
    publish(storage, FILES, key=KEY)
    abandon(storage, "torn/cccccccccccc/model")
    storage.write(f"torn/cccccccccccc/model/{MANIFEST}", b"{")
    for name in all_files(storage.root):
        os.utime(storage.root / name, (0, 0))
    abandon(storage, "new/dddddddddddd/model")
    return storage


def test_a_dry_run_says_what_the_next_run_deletes_and_touches_nothing(
    littered: FolderStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(littered.root)
    before = all_files(littered.root)
    dry = collect(root, older_than_hours=24, dry_run=True)
    assert all_files(littered.root) == before
    show_collected(dry)
    shown = capsys.readouterr().out
    done = collect(root, older_than_hours=24, dry_run=False)
    assert done["deleted"] == dry["found"]
    assert done["kept"] == dry["kept"]
    assert done["bytes"] == dry["bytes"] == sum(map(len, FILES.values()))
    gone = sorted(each["key"] for each in done["deleted"])
    assert sorted(set(before) - set(all_files(littered.root))) == gone
    lines = shown.splitlines()
    assert len(lines) == len(dry["found"]) + len(dry["kept"]) + 1
    assert all(any(key in line for line in lines) for key in gone)
    assert "2 files would be deleted, 159 B in sum, 2 kept" in lines[-1]
    show_collected(done)
    assert "2 files deleted, 159 B in sum" in capsys.readouterr().out


def test_what_an_attempt_of_this_moment_wrote_is_found_only_on_request(
    littered: FolderStorage,
) -> None:
    def found(hours: float) -> list[str]:
        document = collect(str(littered.root), older_than_hours=hours, dry_run=True)
        return [each["key"] for each in document["found"]]

    assert not any(key.startswith("new/") for key in found(24))
    assert any(key.startswith("new/") for key in found(0))


def test_a_spec_file_stands_for_its_storage(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        json.dumps(
            {
                "version": 1,
                "name": "small",
                "storage": "kept",
                "data": {"source": "x.csv", "target": "y"},
            }
        )
    )
    storage = FolderStorage(tmp_path / "kept")
    abandon(storage)
    document = collect(str(tmp_path / "small.yaml"), older_than_hours=0, dry_run=False)
    assert document["storage"] == str(tmp_path / "kept")
    assert len(document["deleted"]) == len(FILES)
    assert all_files(tmp_path) == ["small.yaml"]


def test_a_folder_that_is_not_there_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(StorageError, match=r"expected the folder .*absent.*Pass the folder"):
            collect(str(tmp_path / "absent"), older_than_hours=24, dry_run=dry_run)
    assert all_files(tmp_path) == []


def test_another_kinds_and_formats_manifests_are_read_too(storage: FolderStorage) -> None:
    made: list[Artifact] = []
    for number in (1, 7):
        kind = ArtifactKind(f"kind-{number}", number)

        def build(draft: Draft) -> Mapping[str, Any]:
            draft.add("one", b"1")
            return {}

        made.append(reuse_or_build(storage, f"k/{number}", kind, inputs={}, build=build)[0])
    grow_old(storage)
    assert find(storage) == []
    assert [open_artifact(storage, f"k/{n}", ArtifactKind(f"kind-{n}", n)) for n in (1, 7)] == made
