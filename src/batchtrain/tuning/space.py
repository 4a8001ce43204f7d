"""The values that trials may have: drawn, laid out as a grid, or changed a little.

Everything here is a pure function of its arguments: no state, no clock, no global generator.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from batchtrain.row_order import counter_generator
from batchtrain.spec.search import Distribution, allowed_by, same_value

__all__ = ["Space", "Values", "draw", "explore", "grid", "holds", "perturb", "points_of", "rounded"]

Space: TypeAlias = Mapping[str, Distribution]
"""`search.space`: dotted key to its values, in the order in which a trial sets them."""

Values: TypeAlias = dict[str, Any]
"""What one trial has of them; keys whose conditions do not hold are left out."""

DIGITS = 6
"""Significant digits of a number that is drawn: the best spec is read by people, and the last bits
of a logarithm, which differ between machines, are not in it."""

WORDS = 2**64
FACTORS = (0.8, 1.2)
"""Of population-based training (Jaderberg et al., 2017, section 4)."""


def draw(space: Space, seed: int, number: int) -> Values:
    """The values of a trial of a random search.

    Each key has a counter of its own, so that another key in the space leaves its values as they
    are, and so do more trials.

    Args:
        space: Keys and distributions.
        seed: Of the search.
        number: Of the trial, from 0.

    Returns:
        Dotted key to value; whole and other numbers within their bounds, the latter rounded to 6
        significant digits.
    """
    values: Values = {}
    for key, distribution in space.items():
        if holds(distribution, values, space):
            words = counter_generator(seed, "search", key, number)
            values[key] = _sample(distribution, words)
    return values


def holds(distribution: Distribution, values: Mapping[str, Any], space: Space) -> bool:
    """Whether all conditions of a key hold; one on a key that is not set does not."""
    return all(
        other in values
        and any(same_value(values[other], each) for each in allowed_by(asked, space[other]))
        for other, asked in distribution.when.items()
    )


def grid(space: Space, points: int) -> Iterator[Values]:
    """All combinations, in the order of the keys: the last one changes first.

    A key whose conditions do not hold makes no further combinations.

    Args:
        space: Keys and distributions.
        points: Into how many a range is divided; of whole numbers at most as many as there are.
    """
    axes = [(key, each, points_of(each, points)) for key, each in space.items()]

    def below(values: Values, place: int) -> Iterator[Values]:
        while place < len(axes) and not holds(axes[place][1], values, space):
            place += 1
        if place == len(axes):
            yield values
            return
        key, _, choices = axes[place]
        for value in choices:
            yield from below({**values, key: value}, place + 1)

    return below({}, 0)


def points_of(distribution: Distribution, points: int) -> list[Any]:
    """The values of a key in a grid: every choice, or evenly spaced ones from bound to bound.

    Those of a logarithmic range are evenly spaced in their logarithms.
    """
    if distribution.kind == "choice":
        return list(distribution.choice or ())
    low, high = distribution.bounds
    if distribution.is_whole and high - low < points:
        return list(range(int(low), int(high) + 1))
    places = [_placed(distribution, place / (points - 1)) for place in range(points)]
    # The bounds themselves, whatever a logarithm there and back makes of them.
    return list(dict.fromkeys([low, *places[1:-1], high]))


def perturb(value: Any, distribution: Distribution, word: int) -> Any:
    """A value a little changed, as population-based training explores.

    A number becomes 0.8 or 1.2 times as large, within its bounds, and a whole number changes by
    one at least; a choice becomes one of its neighbours, and at an end may stay (Jaderberg et
    al., 2017; choices as in Ray Tune's `explore`).

    Args:
        value: One that the distribution takes.
        distribution: Of the key.
        word: Random bits, of which one is used.
    """
    is_more = word % 2 == 1
    if distribution.kind == "choice":
        choices = distribution.choice or ()
        place = next(place for place, each in enumerate(choices) if same_value(value, each))
        return choices[min(max(place + (1 if is_more else -1), 0), len(choices) - 1)]
    low, high = distribution.bounds
    changed = value * FACTORS[is_more]
    if distribution.is_whole:
        step = max(1, abs(round(changed) - value))
        # Below 0 a larger number is nearer to it: the direction is that of the product.
        return min(max(value + (step if changed > value else -step), low), high)
    return rounded(changed, distribution)


def explore(
    space: Space,
    values: Mapping[str, Any],
    *key: int | str,
    resample: float,
    fixed: Collection[str] = (),
) -> Values:
    """The values of a copy in population-based training.

    Args:
        space: Keys and distributions.
        values: Those of the trial whose state is copied.
        key: What the changes are a function of, such as seed, trial and generation.
        resample: How often a value is drawn anew and not changed a little.
        fixed: Keys that stay, such as those that the copied weights depend on.

    Returns:
        The new values. Where a changed value makes the conditions of another key hold, that key
        is drawn anew; where they hold no more, it is left out. A number that is 0 is drawn anew
        as well, since no factor changes it.
    """
    changed: Values = {}
    for name, distribution in space.items():
        if not holds(distribution, changed, space):
            continue
        words = counter_generator(*key, "explore", name)
        is_new = _share(words) < resample
        if name in values and name in fixed:
            changed[name] = values[name]
        elif is_new or name not in values or same_value(values[name], 0):
            changed[name] = _sample(distribution, words)
        else:
            changed[name] = perturb(values[name], distribution, _word(words) >> 63)
    return changed


def _sample(distribution: Distribution, words: np.random.Philox) -> Any:
    if distribution.kind == "choice":
        choices = distribution.choice or ()
        return choices[_below(len(choices), words)]
    if distribution.kind == "int":
        low, high = (int(bound) for bound in distribution.bounds)
        return low + _below(high - low + 1, words)
    # Widened by a half on both sides, so that the first and the last whole number have their full
    # share (as Optuna's `IntDistribution` is sampled).
    return _placed(distribution, _share(words), wider=0.5 if distribution.is_whole else 0.0)


def _placed(distribution: Distribution, share: float, wider: float = 0.0) -> float | int:
    """The value at a share of the way from the lower bound to the higher one."""
    low, high = distribution.bounds
    if distribution.kind == "int":
        return int(low) + round(share * (int(high) - int(low)))
    if distribution.kind == "uniform":
        return rounded(low + share * (high - low), distribution)
    start, end = math.log(low - wider), math.log(high + wider)
    value = math.exp(start + share * (end - start))
    if distribution.is_whole:
        return min(max(round(value), int(low)), int(high))
    return rounded(value, distribution)


def rounded(value: float, distribution: Distribution) -> float:
    """Within the bounds, to so many digits that a thousandth of a narrow range is still seen."""
    low, high = distribution.bounds
    narrow = -math.log10((high - low) / max(abs(low), abs(high)))
    digits = max(DIGITS, min(17, 3 + math.ceil(narrow)))
    return min(max(float(f"{value:.{digits}g}"), float(low)), float(high))


def _word(words: np.random.Philox) -> int:
    return int(words.random_raw())


def _share(words: np.random.Philox) -> float:
    """A number from 0 up to 1, without it: the upper 53 bits of a word, as every double has."""
    return (_word(words) >> 11) * 2.0**-53


def _below(end: int, words: np.random.Philox) -> int:
    """A whole number from 0 up to `end`, without it, each as likely as the next.

    Words in the last, incomplete run of `end` are passed over, so that the remainder has no bias.
    """
    fair = WORDS - WORDS % end
    while (word := _word(words)) >= fair:
        pass
    return word % end
