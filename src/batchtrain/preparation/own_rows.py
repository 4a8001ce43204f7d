"""The rows of `data.source: custom:package.module:Class`, where the operator allows its code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from batchtrain.engines.engine import Engine
from batchtrain.errors import Problem, SpecError
from batchtrain.models.custom import check_allowed, code_hash, load_class
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.tables import Source
from batchtrain.tables.hooks import written_rows

__all__ = ["check_own_rows", "own_rows"]

KEY = "data.source"


def check_own_rows(loaded: LoadedSpec, allow_code: Sequence[str]) -> None:
    """Find a class that may not run, or is not there, before any work; no code runs.

    Raises:
        SpecError: If the class is refused or not found.
    """
    target = loaded.spec.data.own_rows
    if target is not None:
        check_allowed(target, allow_code, key=KEY)
        code_hash(target, key=KEY, search=loaded.path.parent)


@contextmanager
def own_rows(
    loaded: LoadedSpec,
    target: str,
    allow_code: Sequence[str],
    *,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Iterator[Source]:
    """Read all rows of a class of the user's once; as long as the block lasts, they are files.

    Args:
        loaded: The spec.
        target: The class, `package.module:Class`.
        allow_code: The packages whose code may run.
        progress: Hears how many rows there are so far.
        engine: What will read the files.

    Raises:
        SpecError: If the class is refused or not found, if it does not take `data.params`, or if
            the files would be read on other machines.
        TrainingError: If its module fails while it is imported.
        DataError: If its rows cannot be used.
    """
    if engine is not None and engine.name == "ray":
        raise SpecError([_one_process(loaded)])
    base, data = loaded.path.parent, loaded.spec.data
    rows = load_class(target, allow_code, key=KEY, search=base)
    # The class may change its arguments; the spec must stay what it is.
    make = partial(rows, **copy.deepcopy(data.params))
    _check_params(loaded, rows, data.params)

    def told(count: int) -> None:
        if progress is not None:
            progress.working("rows read", count, None)

    code = code_hash(target, key=KEY, search=base)
    with written_rows(make, data.source, code, told=told) as source:
        yield source


def _check_params(loaded: LoadedSpec, rows: Callable[..., Any], params: dict[str, Any]) -> None:
    """Tell parameters that the class does not take from errors inside of it."""
    signature = inspect.signature(rows)
    try:
        signature.bind(**params)
    except TypeError as error:
        problem = Problem(
            where=loaded.where("data.params"),
            key="data.params",
            message=f"{rows.__name__}{signature} is called as {rows.__name__}(**params), found "
            f"params {params!r}: {error}",
            hint="The keys of `data.params` are its arguments",
        )
        raise SpecError([problem]) from error


def _one_process(loaded: LoadedSpec) -> Problem:
    return Problem(
        where=loaded.where("engine"),
        key="engine",
        message="expected auto or embedded for a source that is a class of yours, found ray: its "
        "rows are read once, in this process",
        hint="Set `engine: auto`; the training still runs on Ray with several `resources.workers`",
    )
