"""Whether every trial of a search can be a run: asked before the first one begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from batchtrain.errors import Problem, SpecError
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.spec.search import DEFAULT_TRIALS, Distribution, SearchSpec, allowed_by, same_value
from batchtrain.spec.search_rules import search_mismatches, searched_metrics
from batchtrain.tuning.proposals import check_proposer
from batchtrain.tuning.space import Space, Values, draw, grid, holds, points_of

__all__ = ["check_space"]

SPACE = "search.space"
MOST_TRIED = 200
"""So many of the trials themselves are made into specs, beside the corners: a third of a
millisecond each."""

MOST_SHOWN = 60


def check_space(loaded: LoadedSpec) -> None:
    """Make the specs of trials at every bound and choice, and of the first trials, and check them.

    Each bound or choice is put into a trial that has all keys of the space: the others at their
    lower bound or first choice, or at what its conditions ask for.

    Args:
        loaded: A spec with a `search` section.

    Raises:
        SpecError: With every problem, at the key of `search.space` that it comes from.
    """
    search = loaded.spec.search
    if search is None:
        hint = "Add `search: {space: {training.optimizer.lr: {log_uniform: [1e-4, 1e-1]}}}`"
        message = "expected a section that says what to try, found none"
        raise SpecError([Problem(loaded.where("search"), "search", message, hint)])
    check_proposer(search, where=loaded.where)
    # Left out, it is what the spec itself follows, not what one trial does.
    metric = search.metric or searched_metrics(search, loaded.spec.training)[0]
    search = search.model_copy(update={"metric": metric})
    impossible = [_never(loaded, key) for key in search.space if not _conditions(search.space, key)]
    found: dict[tuple[str, str], Problem] = {}
    for key, values in _corners(search.space):
        for problem in _problems(loaded, search, values):
            told = _of_corner(problem, key, values, loaded)
            found.setdefault((problem.key, problem.message), told)
    if not found:
        for values in _trials(loaded, search):
            for problem in _problems(loaded, search, values):
                # Of what depends on several values there is another sentence for every trial.
                found.setdefault((problem.key, ""), _of_corner(problem, "", values, loaded))
    if impossible or found:
        raise SpecError([*impossible, *found.values()])


def _corners(space: Space) -> Iterator[tuple[str, Values]]:
    """A key and the values of a trial in which it has one of its bounds or choices."""
    yield "", _completed(space, {})
    for key, distribution in space.items():
        for wanted in _conditions(space, key):
            for value in points_of(distribution, 2):
                yield key, _completed(space, {**wanted, key: value})


def _conditions(space: Space, key: str) -> list[Values]:
    """What other keys must have for a key to be set; empty where that can never be.

    It is one choice for each of them, the first that suits all conditions.
    """
    allowed: dict[str, list[Any]] = {}
    waiting = [key]
    while waiting:
        for other, asked in space[waiting.pop()].when.items():
            values = allowed_by(asked, space[other])
            able = allowed.get(other, list(values))
            allowed[other] = [
                each for each in able if any(same_value(each, value) for value in values)
            ]
            waiting.append(other)
    if not all(allowed.values()):
        return []
    return [{name: values[0] for name, values in allowed.items()}]


def _completed(space: Space, wanted: Mapping[str, Any]) -> Values:
    """A whole trial with some wanted values."""
    values: Values = {}
    for key, distribution in space.items():
        if key in wanted:
            values[key] = wanted[key]
        elif holds(distribution, values, space):
            values[key] = points_of(distribution, 2)[0]
    return values


def _trials(loaded: LoadedSpec, search: SearchSpec) -> Iterator[Values]:
    """Some of the trials that there will be; for TPE such as there may be."""
    if search.algorithm == "grid":
        yield from islice(grid(search.space, search.points), MOST_TRIED)
        return
    for number in range(min(search.trials or DEFAULT_TRIALS, MOST_TRIED)):
        yield draw(search.space, loaded.spec.seed, number)


def _problems(loaded: LoadedSpec, search: SearchSpec, values: Values) -> list[Problem]:
    try:
        trial = with_values(loaded, values).spec
    except SpecError as error:
        return list(error.problems)
    return [
        Problem(loaded.where(SPACE), SPACE, sentence)
        for sentence in search_mismatches(search, trial.training, trial.data)
    ]


def _of_corner(problem: Problem, key: str, values: Values, loaded: LoadedSpec) -> Problem:
    """A problem of a trial, with the values that it comes of where its key does not say it."""
    space = loaded.spec.search.space if loaded.spec.search else {}
    at = problem.key.removeprefix(f"{SPACE}.")
    if at in space and _is_of_reals(space[at]) and "a whole number" in problem.message:
        return replace(problem, hint="Use `int` or `log_int`, or `choice`")
    if at in space and key in {"", at}:
        return problem
    told = {key: values[key]} if key else values
    shown = ", ".join(f"{name}: {_shown(value)}" for name, value in told.items())
    if key and at not in space:
        problem = replace(problem, where=loaded.where(f"{SPACE}.{key}"), key=f"{SPACE}.{key}")
    return replace(problem, message=f"{problem.message}, in a trial with {shown}")


def _is_of_reals(distribution: Distribution) -> bool:
    return distribution.kind in {"uniform", "log_uniform"}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _never(loaded: LoadedSpec, key: str) -> Problem:
    where = loaded.where(f"{SPACE}.{key}.when")
    message = "expected conditions that can hold together, found some that never do"
    hint = "Mind the conditions of the keys that it names, too"
    return Problem(where, f"{SPACE}.{key}.when", message, hint)
