"""Publishing: whole or absent, one writer wins, and nothing damaged is ever read."""

from __future__ import annotations

import json
import threading
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
    find_artifact,
    open_artifact,
    reuse_or_build,
)
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.errors import (
    ArtifactDamagedError,
    ArtifactError,
    ArtifactMissingError,
    StorageError,
)
from batchtrain.storage import FolderStorage
from tests.support.builders import THING, MemoryStorage, WatchedStorage, all_files, publish

FILES = {"a.bin": b"\0\1\2" * 50, "deep/b.json": b'{"x": 1}\n', "empty": b""}
KEY = "things/one"
INPUTS = {"of": KEY}


class BrokenBuildError(Exception):
    """What a build of these tests dies of."""


def build_three(draft: Draft) -> Mapping[str, Any]:
    for name, data in FILES.items():
        draft.add(name, data)
    return {"rows": 3}


def build(
    storage: Any,
    make: Callable[[Draft], Mapping[str, Any]] = build_three,
    inputs: Mapping[str, Any] = INPUTS,
) -> tuple[Artifact, str]:
    return reuse_or_build(storage, KEY, THING, inputs=inputs, build=make)


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path)


def test_a_second_build_of_the_same_inputs_is_never_run(storage: FolderStorage) -> None:
    made, status = build(storage)
    assert status == "built"
    before = {name: (storage.root / name).stat().st_mtime_ns for name in all_files(storage.root)}

    def never(draft: Draft) -> Mapping[str, Any]:
        raise AssertionError("a published stage was run again")

    found, status = build(storage, never)
    assert status == "reused"
    assert found.manifest == made.manifest
    assert {name: found.read(name) for name in FILES} == FILES
    assert found.verify() == len(FILES)
    after = {name: (storage.root / name).stat().st_mtime_ns for name in all_files(storage.root)}
    assert after == before


@pytest.mark.parametrize("failing", range(len(FILES) + 1))
def test_a_build_that_fails_leaves_nothing(storage: FolderStorage, failing: int) -> None:
    def broken(draft: Draft) -> Mapping[str, Any]:
        for place, (name, data) in enumerate(FILES.items()):
            if place == failing:
                raise BrokenBuildError
            draft.add(name, data)
        raise BrokenBuildError

    with pytest.raises(BrokenBuildError):
        build(storage, broken)
    assert all_files(storage.root) == []
    assert find_artifact(storage, KEY, THING) is None
    assert build(storage)[1] == "built"


