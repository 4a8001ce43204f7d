"""What a spec's `storage` opens, and what it costs to open it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import ArtifactMissingError, StorageError
from batchtrain.prediction.loaded import load_bundle
from batchtrain.spec.run import RunSpec, storage_address_problem
from batchtrain.storage import (
    FolderStorage,
    ProbedStorage,
    RetryingStorage,
    local_folder,
    locate,
    open_storage,
    retried_calls,
)
from tests.support.builders import MemoryStorage, WatchedStorage, all_files

GOOD = (
    *("s3://bucket", "s3://bucket/", "s3://bucket/runs", "s3://my.bucket-1/a/b_c/d e/"),
    *("gs://bucket/runs", "az://container/runs", "s3://bucket/\u00fc"),
)
BAD = (
    *("s3://", "s3:///runs", "s3://b", "s3://bucket//runs", "s3://bucket/a//b", "s3://-bucket/a"),
    *("s3://bucket/../other", "s3://bucket/a/..", "s3://bucket/./a", "s3://bucket/..%2fother"),
    *("s3://user:SECRET@bucket/a", "s3://SECRET@bucket", "s3://bucket/a?key=SECRET"),
    *("s3://bucket/a#SECRET", "s3://bucket/a;SECRET", "s3://bucket\\SECRET", "s3://bu cket/a"),
    *("ftp://host/SECRET", "http://host/SECRET", "S3://bucket/a", "file:///SECRET", "://SECRET"),
    *("hf:org/SECRET", "s3://bucket/a\nb", "s3://bucket/\x7f", "simplecache::s3://bucket/a"),
    *("s3://bucket:80/a", "s3://[::1]/a", "s3a://bucket/a", "abfs://bucket/a"),
)


def spec_with(storage: str) -> RunSpec:
    document: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "data": {"source": "a.csv", "target": "y"},
        "storage": storage,
    }
    return RunSpec.model_validate_json(json.dumps(document))


@pytest.mark.parametrize("address", GOOD)
def test_an_address_of_an_object_store_is_accepted(address: str) -> None:
    assert storage_address_problem(address) is None
    assert spec_with(address).storage == address


@pytest.mark.parametrize("address", BAD)
def test_j03_another_address_is_refused_without_repeating_it(address: str) -> None:
    problem = storage_address_problem(address)
    assert problem is not None
    assert problem.startswith("expected ")
    assert "SECRET" not in problem
    with pytest.raises(ValueError, match="expected"):
        spec_with(address)
    if "://" in address:
        with pytest.raises(StorageError) as caught:
            open_storage(address, Path())
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["./runs", "runs", "../runs", "/data/runs", "a@b;c#d", "C:/x"])
def test_a_path_is_no_address(text: str) -> None:
    assert spec_with(text).storage == text


def test_a_relative_folder_starts_from_the_base(tmp_path: Path) -> None:
    storage = open_storage("./runs", tmp_path / "sub" / "..")
    assert local_folder(storage) == tmp_path / "runs"
    assert storage.url("a/b") == str(tmp_path / "runs" / "a" / "b")
    assert local_folder(open_storage(str(tmp_path), Path("elsewhere"))) == tmp_path


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder(open_storage("~/runs", Path("elsewhere"))) == tmp_path / "runs"


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match="expected a folder, found the file"):
        open_storage("runs", tmp_path)


def test_opening_and_reading_touch_nothing(tmp_path: Path) -> None:
    storage = open_storage("runs", tmp_path)
    assert storage.list("") == []
    assert storage.size("key") is None
    assert all_files(tmp_path) == []
    assert not (tmp_path / "runs").exists()
    storage.write("key", b"1")
    assert all_files(tmp_path / "runs") == ["key"]


def test_only_a_folder_has_a_local_folder(tmp_path: Path) -> None:
    folder = FolderStorage(tmp_path)
    assert local_folder(folder) == tmp_path
    assert local_folder(WatchedStorage(ProbedStorage(folder))) == tmp_path
    assert local_folder(RetryingStorage(MemoryStorage())) is None


def test_retried_calls_are_found_under_every_wrapping(tmp_path: Path) -> None:
    assert retried_calls(FolderStorage(tmp_path)) == 0
    storage = ProbedStorage(FolderStorage(tmp_path))
    storage.inner.count_retried(3)
    assert retried_calls(storage) == 3
    assert retried_calls(WatchedStorage(storage)) == 3


def test_a_place_is_a_storage_and_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("models/one", Path("models/one"), str(tmp_path / "models" / "one")):
        storage, key = locate(place)
        assert (local_folder(storage), key) == (tmp_path / "models", "one")
    for address in ("s3://bucket/models/one", "s3://bucket/models/one/"):
        storage, key = locate(address)
        assert (storage.url(), key) == ("s3://bucket/models", "one")
    assert locate("s3://bucket/one")[0].url() == "s3://bucket"


@pytest.mark.parametrize("address", ["s3://bucket", "s3://bucket/", "s3://", "s3://SECRET@b/"])
def test_a_place_needs_a_folder(address: str) -> None:
    with pytest.raises(StorageError, match="expected") as caught:
        locate(address)
    assert "SECRET" not in str(caught.value)


def test_a_bundle_that_is_not_there_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for place in (tmp_path / "nothing", str(tmp_path / "no" / "thing"), tmp_path / "file" / "x"):
        with pytest.raises(ArtifactMissingError, match="Check the path"):
            load_bundle(place)


WRITE_A_KEY = """
import sys
from pathlib import Path
from batchtrain.storage import open_storage

open_storage("runs", Path(sys.argv[1])).write("a/key", b"1")
print(*sys.modules)
"""


def test_a_folder_needs_no_library_of_object_stores(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITE_A_KEY, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert (tmp_path / "runs" / "a" / "key").read_bytes() == b"1"
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"obstore", "asyncio", "fsspec", "pydantic", "pyarrow", "torch"})


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StorageError, match=r"pip install 'batchtrain\[object-store\]'"):
        open_storage("s3://bucket/runs", Path())
