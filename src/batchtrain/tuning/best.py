"""The best trial as an ordinary spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.standalone import spec_text
from batchtrain.storage import Storage
from batchtrain.tuning.population import changes_along
from batchtrain.tuning.search import Search
from batchtrain.tuning.trials import Goal, TrialRecord

__all__ = ["best_text", "best_values"]


def best_values(number: int, state: Search) -> dict[str, Any]:
    """What a trial has in place of the search's spec, by dotted key.

    A member of a population has a past: it took over the state of others, and its values changed.
    Its lineage is a training whose values change at the ends of generations.
    """
    rungs = state.rules.cohorts.rungs_of(number)
    path: list[tuple[int, Mapping[str, Any]]] = []
    for place in range(len(state.descent.get(number, ())) - 1, -1, -1):
        heir = state.descent[number][place]
        path.insert(0, (rungs[place], heir.values))
        number = heir.parent
    values = dict(state.initial[number])
    changes = changes_along([(0, values), *path])
    return {**values, "training.changes": changes} if changes else values


def best_text(
    search: LoadedSpec,
    values: Mapping[str, Any],
    best: TrialRecord,
    goals: Sequence[Goal],
    storage: Storage,
) -> str:
    """The spec of the best trial as a file that can be run from anywhere.

    Args:
        search: The spec of the search.
        values: What the trial has in its place, by dotted key; see `best_values`.
        best: The trial.
        goals: What it is best in.
        storage: Where it was found, and where its run lies.
    """
    scores = ", ".join(f"{goal.metric} {best.scores.get(goal.metric)}" for goal in goals)
    header = [
        f"Trial {best.number} of the search of {search.path.name}: {scores}.",
        "`batchtrain run best.yaml` trains it, or finds that it is trained.",
    ]
    return spec_text(search, values, header=header, storage=storage.url())
