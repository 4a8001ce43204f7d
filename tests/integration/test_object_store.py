"""A run on an object store: the same stages, bytes and promises as in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchtrain.errors import InterruptedRunError, StorageError
from batchtrain.pipeline import RunResult
from batchtrain.prediction.loaded import load_bundle
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import Storage, open_storage
from batchtrain.testing.killing import Chaos, run_chaos
from tests.support.builders import mixed_table, run, spec_for, stop_training
from tests.support.s3 import FakeS3, serving_s3, use_s3

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server() -> Iterator[FakeS3]:
    """An object store with one bucket, which the environment points to."""
    with serving_s3() as (state, endpoint), pytest.MonkeyPatch.context() as patch:
        use_s3(patch, endpoint)
        yield state


def spec_on(server: FakeS3, folder: Path, name: str, **sections: object) -> LoadedSpec:
    folder.mkdir(exist_ok=True)
    return spec_for(folder, mixed_table(90), storage=f"s3://bucket/{name}", **sections)


def digests(result: RunResult) -> dict[str, str]:
    predictions = result.report.artifact.manifest.files["predictions/test.parquet"]
    return {
        "prepared": result.prepared.artifact.manifest.digest,
        "state": result.trained.content["state_sha256"],
        "predictions": predictions.sha256,
    }


def storage_for(loaded: LoadedSpec) -> Storage:
    return open_storage(loaded.spec.storage, loaded.path.parent)


def test_a_run_on_an_object_store_is_the_run_in_a_folder(server: FakeS3, tmp_path: Path) -> None:
    tracking = {"tensorboard": True}
    remote = spec_on(server, tmp_path / "remote", "whole", tracking=tracking)
    first = run(remote)
    assert [stage.status for stage in first.stages] == ["built"] * 4
    assert [stage.status for stage in run(remote).stages] == ["reused"] * 4
    (tmp_path / "local").mkdir()
    local = run(spec_for(tmp_path / "local", mixed_table(90), tracking=tracking))
    assert digests(first) == digests(local)

    storage = storage_for(remote)
    assert first.run_dir.startswith("s3://bucket/whole/small/")
    assert any("tensorboard/events" in key for key in storage.list(first.run))
    assert not any(key.startswith("_probe/") for key in storage.list(""))
    frame = mixed_table(5).to_pandas()
    here, there = (load_bundle(result.bundle.artifact.url) for result in (local, first))
    assert here.predict(frame).equals(there.predict(frame))


def test_r20_an_interrupted_run_on_an_object_store_goes_on(server: FakeS3, tmp_path: Path) -> None:
    loaded = spec_on(server, tmp_path, "stopped")
    whole = run(spec_on(server, tmp_path / "whole", "undisturbed"))
    error = stop_training(loaded, 5)
    assert isinstance(error, InterruptedRunError)
    assert "s3://bucket/stopped/small/" in str(error)
    resumed = run(loaded)
    assert resumed.stages[1].status == "resumed"
    assert digests(resumed) == digests(whole)
    left = storage_for(loaded).list(resumed.run)
    assert not [key for key in left if "/checkpoints/" in key or "/owner/" in key]


def test_r01_killed_runs_on_an_object_store_end_with_the_same_bytes(
    server: FakeS3, tmp_path: Path
) -> None:
    loaded = spec_on(server, tmp_path, "unused")
    report = run_chaos(
        Chaos(loaded.path, storage="s3://bucket/chaos"), seed=3, points=8, ranks=(1, 3)
    )
    assert report.different == []
    assert report.kills >= 8


def test_j12_a_bucket_that_is_not_there_is_found_before_any_work(
    server: FakeS3, tmp_path: Path
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), storage="s3://no-such-bucket/runs")
    with pytest.raises(StorageError, match="no-such-bucket"):
        run(loaded)
