"""The cohorts of a search by its scheduler, so that nothing else asks which one it is."""

from __future__ import annotations

from batchtrain.spec.search import Asha, HyperBand, Pbt, SearchSpec, scheduler_of
from batchtrain.tuning.cohorts import AshaCohorts, Cohorts, HyperBandCohorts, NoCohorts
from batchtrain.tuning.population import Generations
from batchtrain.tuning.trials import Goal

__all__ = ["cohorts_of"]


def cohorts_of(search: SearchSpec, *, epochs: int, trials: int, goal: Goal, seed: int) -> Cohorts:
    """What a search asks at every rung.

    Args:
        search: Its section of the spec.
        epochs: The full number of a trial.
        trials: How many there are.
        goal: What trials are compared by: the first, where there are several.
        seed: Of the search.
    """
    scheduler = scheduler_of(search)
    match scheduler:
        case Asha():
            return AshaCohorts(scheduler, epochs=epochs, goal=goal)
        case HyperBand():
            return HyperBandCohorts(scheduler, epochs=epochs, trials=trials, goal=goal)
        case Pbt():
            return Generations(
                scheduler, epochs=epochs, trials=trials, goal=goal, space=search.space, seed=seed
            )
        case _:
            return NoCohorts(epochs)
