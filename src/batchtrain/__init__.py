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

__all__ = ["BatchtrainError", "__version__", "load_bundle", "run", "tune"]


def run(
    spec: str | Path,
    overrides: Sequence[str] = (),
    *,
    allow_code: Sequence[str] = (),
    take_over: bool = False,
    address: str | None = None,
) -> dict[str, Any]:
    """Prepare, train, evaluate and export; what is published already is reused.

    What torch computes with belongs to the process: two trainings in two threads go one after the
    other, and no other thread may draw torch's random numbers meanwhile.

    Args:
        spec: The spec file.
        overrides: Such as `["training.epochs=3"]`.
        allow_code: The packages whose code may run, for a custom model.
        take_over: Whether to go on with a run that another process seems to be writing.
        address: A Ray cluster to join, such as `auto`; left out, the run needs none, or the spec
            says that it does and one is started on this machine.

    Returns:
        What `batchtrain run --json` prints: run, run_dir, prepared, report, bundle, stages,
        metrics by split.

    Raises:
        BatchtrainError: If the spec, the data or the run is wrong.
    """
    from batchtrain.pipeline import run_spec
    from batchtrain.spec.load import load_spec

    loaded = load_spec(spec, overrides)
    return run_spec(loaded, allow_code=allow_code, take_over=take_over, address=address).to_json()


def tune(
    spec: str | Path,
    overrides: Sequence[str] = (),
    *,
    allow_code: Sequence[str] = (),
    address: str | None = None,
) -> dict[str, Any]:
    """Carry out the search of a spec, and run the best spec that it found.

    Args:
        spec: The spec file; it has a `search` section.
        overrides: Such as `["search.trials=8"]`.
        allow_code: The packages whose code may run, for a custom model.
        address: See `run`.

    Returns:
        What `batchtrain tune --json` prints: search, table, page, best_spec, best, trials, states,
        run.

    Raises:
        BatchtrainError: If the spec, the data or the search is wrong, or all trials failed.
    """
    from batchtrain.spec.load import load_spec
    from batchtrain.tuning.stage import tune_spec

    loaded = load_spec(spec, overrides)
    return tune_spec(loaded, allow_code=allow_code, address=address).to_json()


def load_bundle(
    path: str | Path, *, model: str | None = None, allow_code: Sequence[str] = ()
) -> Any:
    """Load a bundle; see `batchtrain.prediction.loaded.LoadedBundle`.

    Args:
        path: The bundle's folder, or its address in an object store.
        model: For a custom model `package.module:Class`; a bundle never names code.
        allow_code: The packages whose code may run.
    """
    from batchtrain.prediction.loaded import load_bundle as load

    return load(path, model=model, allow_code=allow_code)
