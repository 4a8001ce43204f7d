"""The scale of a target, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import ArtifactError
from batchtrain.models.target_scale import TargetScale

NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(NUMBERS, min_size=1, max_size=20), NUMBERS, st.floats(1e-6, 1e9))
def test_what_is_scaled_comes_back(values: list[float], mean: float, deviation: float) -> None:
    scale = TargetScale(mean, deviation)
    target = np.array(values)
    scaled = scale.scaled(target).astype(np.float32)
    back = scale.restored(scaled)
    assert back.dtype == np.float64
    # What is scaled is rounded to float32, whose smallest normal number is 2 ** -126.
    rounded = 2.0**-24 * np.abs(target - mean) + 2.0**-126 * deviation
    assert (np.abs(back - target) <= 2 * rounded + 2.0**-50 * abs(mean)).all()


def test_the_way_back_is_computed_in_float64() -> None:
    outputs = np.array([[1.0], [-0.5]], dtype=np.float32)
    back = TargetScale(16_777_217.0, 3.0).restored(outputs)
    assert back[:, 0].tolist() == [16_777_220.0, 16_777_215.5]


def test_an_output_that_is_too_large_becomes_infinite_without_a_warning() -> None:
    back = TargetScale(0.0, 1e300).restored(np.array([1e30, np.nan], dtype=np.float32))
    assert np.isinf(back[0])
    assert np.isnan(back[1])


@given(NUMBERS, st.floats(1e-300, 1e300))
def test_json_keeps_all_digits(mean: float, deviation: float) -> None:
    scale = TargetScale(mean, deviation)
    document = json.loads(json.dumps(scale.to_json()))
    assert TargetScale.from_json(document, where="here") == scale
    assert TargetScale.from_json(None, where="here") is None


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"mean": 0.0},
        {"mean": 0.0, "deviation": 0.0},
        {"mean": 0.0, "deviation": -1.0},
        {"mean": float("nan"), "deviation": 1.0},
        {"mean": 0.0, "deviation": float("inf")},
        {"mean": "0", "deviation": 1.0},
        {"mean": 0.0, "deviation": 1.0, "more": 1},
    ],
)
def test_anything_else_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match=r"scale of the target in here"):
        TargetScale.from_json(document, where="here")
