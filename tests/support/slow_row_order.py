"""The order of rows written down a second time: one row after another, as the document says it."""

from __future__ import annotations

from batchtrain.row_order import RowOrder, counter_generator


def slow_epoch(order: RowOrder, epoch: int) -> list[int]:
    """The row at every position of an epoch."""
    bits = (order.lanes - 1).bit_length()
    waiting = [_lane(order, epoch, lane) for lane in range(order.lanes)]
    rounds = counter_generator(order.seed, epoch, "rounds")
    rows: list[int] = []
    while any(waiting):
        words = [word >> bits for word in rounds.random_raw(order.lanes).tolist()]
        visited = sorted(range(order.lanes), key=words.__getitem__)
        rows += [waiting[lane].pop(0) for lane in visited if waiting[lane]]
    return rows


def slow_parts(
    order: RowOrder, epoch: int, batch_rows: int, world_size: int
) -> list[list[list[int]]]:
    """The rows of every rank of every batch, `[step][rank]`, dealt out one position at a time."""
    lanes = [_lane_range(order, lane) for lane in range(order.lanes)]
    rows = slow_epoch(order, epoch)
    steps = []
    for start in range(0, len(rows), batch_rows):
        batch = rows[start : start + batch_rows]
        parts: list[list[int]] = [[] for _ in range(world_size)]
        for lane, of_lane in enumerate(lanes):
            mine = [place for place, row in enumerate(batch) if row in of_lane]
            ranks = _ranks_of_lane(lane, order.lanes, world_size)
            for place, position in enumerate(mine):
                # The part [i*m // g, (i+1)*m // g) that this place of m is in.
                which = next(
                    each
                    for each in range(len(ranks))
                    if place < (each + 1) * len(mine) // len(ranks)
                )
                parts[ranks[which]].append(position)
        steps.append([[batch[position] for position in sorted(part)] for part in parts])
    return steps


def _ranks_of_lane(lane: int, lanes: int, world_size: int) -> list[int]:
    if world_size > lanes:
        return [rank for rank in range(world_size) if rank * lanes // world_size == lane]
    return [
        rank
        for rank in range(world_size)
        if rank * lanes // world_size <= lane < (rank + 1) * lanes // world_size
    ]


def _lane_range(order: RowOrder, lane: int) -> range:
    return range(lane * order.num_rows // order.lanes, (lane + 1) * order.num_rows // order.lanes)


def _lane(order: RowOrder, epoch: int, lane: int) -> list[int]:
    key = (order.seed, epoch, "lane", lane)
    rows = list(_lane_range(order, lane))
    if len(rows) <= order.window_rows:
        return _permuted(rows, *key)
    shards = _permuted(_shards_of_lane(order, lane), *key, "shards")
    longest = -(-order.num_rows // (order.lanes * order.shards_per_lane))
    in_window = max(1, order.window_rows // longest)
    windows = -(-len(shards) // in_window)
    ordered = []
    for window in range(windows):
        chosen = shards[window * len(shards) // windows : (window + 1) * len(shards) // windows]
        joined = [row for shard in chosen for row in shard]
        ordered += _permuted(joined, *key, "window", window)
    return ordered


def _shards_of_lane(order: RowOrder, lane: int) -> list[range]:
    total = order.lanes * order.shards_per_lane
    first = lane * order.shards_per_lane
    return [
        range(shard * order.num_rows // total, (shard + 1) * order.num_rows // total)
        for shard in range(first, first + order.shards_per_lane)
    ]


def _permuted(items: list, *key: int | str) -> list:
    words = counter_generator(*key).random_raw(len(items)).tolist()
    return [items[place] for place in sorted(range(len(items)), key=words.__getitem__)]
