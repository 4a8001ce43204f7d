"""Which of the keys of a search the score depends on, as far as its trials tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchtrain.reporting.search_axes import KeyAxis
from batchtrain.reporting.search_content import SearchContent, TrialRow
from batchtrain.reporting.wording import count
from batchtrain.row_order import permutation

__all__ = ["FEWEST_TRIALS", "Importance", "importance"]

FEWEST_TRIALS = 8
MOST_TRIALS = 600
MOST_KEYS = 30
TREES = 60
REPEATS = 5
FOLDS = 4
NOT_SET = -1.0


@dataclass(frozen=True)
class Importance:
    """What a forest learned of the trials.

    Attributes:
        shares: Key to its share, largest first; they add up to 1, or all are 0.
        trials: How many it was learned from.
        epochs: The epochs after which they are compared; None for those of each one's end.
        explained: The share of the spread of the ranks that it predicts of trials it has not seen
            (R2, over the folds); below 0 it is worse than a constant.
        why_none: Why there is nothing to show; empty where there is.
    """

    shares: dict[str, float]
    trials: int = 0
    epochs: int | None = None
    explained: float = 0.0
    why_none: str = ""


def importance(content: SearchContent, keys: Sequence[KeyAxis]) -> Importance:
    """Permutation importance (Breiman, 2001) of a random forest that predicts the rank of a trial.

    The ranks are predicted, since a few trials that diverged would outweigh all others. It is
    measured on folds that the forest has not seen, so that a key without an effect gets about 0.
    Where trials were stopped at rungs they are compared after the same epochs.
    """
    if content.has_changed_values:
        why = "The values of a population change while it trains; its scores come of all of them."
        return Importance({}, why_none=why)
    epochs, found = _compared(content)
    if len(keys) < 2:
        return Importance({}, why_none="There are fewer than two keys to compare.")
    if len(keys) > MOST_KEYS:
        return Importance({}, why_none=f"There are more than {MOST_KEYS} keys.")
    if len(found) < FEWEST_TRIALS:
        why = f"It takes {FEWEST_TRIALS} trials with a score after the same epochs; there are "
        return Importance({}, why_none=f"{why}{count(len(found))}.")
    if len({cost for _, cost in found}) < FEWEST_TRIALS // 2:
        return Importance({}, why_none="The scores of the trials hardly differ.")
    step = math.ceil(len(found) / MOST_TRIALS)
    shares, explained = _of_forest(
        [each for each, _ in found[::step]], [cost for _, cost in found[::step]], keys
    )
    return Importance(shares, len(found[::step]), epochs, explained)


def _compared(content: SearchContent) -> tuple[int | None, list[tuple[TrialRow, float]]]:
    """The trials with their costs after the same epochs: the last rung that half of them reached.

    Without rungs after the best epoch of each.
    """
    goal = content.goals[0]
    at_end = [(each, content.cost(each)) for each in content.scored]
    reached = Counter(epochs for each in content.trials for epochs in each.rungs)
    common = [epochs for epochs, trials in reached.items() if 2 * trials >= len(at_end)]
    if not common or all(each.state == "finished" for each, _ in at_end):
        return None, at_end
    epochs = max(common)
    at_rung = [
        (each, goal.cost(each.rungs[epochs].get(goal.metric)))
        for each in content.trials
        if epochs in each.rungs
    ]
    return epochs, [(each, cost) for each, cost in at_rung if math.isfinite(cost)]


def _of_forest(
    trials: Sequence[TrialRow], costs: Sequence[float], keys: Sequence[KeyAxis]
) -> tuple[dict[str, float], float]:
    """The share of each key, and the R2 over the folds."""
    # They take a second to import.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    places = [[key.place(each.values) for key in keys] for each in trials]
    encoded_NK = np.array([[NOT_SET if x is None else x for x in row] for row in places])
    ranks_N = np.searchsorted(np.unique(costs), costs) / len(costs)
    drops_K, predicted_N = np.zeros(len(keys)), np.zeros(len(costs))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    for fold, (seen, unseen) in enumerate(folds.split(encoded_NK)):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0, n_jobs=1)
        forest.fit(encoded_NK[seen], ranks_N[seen])
        copies_CNK = _with_each_key_permuted(encoded_NK[unseen], fold)
        # All in one call: one of a few rows takes as long.
        found_CN = forest.predict(copies_CNK.reshape(-1, len(keys))).reshape(-1, len(unseen))
        predicted_N[unseen] = found_CN[0]
        errors_C = ((found_CN - ranks_N[unseen]) ** 2).mean(axis=1)
        drops_K += (errors_C[1:].reshape(-1, REPEATS).mean(axis=1) - errors_C[0]) * len(unseen)
    drops_K = np.maximum(drops_K, 0)
    shares_K = drops_K / drops_K.sum() if drops_K.sum() > 0 else drops_K
    # Rounded, since the last bits depend on the processor, and ties go by the order of the keys.
    shares = {key.key: round(float(share), 3) for key, share in zip(keys, shares_K, strict=True)}
    order = sorted(shares, key=lambda key: -shares[key])
    explained = round(float(r2_score(ranks_N, predicted_N)), 2)
    return {key: shares[key] for key in order}, explained


def _with_each_key_permuted(encoded_NK: NDArray[np.float64], fold: int) -> NDArray[np.float64]:
    """The rows as they are, then with one key after the other permuted `REPEATS` times."""
    num_rows, num_keys = encoded_NK.shape
    copies_CNK = np.repeat(encoded_NK[np.newaxis], 1 + num_keys * REPEATS, axis=0)
    for copy in range(num_keys * REPEATS):
        key = copy // REPEATS
        order = permutation(num_rows, "importance", fold, copy)
        copies_CNK[1 + copy, :, key] = encoded_NK[order, key]
    return copies_CNK
