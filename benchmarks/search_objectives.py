"""Functions with a known best that are searched as trainings are: `benchmarks.search_quality`.

Each gives a loss after every epoch. All that is random belongs to the seed, the trial and the
epoch, so that two ways to search that train the same trial see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

from batchtrain.row_order import counter_generator
from batchtrain.spec.search import Distribution

__all__ = [
    "OBJECTIVES",
    "PBT_TOY",
    "Curve",
    "Objective",
    "Seen",
    "State",
    "Toy",
    "branin",
    "shares",
]

State = tuple[float, ...]
"""What training changes, and another trial may take over."""


@dataclass(frozen=True)
class Seen:
    """One epoch of one trial.

    Attributes:
        state: After it.
        loss: What a search sees.
        regret: How far the model is from the best there is, without noise.
    """

    state: State
    loss: float
    regret: float


class Objective(Protocol):
    """A function of the values and the epochs that they are trained for."""

    @property
    def space(self) -> Mapping[str, Distribution]:
        """The values that may be tried."""
        ...

    @property
    def epochs(self) -> int:
        """Of a whole trial."""
        ...

    @property
    def start(self) -> State:
        """The state before the first epoch."""
        ...

    def train(
        self, state: State, values: Mapping[str, Any], epoch: int, *, seed: int, number: int
    ) -> Seen:
        """Train one epoch; the first is 1."""
        ...


def shares(count: int, *key: int | str) -> list[float]:
    """So many numbers from 0 to below 1 for a key."""
    return [word / 2**64 for word in counter_generator(*key).random_raw(count).tolist()]


def branin(x: Sequence[float]) -> float:
    """Branin's function (Dixon and Szego, 1978) of x0 in [-5, 10] and x1 in [0, 15]."""
    one, two = x
    bend = two - 5.1 / (4 * math.pi**2) * one**2 + 5 / math.pi * one - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(one) + 10


HARTMANN_WEIGHTS = (1.0, 1.2, 3.0, 3.2)
HARTMANN_WIDTHS = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
HARTMANN_CENTRES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann(x: Sequence[float]) -> float:
    """Hartmann's function of six numbers in [0, 1] (Dixon and Szego, 1978)."""
    total = 0.0
    for weight, widths, centres in zip(
        HARTMANN_WEIGHTS, HARTMANN_WIDTHS, HARTMANN_CENTRES, strict=True
    ):
        inner = zip(widths, x, centres, strict=True)
        total += weight * math.exp(-sum(a * (each - p) ** 2 for a, each, p in inner))
    return -total


BRANIN_BEST, BRANIN_WORST = 0.39788735772973816, 308.12909601160663
HARTMANN_BEST = -3.32236801141551


def _branin_share(x: Sequence[float]) -> float:
    """0 at the best, 1 at the worst; on a logarithmic scale, since most of it is far above."""
    above = max(0.0, branin(x) - BRANIN_BEST)
    return math.log1p(above) / math.log1p(BRANIN_WORST - BRANIN_BEST)


def _hartmann_share(x: Sequence[float]) -> float:
    return max(0.0, hartmann(x) - HARTMANN_BEST) / -HARTMANN_BEST


@dataclass(frozen=True)
class Curve:
    """A learning curve that falls by a power law to what the values are worth.

    loss(e) = share + c * e^-b, with c in [0.4, 0.8) and b in [0.5, 1) for each trial, so that
    curves cross, and noise in every epoch. The best possible is 0.
    """

    bounds: Sequence[tuple[float, float]]
    share: Callable[[Sequence[float]], float]
    epochs: int = 64
    noise: float = 0.02

    @property
    def space(self) -> dict[str, Distribution]:
        """Uniform in all of them."""
        return {f"x{at}": Distribution(uniform=each) for at, each in enumerate(self.bounds)}

    @property
    def start(self) -> State:
        """Nothing: the curve is a function of the epoch."""
        return ()

    def train(
        self, state: State, values: Mapping[str, Any], epoch: int, *, seed: int, number: int
    ) -> Seen:
        """See `Objective`."""
        height, speed = shares(2, seed, "curve", number)
        share = self.share([values[f"x{at}"] for at in range(len(self.bounds))])
        regret = share + (0.4 + 0.4 * height) * epoch ** -(0.5 + 0.5 * speed)
        (at,) = shares(1, seed, "noise", number, epoch)
        noise = NormalDist(0.0, self.noise).inv_cdf(min(max(at, 1e-12), 1 - 1e-12))
        return Seen((), regret + noise, regret)


@dataclass(frozen=True)
class Toy:
    """The toy of Jaderberg et al. (2017), figure 2.

    What counts is Q = 1.2 - t0^2 - t1^2, at most 1.2; training climbs the gradient of
    1.2 - h0 t0^2 - h1 t1^2 from (0.9, 0.9), so that only h = (1, 1) climbs Q itself.
    """

    epochs: int = 100
    rate: float = 0.01

    @property
    def space(self) -> dict[str, Distribution]:
        """Both between nothing and all of the gradient."""
        return {name: Distribution(uniform=(0.0, 1.0)) for name in ("h0", "h1")}

    @property
    def start(self) -> State:
        """As in the paper."""
        return (0.9, 0.9)

    def train(
        self, state: State, values: Mapping[str, Any], epoch: int, *, seed: int, number: int
    ) -> Seen:
        """See `Objective`: one step; nothing is random."""
        found = tuple(
            each - self.rate * 2 * values[f"h{at}"] * each for at, each in enumerate(state)
        )
        regret = sum(each**2 for each in found)
        return Seen(found, regret, regret)


OBJECTIVES: dict[str, Curve] = {
    "branin": Curve(((-5.0, 10.0), (0.0, 15.0)), _branin_share),
    "hartmann-6": Curve(((0.0, 1.0),) * 6, _hartmann_share),
}
PBT_TOY = Toy()
