"""Run a spec in this process, and show what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from batchtrain.cli.console import ConsoleProgress
from batchtrain.cli.outcome import print_json
from batchtrain.spec.load import LoadedSpec

__all__ = ["run_and_show", "tune_and_show"]


def run_and_show(
    loaded: LoadedSpec,
    *,
    last: Any,
    allow_code: Sequence[str] = (),
    take_over: bool = False,
    address: str | None = None,
    as_json: bool = False,
) -> Any:
    """Run the stages up to `last`, say where the results are, and return them.

    Args:
        loaded: The spec.
        last: The stage to end with.
        allow_code: Packages whose code may run.
        take_over: See `run_spec`.
        address: A Ray cluster to join.
        as_json: Whether one JSON object is the last line of standard output.

    Raises:
        BatchtrainError: See `run_spec`.
    """
    from batchtrain.pipeline import run_spec

    console = Console(stderr=as_json)
    with closing(ConsoleProgress(console, _every_epochs(loaded))) as progress:
        result = run_spec(
            loaded,
            progress=progress,
            last=last,
            allow_code=allow_code,
            take_over=take_over,
            address=address,
        )
    document = result.to_json()
    for name in ("prepared", "report", "bundle"):
        if document[name]:
            console.print(f"{name:<9} {_short(document[name])}", markup=False, soft_wrap=True)
    if as_json:
        print_json(document)
    return result


def tune_and_show(
    loaded: LoadedSpec,
    *,
    allow_code: Sequence[str] = (),
    address: str | None = None,
    as_json: bool = False,
) -> Any:
    """Run the search of a spec, show what it has found, and return it; as `run_and_show`."""
    from batchtrain.cli.search_result import show_search
    from batchtrain.tuning.stage import tune_spec

    console = Console(stderr=as_json)
    with closing(ConsoleProgress(console, _every_epochs(loaded))) as progress:
        result = tune_spec(loaded, progress=progress, allow_code=allow_code, address=address)
    document = result.to_json()
    bundle = (document["run"] or {}).get("bundle")
    places = {"table": document["table"], "page": document["page"]}
    places |= {"spec": document["best_spec"], **({"bundle": bundle} if bundle else {})}
    show_search(
        result.document, console, places={word: _short(url) for word, url in places.items()}
    )
    if as_json:
        print_json(document)
    return result


def _every_epochs(loaded: LoadedSpec) -> int:
    every = loaded.spec.tracking.log_every_epochs
    return max(1, loaded.spec.training.epochs // 10) if every == "auto" else every


def _short(path: str) -> str:
    """A path as a person would type it from here."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody has deleted it; what was made is elsewhere
        return path
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
