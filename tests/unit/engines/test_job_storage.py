"""What a submitted job may write to, told from the path alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchtrain.engines.job_storage import check_job_output, check_job_storage
from batchtrain.errors import DataError, SpecError
from batchtrain.spec.load import parse_spec

SESSION = "/tmp/ray/session_2026-11-21_09-00-00_123456_77"  # noqa: S108
PACKAGE = f"{SESSION}/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"
SPEC = "version: 1\nname: small\ndata: {source: rows.csv, target: label}\n"

LASTING = ["/mnt/shared/runs", "~/runs", "s3://bucket/runs", "gs://bucket/runs"]
LOST = ["runs", "./runs", "../../runs", f"{PACKAGE}/runs", f"{SESSION}/runs", "/mnt/../" + PACKAGE]


@pytest.mark.parametrize("storage", LASTING)
def test_a_storage_that_outlives_the_job_is_taken(storage: str) -> None:
    loaded = parse_spec(SPEC, f"{PACKAGE}/jobs/specs/small.yaml", [f"storage={storage}"])
    check_job_storage(loaded, inside_job=True)


@pytest.mark.parametrize("storage", LOST)
def test_a_storage_that_is_deleted_with_the_job_is_refused_at_its_place(storage: str) -> None:
    text = f"{SPEC}storage: {storage}\n"
    loaded = parse_spec(text, f"{PACKAGE}/jobs/specs/small.yaml")

    with pytest.raises(SpecError) as caught:
        check_job_storage(loaded, inside_job=True)

    [problem] = caught.value.problems
    assert problem.key == "storage"
    assert problem.where.endswith("small.yaml:4:1")
    assert storage in problem.message
    assert "--set storage=" in problem.hint


def test_the_default_storage_is_refused_too(tmp_path: Path) -> None:
    loaded = parse_spec(SPEC, str(tmp_path / "small.yaml"))
    with pytest.raises(SpecError, match=r"relative path '\./runs'"):
        check_job_storage(loaded, inside_job=True)


def test_an_absolute_link_into_the_working_directory_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "session_2026-11-21_09-00-00_123456_77" / "runs"
    target.mkdir(parents=True)
    (tmp_path / "session_latest").symlink_to(target.parent)
    overrides = [f"storage={tmp_path / 'session_latest' / 'runs'}"]
    with pytest.raises(SpecError, match=r"a folder of Ray's own"):
        check_job_storage(parse_spec(SPEC, "small.yaml", overrides), inside_job=True)


def test_outside_a_job_every_storage_is_taken() -> None:
    check_job_storage(parse_spec(SPEC, "small.yaml"), inside_job=False)
    check_job_storage(parse_spec(SPEC, "small.yaml"))  # no test runs as a job
    check_job_output(Path("predictions.csv"))


def test_a_job_is_known_by_what_ray_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SpecError, match="deletes the working directory"):
        check_job_storage(parse_spec(SPEC, "small.yaml"))
    with pytest.raises(DataError, match=r"relative path 'predictions\.csv'"):
        check_job_output(Path("predictions.csv"))
    check_job_output(Path("/mnt/shared/predictions.csv"))
