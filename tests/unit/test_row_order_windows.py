"""Lanes that are longer than a window: shards, then rows, and never more than a window at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.row_order import WINDOW_ROWS, RowOrder, permutation

SEEDS = st.integers(0, 2**63 - 1)


def shard_of(order: RowOrder, rows: np.ndarray) -> np.ndarray:
    """The shard that each row lies in."""
    shards = order.lanes * order.shards_per_lane
    bounds = np.arange(shards + 1) * order.num_rows // shards
    return np.searchsorted(bounds, rows, side="right") - 1


def windows_of(order: RowOrder, rows: np.ndarray) -> list[set[int]]:
    """The shards of each window, in the order of the windows: what is in memory at once."""
    shards = shard_of(order, rows)
    windows: list[set[int]] = []
    place = 0
    while place < len(rows):
        chosen = {int(shards[place])}
        end = place
        # A window ends where all of its shards have given all of their rows.
        while True:
            held = int(np.isin(shards, list(chosen)).sum())
            found = set(shards[place : place + held].tolist())
            end = place + held
            if found == chosen:
                break
            chosen |= found
        windows.append(chosen)
        place = end
    return windows


@given(
    num_rows=st.integers(1, 400),
    shards_per_lane=st.integers(1, 12),
    window_rows=st.integers(1, 80),
    seed=SEEDS,
)
def test_a_window_is_whole_shards_and_at_most_window_rows_or_one_shard(
    num_rows: int, shards_per_lane: int, window_rows: int, seed: int
) -> None:
    order = RowOrder(num_rows, 1, shards_per_lane, window_rows, seed)
    rows = order.lane_rows(0, 0)
    sizes = np.bincount(shard_of(order, rows), minlength=shards_per_lane)
    if num_rows <= window_rows:
        return
    for window in windows_of(order, rows):
        assert len(window) == 1 or sum(sizes[shard] for shard in window) <= window_rows


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_windows_of_a_lane_hold_near_equal_numbers_of_shards(lanes: int) -> None:
    order = RowOrder(lanes * 1000, lanes, shards_per_lane=10, window_rows=430, seed=1)
    for lane in range(lanes):
        rows = order.lane_rows(0, lane)
        assert rows.min() == lane * 1000
        windows = windows_of(order, rows)
        # Four shards of 100 rows fit, so three windows are needed.
        assert [len(window) for window in windows] == [3, 3, 4]


@given(num_rows=st.integers(0, 200), lanes=st.integers(1, 9), more=st.integers(0, 9), seed=SEEDS)
def test_a_lane_that_fits_into_a_window_does_not_show_its_shards(
    num_rows: int, lanes: int, more: int, seed: int
) -> None:
    fits = -(-num_rows // lanes) + more
    orders = [
        RowOrder(num_rows, lanes, shards_per_lane, max(1, window_rows), seed).epoch(3)
        for shards_per_lane, window_rows in [(1, fits), (7, fits), (2, WINDOW_ROWS)]
    ]
    assert np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], orders[2])


@given(num_rows=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 9))
def test_one_lane_within_a_window_is_one_permutation(num_rows: int, seed: int, epoch: int) -> None:
    order = RowOrder(num_rows, 1, 3, WINDOW_ROWS, seed)
    assert np.array_equal(order.epoch(epoch), permutation(num_rows, seed, epoch, "lane", 0))


def test_each_epoch_groups_other_shards_into_its_windows() -> None:
    order = RowOrder(1000, 1, shards_per_lane=10, window_rows=300, seed=4)
    grouped = {
        tuple(tuple(sorted(window)) for window in windows_of(order, order.lane_rows(epoch, 0)))
        for epoch in range(20)
    }
    assert len(grouped) == 20


def test_rows_of_one_window_are_mixed_over_its_shards() -> None:
    order = RowOrder(4000, 1, shards_per_lane=8, window_rows=2000, seed=4)
    first_window = shard_of(order, order.lane_rows(0, 0)[:2000])
    quarters = first_window.reshape(4, 500)
    for quarter in quarters:
        counts = np.bincount(quarter)
        # 125 rows of each of its four shards, give or take five standard deviations.
        assert np.abs(counts[counts > 0] - 125).max() < 5 * np.sqrt(125)
        assert np.count_nonzero(counts) == 4
