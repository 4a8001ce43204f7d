"""Every example gives the same bytes with both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchtrain.engines.session import RaySession
from batchtrain.pipeline import RunResult, run_spec
from batchtrain.spec.load import load_spec
from batchtrain.training.train import OneProcess
from tests.support.runs import SPECS

pytestmark = [pytest.mark.ray, pytest.mark.long]

EXAMPLES = sorted(path.stem for path in SPECS.glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_both_engines_give_the_bytes_of_an_example(
    example: str, tmp_path: Path, ray_session: RaySession
) -> None:
    """The training is one and the same, so that what differs can only come from the engine."""
    found = {engine: run(example, engine, tmp_path / engine) for engine in ("embedded", "ray")}
    assert hashes(found["ray"].prepared) == hashes(found["embedded"].prepared)
    reports = {engine: hashes(result.report) for engine, result in found.items()}
    compared = [name for name in reports["ray"] if name.startswith(("metrics", "predictions"))]
    assert len(compared) > 1
    for name in compared:
        assert reports["ray"][name] == reports["embedded"][name]


def run(example: str, engine: str, storage: Path) -> RunResult:
    values = [f"storage={storage}", f"engine={engine}", "training.epochs=2"]
    loaded = load_spec(SPECS / f"{example}.yaml", [*values, "tracking.tensorboard=false"])
    return run_spec(loaded, last="evaluate", launcher=OneProcess())


def hashes(made: object) -> dict[str, str]:
    files = made.artifact.manifest.files  # type: ignore[attr-defined]
    return {name: file.sha256 for name, file in files.items()}