@pytest.mark.parametrize("error", [StorageError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("call", range(len(FILES) + 1))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_storage_that_fails_at_any_call_leaves_a_whole_artifact_or_none(
    tmp_path: Path, error: BaseException, call: int, when: str
) -> None:
    calls = []

    def fail(verb: str, key: str) -> None:
        calls.append(key)
        if len(calls) == call + 1:
            raise error

    storage = FolderStorage(tmp_path)
    with pytest.raises(type(error)):
        build(WatchedStorage(storage, **{when: fail}))
    found = find_artifact(storage, KEY, THING)
    if found is None:
        assert all_files(tmp_path) == []
    else:
        assert found.verify() == len(FILES)
    again, _status = build(storage)
    assert {name: again.read(name) for name in FILES} == FILES


def test_r28_a_create_that_won_but_was_told_otherwise_keeps_its_files() -> None:
    class Forgetful(MemoryStorage):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return False

    storage = Forgetful()
    made, _status = build(storage)
    assert made.verify() == len(FILES)


def test_files_are_kept_where_nobody_can_tell_whether_they_are_published() -> None:
    inner = MemoryStorage()

    class Lost(MemoryStorage):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            self.is_lost = True
            raise StorageError("no answer")

        def read(self, key: str) -> bytes:
            if getattr(self, "is_lost", False):
                raise StorageError("no answer")
            return super().read(key)

    with pytest.raises(StorageError):
        build(Lost(inner.files))
    found = find_artifact(inner, KEY, THING)
    assert found is not None
    assert found.verify() == len(FILES)


def test_the_loser_of_a_race_returns_the_winners_artifact(storage: FolderStorage) -> None:
    def overtaken(draft: Draft) -> Mapping[str, Any]:
        build(storage)
        return build_three(draft)

    lost, status = build(storage, overtaken)
    assert status == "reused"
    assert lost.manifest == open_artifact(storage, KEY, THING).manifest
    assert lost.verify() == len(FILES)
    assert len(all_files(storage.root)) == len(FILES) + 1


def test_r34_the_loser_with_other_inputs_fails_and_leaves_no_files(storage: FolderStorage) -> None:
    def overtaken(draft: Draft) -> Mapping[str, Any]:
        build(storage, inputs={"of": "others"})
        return build_three(draft)

    with pytest.raises(ArtifactError, match="expected fingerprint"):
        build(storage, overtaken)
    assert len(all_files(storage.root)) == len(FILES) + 1
    assert open_artifact(storage, KEY, THING).verify() == len(FILES)


def test_many_writers_at_once_publish_one_artifact_and_no_mixture(storage: FolderStorage) -> None:
    barrier = threading.Barrier(4)
    results: list[tuple[bytes, Artifact, str]] = []

    def write(mine: bytes) -> None:
        def make(draft: Draft) -> Mapping[str, Any]:
            draft.add("one", mine)
            barrier.wait()
            draft.add("two", mine)
            return {}

        results.append((mine, *build(storage, make)))

    threads = [threading.Thread(target=write, args=(bytes([65 + name]),)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [mine for mine, _artifact, status in results if status == "built"]
    for _mine, artifact, _status in results:
        assert artifact.read("one") == artifact.read("two") == winner
    assert len(all_files(storage.root)) == 3


def test_other_inputs_under_the_same_name_are_refused(storage: FolderStorage) -> None:
    build(storage)
    with pytest.raises(ArtifactError, match=r"Use another storage or name"):
        build(storage, inputs={"of": "others"})


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), name=st.sampled_from(sorted(FILES)))
def test_r30_every_flipped_bit_of_a_file_is_found_when_it_is_read(
    place: int, bit: int, name: str
) -> None:
    storage = MemoryStorage()
    artifact = publish(storage, FILES)
    path = f"{KEY}/{artifact.manifest.files[name].path}"
    data = bytearray(FILES[name] or b"\0")
    data[place % len(data)] ^= 1 << bit
    storage.files[path] = bytes(data)
    with pytest.raises(ArtifactDamagedError, match=r"found other bytes"):
        artifact.read(name)
    with pytest.raises(ArtifactDamagedError):
        artifact.verify()


@pytest.mark.parametrize("found", [None, b"", b"\0\1", FILES["a.bin"] + b"\0"])
def test_d26_a_missing_cut_or_longer_file_is_neither_read_nor_reused(found: bytes | None) -> None:
    storage = MemoryStorage()
    artifact = publish(storage, FILES)
    path = f"{KEY}/{artifact.manifest.files['a.bin'].path}"
    storage.delete(path)
    if found is not None:
        storage.write(path, found)
    with pytest.raises(ArtifactDamagedError, match=r"'a\.bin'"):
        artifact.read("a.bin")
    with pytest.raises(ArtifactDamagedError, match=r"'a\.bin'.*Delete that folder"):
        build(storage)


def test_a_file_that_the_manifest_does_not_list_is_not_read() -> None:
    storage = MemoryStorage()
    artifact = publish(storage, FILES)
    storage.write(f"{KEY}/extra", b"x")
    with pytest.raises(ArtifactDamagedError, match="extra"):
        artifact.read("extra")
    assert artifact.verify() == len(FILES)


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "thing"}',
        b'{"kind":"thing","format":1,"fingerprint":"","inputs":[1],"content":{},"files":{}}',
        b'{"kind":"thing","format":1,"fingerprint":"","inputs":{},"content":{},"files":{"a":1}}',
        b'{"kind":"thing","format":1,"fingerprint":"","inputs":{},"content":{},"files":[]}',
        b'{"kind":"thing","format":"x","fingerprint":"","inputs":{},"content":{},"files":{}}',
    ],
)
def test_d26_a_torn_manifest_is_damage_and_names_its_place(torn: bytes) -> None:
    storage = MemoryStorage()
    publish(storage, FILES)
    storage.files[f"{KEY}/{MANIFEST}"] = torn
    with pytest.raises(ArtifactDamagedError, match=f"{KEY}/{MANIFEST}"):
        open_artifact(storage, KEY, THING)


