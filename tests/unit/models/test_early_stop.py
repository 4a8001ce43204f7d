"""Early stopping follows its rule, and goes on after a resume as if never cut."""

from __future__ import annotations

import json
import math

import pytest

from batchtrain.models.early_stop import EarlyStop


def stops_at(values, **options) -> int | None:
    stop = EarlyStop(**options)
    return next((epoch for epoch, value in enumerate(values) if stop.update(value)), None)


CASES = [
    ([3, 2, 1, 0], {"patience": 1}, None),
    ([3, 2, 2, 2], {"patience": 2}, 3),
    ([3, 4, 2, 4, 4], {"patience": 2}, 4),
    ([3, 3], {"patience": 0}, 1),
    ([3, math.nan, math.nan], {"patience": 2}, 2),
    ([math.nan, math.nan, 1], {"patience": 3}, None),
    ([math.inf, math.inf], {"patience": 2}, 1),
    ([3, 2.75, 2.5, 2.25], {"patience": 3, "min_delta": 0.5}, None),
    ([3, 2.75, 2.75, 2.75], {"patience": 3, "min_delta": 0.5}, 3),
]


@pytest.mark.parametrize(("losses", "options", "epoch"), CASES)
def test_training_stops_after_patience_epochs_without_a_fall(losses, options, epoch):
    assert stops_at(losses, **options) == epoch


@pytest.mark.parametrize(("losses", "options", "epoch"), CASES)
def test_a_score_is_to_grow_as_a_loss_is_to_fall(losses, options, epoch):
    scores = [-loss for loss in losses]
    assert stops_at(scores, mode="max", **options) == epoch


def test_a_score_below_0_is_no_fall():
    assert stops_at([-3, -2, -1, 0, 0.5], patience=1, mode="max") is None
    assert stops_at([0.5, 0.4], patience=1, mode="max") == 1


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("cut", [0, 2, 3])
def test_a_resumed_early_stop_goes_on_counting(cut, mode):
    sign = 1 if mode == "min" else -1
    values = [sign * each for each in (3, 2, 2.5, 2.5, 2.5)]
    stop = EarlyStop(patience=3, mode=mode)
    for value in values[:cut]:
        stop.update(value)
    resumed = EarlyStop(patience=3, mode=mode)
    resumed.load_state(json.loads(json.dumps(stop.state(), allow_nan=False)))
    assert resumed == stop
    assert [resumed.update(value) for value in values[cut:]][-2:] == [False, True]
