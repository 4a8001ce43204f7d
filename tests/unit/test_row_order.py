"""The order of rows: every row once an epoch, from (rows, lanes, seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.row_order import (
    RowOrder,
    counter_generator,
    epoch_order,
    lane_bounds,
    num_batches,
    permutation,
)
from tests.support.slow_row_order import slow_epoch

ROWS = st.integers(0, 300)
LANES = st.integers(1, 70)
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)
ORDERS = st.builds(
    RowOrder,
    num_rows=ROWS,
    lanes=LANES,
    shards_per_lane=st.integers(1, 9),
    window_rows=st.integers(1, 40),
    seed=SEEDS,
)


@given(order=ORDERS, epoch=EPOCHS)
def test_an_epoch_has_every_row_exactly_once(order: RowOrder, epoch: int) -> None:
    rows = order.epoch(epoch)
    assert rows.dtype == np.int64
    assert rows.shape == (order.num_rows,)
    assert np.array_equal(np.sort(rows), np.arange(order.num_rows))


@given(order=ORDERS, epoch=EPOCHS)
def test_the_order_is_the_one_that_the_definition_gives_row_by_row(
    order: RowOrder, epoch: int
) -> None:
    assert order.epoch(epoch).tolist() == slow_epoch(order, epoch)


@given(order=ORDERS, epoch=EPOCHS)
def test_a_round_visits_each_lane_at_most_once_and_only_the_last_one_may_skip(
    order: RowOrder, epoch: int
) -> None:
    lanes = order.lanes
    bounds = lane_bounds(order.num_rows, lanes)
    lane_of = np.searchsorted(bounds, order.epoch(epoch), side="right") - 1
    full_rounds = order.num_rows // lanes
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
    order = RowOrder(num_rows, lanes=3, shards_per_lane=1, window_rows=1, seed=0)
    assert order.num_batches(batch_rows) == batches
    assert order.batch_size(batch_rows, 0) == min(batch_rows, num_rows)
    last = order.batch_size(batch_rows, batches - 1)
    assert 0 < last <= batch_rows
    assert (batches - 1) * batch_rows + last == num_rows
    assert order.batch_size(batch_rows, batches) == 0


@pytest.mark.parametrize(
    "wrong", [{"num_rows": -1}, {"lanes": 0}, {"shards_per_lane": 0}, {"window_rows": 0}]
)
def test_numbers_that_describe_no_rows_are_refused_by_name(wrong: dict[str, int]) -> None:
    numbers = {"num_rows": 5, "lanes": 1, "shards_per_lane": 1, "window_rows": 5, "seed": 0}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RowOrder(**{**numbers, **wrong})


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
        (4, 2, "lane", 0, "shards"),
        (4, 2, "lane", 0, "window", 0),
        (4, 2, "lane", 0, "window", 1),
        (4, 2, "lane", 1, "window", 0),
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
