"""Outputs in the target's own units, and how far apart two of them are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.models.build import build_model
from batchtrain.models.inputs import ModelInputs
from batchtrain.models.target_scale import TargetScale
from batchtrain.preprocessing import FittedColumn, FittedPreprocessor, FittedTarget
from batchtrain.scoring import Scorer, largest_difference
from batchtrain.spec.model import MlpModel

COLUMN = FittedColumn("x", "numeric", "drop")
FITTED = FittedPreprocessor((COLUMN,), FittedTarget("y", "regression"))


def scorer_of(scale: TargetScale | None) -> Scorer:
    model = build_model(MlpModel(kind="mlp", hidden=(5,)), ModelInputs(1, (), 1), seed=3)
    return Scorer(FITTED, model, "mse", scale)


def test_outputs_are_multiplied_back_row_by_row() -> None:
    table = pa.table({"x": [0.5, None, -3.0, 8.0]})
    plain = scorer_of(None).score(table).outputs
    scaled = scorer_of(TargetScale(2.5e6, 4e5)).score(table).outputs
    expected = plain * 4e5 + 2.5e6
    assert plain.dtype == scaled.dtype == np.float64
    assert np.array_equal(scaled, expected, equal_nan=True)
    assert np.isnan(scaled[1]).all()


def test_a_difference_is_measured_by_the_deviation_of_the_target() -> None:
    def table(value: float) -> pa.Table:
        return pa.table({"prediction": pa.array([value], pa.float32())})

    millions = TargetScale(0.0, 1e6)
    assert largest_difference(table(3.0), table(4.0)) == 0.25
    assert largest_difference(table(3.0), table(4.0), scale=millions) == pytest.approx(1e-6)
    tiny = TargetScale(0.0, 1e-9)
    assert largest_difference(table(3e-9), table(1e-9), scale=tiny) == pytest.approx(2)
    assert largest_difference(table(3e-9), table(1e-9)) < 1e-8


def test_a_difference_of_a_small_spread_around_a_large_mean_is_seen() -> None:
    times = TargetScale(1.7e9, 100.0)

    def table(value: float, kind: pa.DataType) -> pa.Table:
        return pa.table({"prediction": pa.array([value], kind)})

    found, other = table(1.7e9 + 7, pa.float64()), table(1.7e9 + 8, pa.float64())
    assert largest_difference(found, other, scale=times) == pytest.approx(0.01)
    # A record of an earlier version is rounded; one of its digits more or less is no difference.
    recorded = table(1.7e9 + 7, pa.float32())
    assert largest_difference(found, recorded, scale=times) == 0
    one_digit = table(1.7e9 + 135, pa.float64())
    assert 0 < largest_difference(one_digit, recorded, scale=times) < 1e-6
