"""The tables of the comparison of quality: scikit-learn's bundled ones, and larger made ones.

Nothing is downloaded. A made table is the same at each call: its generators have fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn import datasets

from batchtrain.tables.samples import SAMPLES

__all__ = ["CASES", "Case"]

Floats = npt.NDArray[np.float64]

SEED = 20_260
"""Of the made tables; the runs' seeds are others."""


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        name: What the results call it.
        target: The column to predict.
        make: Gives the rows.
        about: What it is, for a reader.
        sample: Its name as a source `sample:NAME`; None where it has to be written to a file.
    """

    name: str
    target: str
    make: Callable[[], pa.Table]
    about: str
    sample: str | None = None


def _iris() -> pa.Table:
    bunch: Any = datasets.load_iris()
    columns = {
        str(name).replace(" ", "_"): bunch.data[:, place]
        for place, name in enumerate(bunch.feature_names)
    }
    return pa.table(columns | {"target": [str(bunch.target_names[code]) for code in bunch.target]})


def _classes(rows: int, classes: int, clusters: int, *, flipped: float) -> pa.Table:
    """`make_classification`, of whose 20 columns four become names; 3 % of two are missing."""
    features, codes = datasets.make_classification(
        n_samples=rows,
        n_features=20,
        n_informative=10,
        n_redundant=4,
        n_classes=classes,
        n_clusters_per_class=clusters,
        flip_y=flipped,
        class_sep=1.0,
        random_state=SEED,
    )
    generator = np.random.default_rng(SEED)
    columns = _numbers(features[:, :16])
    for place, levels in zip(range(16, 20), (3, 5, 8, 12), strict=True):
        columns[f"c{place}"] = _names(features[:, place], levels, generator)
    for name in ("x0", "x5"):
        columns[name] = pa.array(columns[name], mask=generator.random(rows) < 0.03)
    return pa.table(columns | {"target": [f"class {code}" for code in codes]})


def _squares(rows: int) -> pa.Table:
    """`make_hastie_10_2`: whether the sum of ten squares is above its median."""
    features, sign = datasets.make_hastie_10_2(n_samples=rows, random_state=SEED)
    target = np.where(sign > 0, "above", "below")
    return pa.table(_numbers(features) | {"target": target.tolist()})


def _friedman(rows: int) -> pa.Table:
    """`make_friedman1` with noise of 1, and a group of 12 that moves the target."""
    features, target = datasets.make_friedman1(rows, n_features=10, noise=1.0, random_state=SEED)
    return _with_groups(features, target, num_groups=12, strength=2.0)


def _linear(rows: int) -> pa.Table:
    """`make_regression`: a sum of 12 of 24 columns with noise, and a group of 40."""
    features, target = datasets.make_regression(
        rows, n_features=24, n_informative=12, noise=60.0, random_state=SEED
    )
    return _with_groups(features, 1000.0 + target, num_groups=40, strength=100.0)


def _with_groups(features: Floats, target: Floats, *, num_groups: int, strength: float) -> pa.Table:
    """A column of names, each of which adds a number of its own to the target."""
    generator = np.random.default_rng(SEED)
    groups = generator.integers(num_groups, size=len(target))
    moved = target + strength * generator.standard_normal(num_groups)[groups]
    names = {"group": [f"g{code}" for code in groups]}
    return pa.table(_numbers(features) | names | {"target": moved})


def _numbers(features: Floats) -> dict[str, Any]:
    return {f"x{place}": values for place, values in enumerate(features.T)}


def _names(values: Floats, levels: int, generator: np.random.Generator) -> list[str]:
    """Equal parts of a column's values by names that do not tell their order."""
    bounds = np.quantile(values, np.arange(1, levels) / levels)
    words = generator.permutation(levels)[np.searchsorted(bounds, values)]
    return [f"level {word}" for word in words]


def _bundled(name: str, target: str, about: str) -> Case:
    return Case(name, target, SAMPLES[name], about, sample=name)


_ALL = (
    _bundled("drug200", "Drug", "5 classes, 2 numbers, 3 categories"),
    Case("iris", "target", _iris, "3 classes, 4 numbers"),
    _bundled("wine", "target", "3 classes, 13 numbers"),
    _bundled("breast-cancer", "target", "2 classes, 30 numbers"),
    _bundled("digits", "target", "10 classes, 64 whole numbers"),
    _bundled("diabetes", "target", "a quantity from 10 numbers"),
    Case(
        "clusters",
        "target",
        partial(_classes, 6_000, 2, 4, flipped=0.05),
        "`make_classification`: 2 classes of 4 clusters each, 5 % of the labels drawn anew; "
        "16 numbers, 4 categories, some cells missing",
    ),
    Case(
        "many-clusters",
        "target",
        partial(_classes, 12_000, 5, 3, flipped=0.02),
        "`make_classification`: 5 classes of 3 clusters each, 2 % of the labels drawn anew; "
        "16 numbers, 4 categories, some cells missing",
    ),
    Case("squares", "target", partial(_squares, 10_000), "`make_hastie_10_2`: 10 numbers"),
    Case(
        "friedman1",
        "target",
        partial(_friedman, 8_000),
        "`make_friedman1`: a quantity from 10 numbers, of which 5 matter, and one category of 12",
    ),
    Case(
        "linear-sum",
        "target",
        partial(_linear, 5_000),
        "`make_regression`: a quantity from 24 numbers, of which 12 matter, and one category of 40",
    ),
)
CASES: Mapping[str, Case] = {case.name: case for case in _ALL}
