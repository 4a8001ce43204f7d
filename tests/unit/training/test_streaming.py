"""Rows that are read as they are needed: the batches of rows in memory, to the last bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.artifacts.prepared import SplitRows, near_equal_bounds
from batchtrain.models.inputs import Batch
from batchtrain.row_order import RowOrder
from batchtrain.spec.run import Determinism
from batchtrain.training.gradients import make_gradients
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.rows import ResidentSplit
from batchtrain.training.streaming import StreamedRows, shard_plan
from batchtrain.training.worker import RankWorker, ResidentWorker, Share
from tests.support.ranks import OneOf

CPU = torch.device("cpu")
WAYS: list[Determinism] = ["order", "canonical"]


def rows_of(num_rows: int) -> SplitRows:
    """Rows that say in each column which row they are."""
    random = np.random.default_rng(num_rows)
    numeric = random.normal(0, 1, (num_rows, 3)).astype(np.float32)
    numeric[:, 0] = np.arange(num_rows)
    return SplitRows(
        numeric=numeric,
        codes=np.arange(num_rows, dtype=np.int64)[:, None],
        target=np.arange(num_rows) / 3,
        row_id=np.arange(num_rows, dtype=np.int64) * 2,
    )


@dataclass
class Shelf:
    """Shards in memory; it remembers who came for them.

    Attributes:
        rows: All rows.
        bounds: Where the shards begin.
        fails_at: The shard that cannot be read.
        asked: The shards of each call.
        given: The shards that were read, in their order.
        read: Counts the shards that were read.
        closed: How many readings have ended.
    """

    rows: SplitRows
    bounds: np.ndarray
    fails_at: int = -1
    asked: list[list[int]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    read: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closed: int = 0

    def __call__(self, split: str, shards: Sequence[int]) -> Iterator[SplitRows]:
        self.asked.append(list(shards))
        try:
            for shard in shards:
                if shard == self.fails_at:
                    raise OSError(f"shard {shard} is gone")
                self.given.append(shard)
                self.read.release()
                yield self.rows[slice(*self.bounds[shard : shard + 2])]
        finally:
            self.closed += 1


def shelf_of(order: RowOrder, **given: Any) -> Shelf:
    bounds = near_equal_bounds(order.num_rows, order.lanes * order.shards_per_lane)
    return Shelf(rows_of(order.num_rows), bounds, **given)


def streaming_worker(
    plan: TrainingPlan,
    shelf: Shelf,
    *,
    rank: OneOf | None = None,
    gather_rows: int = 16,
    determinism: Determinism = "order",
) -> RankWorker:
    ranks = rank or OneOf(0, 1)
    columns = ResidentSplit.of(shelf.rows, CPU).columns
    return RankWorker(
        plan,
        make_gradients(determinism, ranks, CPU, seed=plan.order.seed),
        StreamedRows(shelf, shelf.bounds, columns, CPU),
        {},
        columns,
        device=CPU,
        ranks=ranks,
        gather_rows=gather_rows,
    )


def take_all(worker: RankWorker, served: list[Share]) -> None:
    for share in worker.shares(0, 0):
        served.append(share)  # noqa: PERF402  # what came before an error is kept


def slots_of(worker: RankWorker) -> int:
    """The shards for which there is room in memory."""
    train: Any = worker._train
    return len(train._arena.shards)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    for name in ("numeric_BF", "codes_BC", "target_B", "weight_B"):
        one, other = getattr(found, name), getattr(expected, name)
        if one is None or other is None:
            assert one is other
            continue
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.numpy().tobytes() == other.numpy().tobytes()
        # The last bits of a product depend on where its rows lie.
        assert one.data_ptr() % 64 == other.data_ptr() % 64


def assert_same_shares(found: Sequence[Share], expected: Sequence[Share]) -> None:
    assert [each.global_rows for each in found] == [each.global_rows for each in expected]
    for one, other in zip(found, expected, strict=True):
        for batch, whole in zip(one.batches, other.batches, strict=True):
            assert_same_batch(batch, whole)


# ----------------------------------------------------------------------------------------------
# The batches


@st.composite
def plans(draw: st.DrawFn) -> TrainingPlan:
    """Few rows in any lanes, shards and windows."""
    order = RowOrder(
        num_rows=draw(st.integers(1, 90)),
        lanes=draw(st.integers(1, 6)),
        shards_per_lane=draw(st.integers(1, 6)),
        window_rows=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 5)),
    )
    return TrainingPlan(order, batch_rows=draw(st.integers(1, 100)), epochs=3)


@settings(max_examples=150, deadline=None)
@given(
    plan=plans(),
    size=st.integers(1, 8),
    gather_rows=st.integers(1, 60),
    determinism=st.sampled_from(WAYS),
    starts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=3),
)
def test_p2_streamed_batches_are_the_resident_ones_to_the_last_bit(
    plan: TrainingPlan,
    size: int,
    gather_rows: int,
    determinism: Determinism,
    starts: list[tuple[int, int]],
) -> None:
    for rank in range(size):
        shelf = shelf_of(plan.order)
        place = OneOf(rank, size)
        resident = ResidentWorker(
            plan,
            {"train": shelf.rows},
            CPU,
            ranks=place,
            gather_rows=gather_rows,
            determinism=determinism,
        )
        streaming = streaming_worker(
            plan, shelf, rank=place, gather_rows=gather_rows, determinism=determinism
        )
        for epoch, step in starts:
            first_step = min(step, plan.steps_per_epoch)
            found = list(streaming.shares(epoch, first_step))
            assert_same_shares(found, list(resident.shares(epoch, first_step)))
        for asked in shelf.asked:
            assert len(set(asked)) == len(asked)
        streaming.close()


def test_p1_what_was_begun_in_the_midst_of_an_epoch_and_left_again_does_not_show() -> None:
    plan = TrainingPlan(RowOrder(200, 2, 10, 20, seed=3), batch_rows=8, epochs=2)
    shelf = shelf_of(plan.order)
    streaming = streaming_worker(plan, shelf)
    resident = ResidentWorker(plan, {"train": shelf.rows}, CPU, gather_rows=16)
    for epoch, first_step, taken in [(0, 0, 3), (0, 3, 9), (0, 12, 1), (1, 5, 2), (0, 0, 25)]:
        found = [
            share
            for share, _number in zip(
                streaming.shares(epoch, first_step), range(taken), strict=False
            )
        ]
        expected = list(resident.shares(epoch, first_step))[: len(found)]
        assert len(found) == taken
        assert_same_shares(found, expected)
    streaming.close()


def test_a_rank_asks_for_the_shards_of_its_lanes_alone() -> None:
    order = RowOrder(240, lanes=6, shards_per_lane=4, window_rows=20, seed=1)
    plan = TrainingPlan(order, batch_rows=12, epochs=1)
    for size in (1, 2, 3, 6, 12):
        seen: dict[int, set[int]] = {}
        for rank in range(size):
            shelf = shelf_of(order)
            worker = streaming_worker(plan, shelf, rank=OneOf(rank, size))
            list(worker.shares(0, 0))
            seen[rank] = set(shelf.given)
            lanes = range(rank * 6 // size, max((rank + 1) * 6 // size, rank * 6 // size + 1))
            assert seen[rank] == set(range(lanes.start * 4, lanes.stop * 4))
        assert set.union(*seen.values()) == set(range(24))


# ----------------------------------------------------------------------------------------------
# The plan


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_rows=st.integers(1, 60), num_shards=st.integers(1, 20))
def test_a_plan_says_which_shards_each_block_needs(
    data: st.DataObject, num_rows: int, num_shards: int
) -> None:
    bounds = near_equal_bounds(num_rows, num_shards)
    row = st.integers(0, num_rows - 1)
    blocks = data.draw(
        st.lists(st.lists(st.lists(row, max_size=5), min_size=1, max_size=3), max_size=6)
    )
    plan = shard_plan(
        [[np.array(part, dtype=np.int64) for part in parts] for parts in blocks], bounds
    )

    def shard_of(row: int) -> int:
        return next(j for j in range(num_shards) if bounds[j] <= row < bounds[j + 1])

    needed = [{shard_of(row) for part in parts for row in part} for parts in blocks]
    found = dict(zip(plan.order.tolist(), zip(plan.first, plan.last, strict=True), strict=True))
    assert set(found) == set().union(*needed)
    assert len(found) == len(plan.order)
    assert plan.first.tolist() == sorted(plan.first)
    for shard, (first, last) in found.items():
        blocks_of = [number for number, each in enumerate(needed) if shard in each]
        assert (first, last) == (blocks_of[0], blocks_of[-1])
    at_once = [
        sum(first <= number + 1 and number <= last for first, last in found.values())
        for number in range(len(blocks))
    ]
    assert plan.slots == max(at_once, default=0)


@pytest.mark.parametrize("lanes", [1, 3])
def test_no_more_than_two_windows_of_each_lane_are_needed_at_once(lanes: int) -> None:
    # 30 shards of 20 rows in each lane, 5 in each window.
    order = RowOrder(lanes * 600, lanes, shards_per_lane=30, window_rows=100, seed=2)
    plan = TrainingPlan(order, batch_rows=10, epochs=1)
    shelf = shelf_of(order)
    worker = streaming_worker(plan, shelf, gather_rows=10)
    for epoch in range(3):
        list(worker.shares(epoch, 0))
        assert 5 * lanes < slots_of(worker) <= 10 * lanes


def test_what_is_needed_at_once_as_a_whole_is_read_once_in_all_epochs() -> None:
    order = RowOrder(120, lanes=2, shards_per_lane=3, window_rows=60, seed=2)
    plan = TrainingPlan(order, batch_rows=10, epochs=9)
    shelf = shelf_of(order)
    worker = streaming_worker(plan, shelf)
    for epoch in range(4):
        list(worker.shares(epoch, 0))
    assert sorted(shelf.given) == list(range(6))


def test_each_epoch_reads_anew_what_it_had_to_drop() -> None:
    order = RowOrder(600, lanes=1, shards_per_lane=30, window_rows=60, seed=2)
    plan = TrainingPlan(order, batch_rows=10, epochs=9)
    shelf = shelf_of(order)
    worker = streaming_worker(plan, shelf)
    for epoch in range(3):
        before = len(shelf.given)
        list(worker.shares(epoch, 0))
        read = shelf.given[before:]
        # At most the six shards that lie there from the epoch before are used again.
        assert 24 <= len(set(read)) == len(read) <= 30


# ----------------------------------------------------------------------------------------------
# The thread


def test_shards_are_read_ahead_while_earlier_rows_are_served_and_never_more_than_fit() -> None:
    order = RowOrder(600, lanes=1, shards_per_lane=30, window_rows=60, seed=2)
    shelf = shelf_of(order)
    worker = streaming_worker(TrainingPlan(order, batch_rows=10, epochs=1), shelf, gather_rows=10)
    shares = worker.shares(0, 0)
    next(shares)
    # The first block needs the three shards of its window; those of the next one come meanwhile.
    assert slots_of(worker) == 6
    for _ in range(6):
        assert shelf.read.acquire(timeout=60)
    assert not shelf.read.acquire(blocking=False)
    # The window is served, so there is room for another.
    for _ in range(6):
        next(shares)
    for _ in range(3):
        assert shelf.read.acquire(timeout=60)
    worker.close()
    assert len(shelf.given) == 9
    assert shelf.closed == 1


@pytest.mark.parametrize("shard", [0, 7, 19])
def test_a_shard_that_cannot_be_read_is_an_error_where_its_rows_are_needed(shard: int) -> None:
    order = RowOrder(200, lanes=1, shards_per_lane=20, window_rows=20, seed=2)
    plan = TrainingPlan(order, batch_rows=5, epochs=1)
    shelf = shelf_of(order, fails_at=shard)
    worker = streaming_worker(plan, shelf, gather_rows=5)
    resident = list(ResidentWorker(plan, {"train": shelf.rows}, CPU, gather_rows=5).shares(0, 0))
    first_need = next(
        step
        for step, share in enumerate(resident)
        if ((share.batches[0].numeric_BF[:, 0] // 10) == shard).any()
    )
    served: list[Share] = []
    with pytest.raises(OSError, match=f"shard {shard} is gone"):
        take_all(worker, served)
    assert_same_shares(served, resident[:first_need])
    assert shelf.closed == len(shelf.asked)
    # Once it can be read again, all is well.
    shelf.fails_at = -1
    assert_same_shares(list(worker.shares(0, 0)), resident)


def test_a_worker_that_is_closed_ends_its_thread_and_the_reader() -> None:
    order = RowOrder(600, lanes=1, shards_per_lane=30, window_rows=60, seed=2)
    shelf = shelf_of(order)
    worker = streaming_worker(TrainingPlan(order, batch_rows=10, epochs=1), shelf)
    before = threading.active_count()
    shares = worker.shares(0, 0)
    next(shares)
    assert threading.active_count() == before + 1
    worker.close()
    worker.close()
    assert threading.active_count() == before
    assert shelf.closed == 1


def test_an_epoch_that_is_left_ends_its_thread() -> None:
    order = RowOrder(600, lanes=1, shards_per_lane=30, window_rows=60, seed=2)
    shelf = shelf_of(order)
    worker = streaming_worker(TrainingPlan(order, batch_rows=10, epochs=1), shelf)
    before = threading.active_count()
    for _share in worker.shares(0, 0):
        break
    assert threading.active_count() == before
    assert shelf.closed == 1
