"""What each rank serves: every row of every batch once, the same batch whatever the ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.row_order import RankRows, RowOrder, rank_lanes, rank_rows
from tests.support.slow_row_order import slow_parts

ORDERS = st.builds(
    RowOrder,
    num_rows=st.one_of(st.integers(0, 5), st.integers(0, 300)),
    lanes=st.integers(1, 40),
    shards_per_lane=st.integers(1, 6),
    window_rows=st.integers(1, 60),
    seed=st.integers(0, 2**63 - 1),
)
EPOCHS = st.integers(0, 10**6)
BATCH_ROWS = st.integers(1, 350)
WORLD_SIZES = st.integers(1, 50)


def all_ranks(order: RowOrder, epoch: int, batch_rows: int, world_size: int) -> list[RankRows]:
    return [
        rank_rows(order, epoch=epoch, batch_rows=batch_rows, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]


def parts_of(ranks: list[RankRows]) -> list[list[list[int]]]:
    """The rows of every rank of every batch: `[step][rank]`."""
    cut = [np.split(each.rows, each.step_starts[1:-1]) for each in ranks]
    steps = len(ranks[0].step_starts) - 1
    return [[rows[step].tolist() for rows in cut] for step in range(steps)]


def counts_of(ranks: list[RankRows]) -> np.ndarray:
    """How many rows each rank has of each batch: `[rank, step]`."""
    return np.stack([np.diff(each.step_starts) for each in ranks])


@given(order=ORDERS, epoch=EPOCHS, batch_rows=BATCH_ROWS, world_size=WORLD_SIZES)
def test_p2_the_ranks_together_serve_each_row_of_the_global_batch_once(
    order: RowOrder, epoch: int, batch_rows: int, world_size: int
) -> None:
    whole = order.epoch(epoch)
    ranks = all_ranks(order, epoch, batch_rows, world_size)
    steps = order.num_batches(batch_rows)
    for each in ranks:
        assert (each.rows.dtype, each.step_starts.dtype) == (np.int64, np.int64)
        assert each.step_starts.shape == (steps + 1,)
        assert (each.step_starts[0], each.step_starts[-1]) == (0, len(each.rows))
    for step, parts in enumerate(parts_of(ranks)):
        batch = whole[step * batch_rows : (step + 1) * batch_rows]
        assert len(batch) == order.batch_size(batch_rows, step)
        # Sorted lists, so that a row that is served twice would show.
        assert sorted(row for part in parts for row in part) == sorted(batch.tolist())


@given(order=ORDERS, epoch=EPOCHS, batch_rows=BATCH_ROWS, world_size=WORLD_SIZES)
def test_a_rank_serves_its_rows_in_the_order_of_their_positions(
    order: RowOrder, epoch: int, batch_rows: int, world_size: int
) -> None:
    position = np.argsort(order.epoch(epoch))
    for each in all_ranks(order, epoch, batch_rows, world_size):
        assert (np.diff(position[each.rows]) > 0).all()


@given(
    order=ORDERS,
    epoch=st.integers(0, 5),
    batch_rows=st.integers(1, 60),
    world_size=st.integers(1, 12),
)
def test_the_parts_are_those_that_the_definition_deals_out_one_by_one(
    order: RowOrder, epoch: int, batch_rows: int, world_size: int
) -> None:
    found = parts_of(all_ranks(order, epoch, batch_rows, world_size))
    assert found == slow_parts(order, epoch, batch_rows, world_size)


@given(order=ORDERS, epoch=EPOCHS, batch_rows=BATCH_ROWS)
def test_one_rank_serves_the_epoch_as_it_is(order: RowOrder, epoch: int, batch_rows: int) -> None:
    alone = rank_rows(order, epoch=epoch, batch_rows=batch_rows, world_size=1, rank=0)
    assert np.array_equal(alone.rows, order.epoch(epoch))
    ends = np.arange(order.num_batches(batch_rows) + 1) * batch_rows
    assert np.array_equal(alone.step_starts, np.minimum(ends, order.num_rows))


@given(order=ORDERS, epoch=EPOCHS, batch_rows=BATCH_ROWS, world_size=WORLD_SIZES, data=st.data())
def test_a_resume_in_the_epoch_is_the_tail_of_the_whole(
    order: RowOrder, epoch: int, batch_rows: int, world_size: int, data: st.DataObject
) -> None:
    """The position is the step alone: what a fresh process serves from step k on is the rest."""
    step = data.draw(st.integers(0, order.num_batches(batch_rows)))
    rest = order.epoch(epoch)[step * batch_rows :]
    again = all_ranks(order, epoch, batch_rows, world_size)
    tails = [each.rows[each.step_starts[step] :] for each in again]
    assert sorted(np.concatenate(tails).tolist()) == sorted(rest.tolist())
    for first, second in zip(all_ranks(order, epoch, batch_rows, world_size), again, strict=True):
        assert np.array_equal(first.rows, second.rows)
        assert np.array_equal(first.step_starts, second.step_starts)


@pytest.mark.parametrize("lanes", [1, 3, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 11])
def test_d01_every_remainder_of_the_rows_is_served_once_in_equal_steps(
    lanes: int, world_size: int
) -> None:
    by_workers = [4 * world_size + rest for rest in range(world_size)]
    by_lanes = [4 * lanes + rest for rest in range(lanes)]
    for num_rows in {*by_workers, *by_lanes, 1, max(1, lanes - 1), max(1, world_size - 1)}:
        order = RowOrder(num_rows, lanes, 2, 3, seed=5)
        for batch_rows in (1, 4, num_rows, num_rows + 1):
            ranks = all_ranks(order, 1, batch_rows, world_size)
            assert {len(each.step_starts) for each in ranks} == {-(-num_rows // batch_rows) + 1}
            served = np.concatenate([each.rows for each in ranks])
            assert np.array_equal(np.sort(served), np.arange(num_rows))


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("world_size", [6, 64, 100])
def test_d04_ranks_without_a_row_still_take_every_step(
    num_rows: int, lanes: int, world_size: int
) -> None:
    order = RowOrder(num_rows, lanes, 1, 10, seed=0)
    ranks = all_ranks(order, 0, 2, world_size)
    counts = counts_of(ranks)
    assert counts.shape == (world_size, -(-num_rows // 2))
    assert counts.sum() == num_rows
    assert (counts.sum(axis=1) == 0).any()


@given(
    num_rows=st.integers(0, 300),
    batch_rows=BATCH_ROWS,
    world_size=WORLD_SIZES,
    seed=st.integers(0, 99),
)
def test_with_one_lane_the_ranks_counts_of_any_batch_differ_by_at_most_one(
    num_rows: int, batch_rows: int, world_size: int, seed: int
) -> None:
    order = RowOrder(num_rows, 1, 2, 50, seed)
    counts = counts_of(all_ranks(order, 0, batch_rows, world_size))
    assert (counts.max(axis=0, initial=0) - counts.min(axis=0, initial=400) <= 1).all()


@given(
    lanes=st.integers(1, 40),
    rounds_per_batch=st.integers(1, 5),
    num_rows=st.integers(0, 600),
    world_size=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_batches_of_whole_rounds_are_balanced_where_ranks_hold_as_many_lanes(
    lanes: int, rounds_per_batch: int, num_rows: int, world_size: int, seed: int
) -> None:
    batch_rows = lanes * rounds_per_batch
    order = RowOrder(num_rows, lanes, 1, 1000, seed)
    counts = counts_of(all_ranks(order, 0, batch_rows, world_size))
    full = counts[:, : num_rows // batch_rows]
    if lanes % world_size == 0:
        assert (full == batch_rows // world_size).all()
    elif world_size % lanes == 0:
        assert (full.max(axis=0) - full.min(axis=0) <= 1).all()
    elif world_size < lanes:
        held = [len(rank_lanes(lanes, world_size, rank)) for rank in range(world_size)]
        assert (full == np.array(held)[:, None] * rounds_per_batch).all()


@given(order=ORDERS, epoch=EPOCHS, batch_rows=BATCH_ROWS)
def test_a_lane_has_a_row_of_each_whole_round_of_a_batch_and_at_most_two_more(
    order: RowOrder, epoch: int, batch_rows: int
) -> None:
    # With as many ranks as lanes a rank is a lane.
    counts = counts_of(all_ranks(order, epoch, batch_rows, order.lanes))
    starts = np.arange(counts.shape[1]) * batch_rows
    ends = np.minimum(starts + batch_rows, order.num_rows // order.lanes * order.lanes)
    whole_rounds = np.maximum(0, ends // order.lanes - -(-starts // order.lanes))
    assert (counts >= whole_rounds).all()
    assert (counts <= whole_rounds + 2).all()


@given(lanes=st.integers(1, 300), world_size=st.integers(1, 300))
def test_ranks_hold_neighbouring_lanes_and_every_lane_is_held(lanes: int, world_size: int) -> None:
    held = [rank_lanes(lanes, world_size, rank) for rank in range(world_size)]
    sizes = [len(each) for each in held]
    assert min(sizes) >= 1
    if world_size <= lanes:
        assert [lane for each in held for lane in each] == list(range(lanes))
        assert max(sizes) - min(sizes) <= 1
        return
    assert set(sizes) == {1}
    sharers = np.bincount([each.start for each in held], minlength=lanes)
    assert sharers.max() - sharers.min() <= 1
    assert (sharers >= 1).all()
    # The ranks of lane l are [ceil(l*W / V), ceil((l+1)*W / V)).
    firsts = -(-np.arange(lanes) * world_size // lanes)
    assert np.array_equal(np.searchsorted([each.start for each in held], range(lanes)), firsts)


@pytest.mark.parametrize(("world_size", "rank"), [(4, 1), (64, 17), (200, 100), (3, 2)])
def test_a_rank_orders_the_lanes_that_it_holds_and_no_others(
    monkeypatch: pytest.MonkeyPatch, world_size: int, rank: int
) -> None:
    ordered: list[int] = []
    lane_rows = RowOrder.lane_rows

    def watched(order: RowOrder, epoch: int, lane: int) -> np.ndarray:
        ordered.append(lane)
        return lane_rows(order, epoch, lane)

    monkeypatch.setattr(RowOrder, "lane_rows", watched)
    order = RowOrder(1000, 64, 1, 100, seed=0)
    rank_rows(order, epoch=0, batch_rows=32, world_size=world_size, rank=rank)
    assert ordered == list(rank_lanes(64, world_size, rank))


@pytest.mark.parametrize("words", [1, 7, 100])
def test_how_many_rounds_are_drawn_at_a_time_does_not_show(
    monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    order = RowOrder(517, 7, 2, 40, seed=3)
    expected = parts_of(all_ranks(order, 2, 30, 3))
    monkeypatch.setattr("batchtrain.row_order.ROUND_WORDS", words)
    assert parts_of(all_ranks(order, 2, 30, 3)) == expected


@pytest.mark.parametrize(("batch_rows", "rank"), [(0, 0), (4, -1), (4, 2)])
def test_a_rank_that_does_not_exist_is_refused(batch_rows: int, rank: int) -> None:
    order = RowOrder(9, 1, 1, 9, seed=0)
    with pytest.raises(ValueError, match="world_size"):
        rank_rows(order, epoch=0, batch_rows=batch_rows, world_size=2, rank=rank)
