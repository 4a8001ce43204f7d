"""Where a submitted job may write: not into the folders that Ray deletes when the job is over."""

from __future__ import annotations

import re
from pathlib import Path

from batchtrain.engines.session import inside_ray_job
from batchtrain.errors import DataError, Problem, SpecError
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import is_address

__all__ = ["check_job_output", "check_job_storage", "in_ray_folder"]

SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_\d+")
PACKAGE = "_ray_pkg_"


def in_ray_folder(path: Path) -> bool:
    """Whether a path lies among what Ray deletes: a job's working directory, a session's folder.

    Args:
        path: Absolute, with its links resolved.

    Example:
        >>> in_ray_folder(Path("/tmp/ray/session_2026-11-21_09-00-00_123456_77/runs"))
        True
        >>> in_ray_folder(Path("/mnt/shared/runs"))
        False
    """
    parts = path.parts
    return any(SESSION.fullmatch(part) or part.startswith(PACKAGE) for part in parts)


def check_job_storage(loaded: LoadedSpec, *, inside_job: bool | None = None) -> None:
    """Refuse a `storage` of a submitted job whose results would be deleted with the job.

    Whether the nodes of the cluster all see a folder is asked later, by
    `batchtrain.engines.nodes.check_storage_on_nodes`.

    Args:
        loaded: The spec.
        inside_job: Left out, it is found out; outside a job everything is allowed.

    Raises:
        SpecError: At the place of the key.
    """
    if inside_job is None:
        inside_job = inside_ray_job()
    text = loaded.spec.storage
    if not inside_job or is_address(text):
        return
    found = _lost_with_the_job(text, loaded.path.parent)
    if found is None:
        return
    message = (
        "expected a folder that all nodes share, or the address of an object store, since Ray "
        f"deletes the working directory of a job, found {found}"
    )
    hint = "Say where the results go: `--set storage=/mnt/shared/runs` or s3://bucket/runs"
    raise SpecError([Problem(loaded.where("storage"), "storage", message, hint)])


def check_job_output(out: Path, *, inside_job: bool | None = None) -> None:
    """Refuse an output file of a submitted job that would be deleted with the job.

    Args:
        out: The file to write.
        inside_job: Left out, it is found out; outside a job everything is allowed.

    Raises:
        DataError: If it is relative, or lies among Ray's own folders.
    """
    if inside_job is None:
        inside_job = inside_ray_job()
    found = _lost_with_the_job(str(out), Path.cwd()) if inside_job else None
    if found is not None:
        raise DataError(
            "--out: expected a file in a folder that outlives the job, since Ray deletes the "
            f"working directory of a job, found {found}. Name a shared folder, such as "
            "--out /mnt/shared/predictions.parquet"
        )


def _lost_with_the_job(text: str, base: Path) -> str | None:
    """What is wrong with a path, as words; None where it outlives the job."""
    path = Path(text).expanduser()
    if not path.is_absolute():
        return f"the relative path {text!r}"
    if in_ray_folder((base / path).resolve()):
        return f"{text!r}, which lies in a folder of Ray's own"
    return None
