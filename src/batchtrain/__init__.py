"""Train PyTorch models from tables: one spec file, from raw rows to a trusted model.

`batchtrain.run("spec.yaml")` does what the command does, `batchtrain.load_bundle(folder)` gives a
model that predicts on raw rows. Importing this imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchtrain.errors import BatchtrainError
from batchtrain.version import __version__

__all__ = ["BatchtrainError", "__version__", "load_bundle", "run"]


def run(
    spec: str | Path, overrides: Sequence[str] = (), *, allow_code: Sequence[str] = ()
) -> dict[str, Any]:
    """Prepare, train, evaluate and export; what is published already is reused.

    Args:
        spec: The spec file.
        overrides: Such as `["training.epochs=3"]`.
        allow_code: The packages whose code may run, for a custom model.

    Returns:
        What `batchtrain run --json` prints: run, run_dir, prepared, report, bundle, stages,
        metrics by split.

    Raises:
        BatchtrainError: If the spec, the data or the run is wrong.
    """
    from batchtrain.pipeline import run_spec
    from batchtrain.spec.load import load_spec

    return run_spec(load_spec(spec, overrides), allow_code=allow_code).to_json()


def load_bundle(
    path: str | Path, *, model: str | None = None, allow_code: Sequence[str] = ()
) -> Any:
    """Load a bundle; see `batchtrain.prediction.loaded.LoadedBundle`.

    Args:
        path: The bundle's folder.
        model: For a custom model `package.module:Class`; a bundle never names code.
        allow_code: The packages whose code may run.
    """
    from batchtrain.prediction.loaded import load_bundle as load

    return load(path, model=model, allow_code=allow_code)
