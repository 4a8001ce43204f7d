"""The order of rows: every row once an epoch, from (rows, lanes, seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.row_order import (
    counter_generator,
    epoch_order,
    lane_bounds,
    num_batches,
    permutation,
)

ROWS = st.integers(0, 300)
LANES = st.integers(1, 70)
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)


@given(num_rows=ROWS, lanes=LANES, seed=SEEDS, epoch=EPOCHS)
def test_an_epoch_has_every_row_exactly_once(
    num_rows: int, lanes: int, seed: int, epoch: int
) -> None:
    order = epoch_order(num_rows, lanes=lanes, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert order.shape == (num_rows,)
    assert np.array_equal(np.sort(order), np.arange(num_rows))


@given(num_rows=ROWS, lanes=LANES, seed=SEEDS, epoch=EPOCHS)
def test_a_round_visits_each_lane_at_most_once_and_only_the_last_one_may_skip(
    num_rows: int, lanes: int, seed: int, epoch: int
) -> None:
    order = epoch_order(num_rows, lanes=lanes, seed=seed, epoch=epoch)
    bounds = lane_bounds(num_rows, lanes)
    lane_of = np.searchsorted(bounds, order, side="right") - 1
    full_rounds = num_rows // lanes
    for each in range(full_rounds):
        visited = lane_of[each * lanes : (each + 1) * lanes]
        assert np.array_equal(np.sort(visited), np.arange(lanes))
    last = lane_of[full_rounds * lanes :]
    longer = np.flatnonzero(np.diff(bounds) > full_rounds)
    assert np.array_equal(np.sort(last), longer)


@given(num_rows=st.integers(0, 10**12), lanes=st.integers(1, 2000))
def test_lanes_are_near_equal_and_cover_all_rows(num_rows: int, lanes: int) -> None:
    bounds = lane_bounds(num_rows, lanes)
    assert bounds.dtype == np.int64
    assert (bounds[0], bounds[-1], len(bounds)) == (0, num_rows, lanes + 1)
    sizes = np.diff(bounds)
    assert sizes.min() >= 0
    assert sizes.max() - sizes.min() <= 1
    assert bounds.tolist() == [lane * num_rows // lanes for lane in range(lanes + 1)]


@given(num_rows=st.integers(1, 10**9), batch_rows=st.integers(1, 10**6))
def test_the_batches_of_an_epoch_hold_all_rows(num_rows: int, batch_rows: int) -> None:
    batches = num_batches(num_rows, batch_rows)
    assert (batches - 1) * batch_rows < num_rows <= batches * batch_rows


def test_a_permutation_has_each_place_once_and_depends_on_all_of_its_key() -> None:
    assert permutation(0, 1).tolist() == []
    assert permutation(1, 1).tolist() == [0]
    seen = {
        tuple(permutation(20, *key))
        for key in [(1, 0, "lane", 0), (2, 0, "lane", 0), (1, 1, "lane", 0), (1, 0, "lane", 1)]
    }
    assert len(seen) == 4
    assert np.array_equal(np.sort(permutation(1000, 5, "x")), np.arange(1000))


def test_equal_words_keep_the_order_of_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.array([3, 1, 3, 2] * 50, dtype=np.uint64)

    class Repeating:
        def random_raw(self, count: int) -> np.ndarray:
            return words[:count]

    monkeypatch.setattr("batchtrain.row_order.counter_generator", lambda *key: Repeating())
    expected = sorted(range(len(words)), key=lambda place: int(words[place]))
    assert permutation(len(words), 1).tolist() == expected


def test_keys_that_only_join_to_the_same_text_do_not_meet_in_one_run() -> None:
    # The uses of a run's seed; two of them with the same words would be one stream.
    keys = [
        (4, "split"),
        (4, "dropout"),
        (4, 2, "rounds"),
        (42, "rounds"),
        (4, 2, "lane", 0),
        (4, 2, "lane", 10),
        (4, 21, "lane", 0),
        (42, 1, "lane", 0),
    ]
    words = {int(counter_generator(*key).random_raw(1)[0]) for key in keys}
    assert len(words) == len(keys)


@pytest.mark.parametrize("lanes", [1, 4])
def test_epochs_and_seeds_are_independent_orders(lanes: int) -> None:
    num_rows = 2000
    orders = [
        epoch_order(num_rows, lanes=lanes, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]
    ]
    places = [np.argsort(order) for order in orders]
    for first in range(len(orders)):
        for second in range(first):
            # Two independent orders share about one fixed point, and are not correlated.
            shared = np.count_nonzero(orders[first] == orders[second])
            assert shared <= 8
            assert abs(np.corrcoef(places[first], places[second])[0, 1]) < 0.1


def test_a_later_epoch_does_not_need_the_earlier_ones() -> None:
    late = epoch_order(50, lanes=3, seed=9, epoch=123_456)
    for epoch in range(5):
        epoch_order(50, lanes=3, seed=9, epoch=epoch)
    assert np.array_equal(epoch_order(50, lanes=3, seed=9, epoch=123_456), late)


def test_every_row_comes_first_about_equally_often() -> None:
    num_rows, epochs = 8, 4000
    firsts = [int(epoch_order(num_rows, lanes=1, seed=3, epoch=e)[0]) for e in range(epochs)]
    counts = np.bincount(firsts, minlength=num_rows)
    # Five standard deviations of a fair die with eight sides.
    assert np.abs(counts - epochs / num_rows).max() < 5 * np.sqrt(epochs / num_rows)


def test_the_raw_words_are_those_of_philox() -> None:
    # Golden: another numpy, another machine or another byte order must give these.
    assert counter_generator(42, 0, "lane", 0).random_raw(3).tolist() == GOLDEN_WORDS


@pytest.mark.parametrize(
    ("lanes", "seed", "epoch"), [(1, 42, 0), (1, 42, 1), (4, 42, 0), (4, 7, 3)]
)
def test_the_order_is_the_golden_one(lanes: int, seed: int, epoch: int) -> None:
    order = epoch_order(13, lanes=lanes, seed=seed, epoch=epoch)
    assert order.tolist() == GOLDEN_ORDERS[lanes, seed, epoch]


GOLDEN_WORDS = [4153617996728897813, 9836615241959613511, 15116065559820059621]
GOLDEN_ORDERS = {
    (1, 42, 0): [6, 8, 9, 12, 0, 1, 7, 5, 10, 11, 2, 3, 4],
    (1, 42, 1): [6, 4, 11, 8, 5, 3, 7, 1, 10, 0, 12, 9, 2],
    (4, 42, 0): [7, 4, 0, 10, 3, 1, 12, 8, 6, 5, 2, 9, 11],
    (4, 7, 3): [10, 3, 8, 2, 12, 5, 0, 7, 4, 6, 1, 9, 11],
}
