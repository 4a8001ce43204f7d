"""The server that forks processes to be killed, and a run that is trained but not evaluated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchtrain.storage.objects import ObjectStorage
from tests.fault.forking import Forks, forks
from tests.support.builders import mixed_table, run, spec_for, storage_of
from tests.support.s3 import serving_s3, use_s3


@pytest.fixture(scope="session")
def killer() -> Iterator[Forks]:
    """Runs scenarios in processes that may be killed."""
    with forks() as server:
        yield server


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with its rows, and in `runs` what it has published: prepared data and a model."""
    folder = tmp_path_factory.mktemp("trained")
    loaded = spec_for(folder, mixed_table(90))
    # The hash of a file that may still be changing is not kept, which costs a call later.
    os.utime(folder / "rows.parquet", (0, 0))
    run(loaded, last="train")
    assert storage_of(loaded).root == folder / "runs"
    return folder


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The address of an object store, which the environment lets a client use."""
    given = os.environ.get("S3_TEST_ENDPOINT")
    if given:
        yield "s3://bucket"
        return
    with serving_s3() as (_state, endpoint), pytest.MonkeyPatch.context() as patch:
        use_s3(patch, endpoint)
        yield "s3://bucket"


@pytest.fixture
def s3_storage(s3_address: str, tmp_path: Path) -> ObjectStorage:
    """An empty object store of this test alone."""
    return ObjectStorage(f"{s3_address}/{tmp_path.name}")