def test_d26_a_manifest_cut_anywhere_is_damage() -> None:
    storage = MemoryStorage()
    publish(storage, FILES, content={"rows": 3})
    whole = storage.files[f"{KEY}/{MANIFEST}"]
    for length in range(len(whole.rstrip())):
        storage.files[f"{KEY}/{MANIFEST}"] = whole[:length]
        with pytest.raises(ArtifactDamagedError):
            open_artifact(storage, KEY, THING)


def test_r30_a_flipped_bit_of_the_manifest_itself_is_found() -> None:
    storage = MemoryStorage()
    artifact = publish(storage, FILES, content={"loss": "mse", "rows": 12, "accepted": True})
    whole = storage.files[f"{KEY}/{MANIFEST}"]
    unnoticed = []
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        storage.files[f"{KEY}/{MANIFEST}"] = bytes(data)
        try:
            found = open_artifact(storage, KEY, THING)
            found.verify()
        except (ArtifactError, StorageError):
            continue
        if found.manifest != artifact.manifest:
            unnoticed.append(place)
    assert len(unnoticed) == 0, f"{len(unnoticed)} of {8 * len(whole)} flips change what is read"


def test_another_kind_or_format_is_refused_with_both_names(storage: FolderStorage) -> None:
    publish(storage, FILES)
    with pytest.raises(ArtifactError, match=r"'other'.*'thing'"):
        open_artifact(storage, KEY, ArtifactKind("other", 1))
    with pytest.raises(ArtifactError, match=r"format 2.*found 1"):
        open_artifact(storage, KEY, ArtifactKind("thing", 2))


def test_nothing_published_is_none_or_says_what_to_do(storage: FolderStorage) -> None:
    assert find_artifact(storage, KEY, THING) is None
    with pytest.raises(ArtifactMissingError, match=r"Check the path"):
        open_artifact(storage, KEY, THING)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "files/../../secret", "a\0b"])
def test_a_manifest_that_points_outside_reads_nothing(storage: FolderStorage, path: str) -> None:
    publish(storage, FILES)
    (storage.root / "secret").write_bytes(b"x")
    manifest = storage.root / KEY / MANIFEST
    document = json.loads(manifest.read_bytes())
    document["files"]["a.bin"] = {"path": path, "size": 1, "sha256": "0" * 64}
    manifest.write_text(json.dumps(document))
    with pytest.raises((ArtifactError, StorageError)):
        open_artifact(storage, KEY, THING).read("a.bin")


def test_the_digest_knows_what_an_artifact_holds_and_not_where() -> None:
    first = publish(MemoryStorage(), FILES)
    second = publish(MemoryStorage(), FILES)
    assert first.manifest.files["a.bin"].path != second.manifest.files["a.bin"].path
    assert first.manifest.digest == second.manifest.digest
    others = [
        publish(MemoryStorage(), {**FILES, "empty": b"x"}),
        publish(MemoryStorage(), {"b.bin" if n == "a.bin" else n: d for n, d in FILES.items()}),
        publish(MemoryStorage(), FILES, content={"rows": 4}),
    ]
    assert len({first.manifest.digest, *(other.manifest.digest for other in others)}) == 4


def test_the_manifest_is_the_same_value_made_or_read(storage: FolderStorage) -> None:
    content = {"rows": 3, "ratio": 0.1, "names": ["\u00fc", "<b>"], "none": None}
    made = publish(storage, FILES, content=content)
    read = open_artifact(storage, KEY, THING)
    assert read.manifest == made.manifest
    assert read.manifest.to_bytes() == made.manifest.to_bytes()
    assert read.manifest.digest == made.manifest.digest
