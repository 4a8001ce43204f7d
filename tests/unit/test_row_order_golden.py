"""Golden orders: another numpy, another machine or another version of this code must give these.

A change here is a change of every training that anyone resumes. It needs a new format number of
the prepared data, and a line in the change log.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from batchtrain.row_order import WINDOW_ROWS, RowOrder, counter_generator, rank_rows

GOLDEN_WORDS = [4153617996728897813, 9836615241959613511, 15116065559820059621]

WRITTEN_OUT = [
    (RowOrder(0, 3, 1, 1, 0), 0, []),
    (RowOrder(1, 1, 1, 1, 0), 0, [0]),
    (RowOrder(13, 1, 1, 13, 42), 0, [6, 8, 9, 12, 0, 1, 7, 5, 10, 11, 2, 3, 4]),
    (RowOrder(13, 1, 1, 13, 42), 1, [6, 4, 11, 8, 5, 3, 7, 1, 10, 0, 12, 9, 2]),
    (RowOrder(13, 4, 1, 13, 42), 0, [7, 4, 0, 10, 3, 1, 12, 8, 6, 5, 2, 9, 11]),
    (RowOrder(13, 4, 1, 13, 7), 3, [10, 3, 8, 2, 12, 5, 0, 7, 4, 6, 1, 9, 11]),
    (RowOrder(3, 7, 1, 13, 42), 0, [0, 1, 2]),
    (
        RowOrder(20, 1, 4, 10, 42),
        0,
        [14, 12, 11, 19, 15, 16, 13, 18, 17, 10, 6, 0, 1, 8, 3, 2, 4, 5, 7, 9],
    ),
    (
        RowOrder(20, 1, 4, 10, 42),
        1,
        [14, 6, 7, 5, 12, 8, 10, 11, 13, 9, 2, 17, 15, 4, 3, 0, 18, 19, 1, 16],
    ),
    (
        RowOrder(19, 2, 3, 4, 2**63 - 1),
        1_000_000,
        [0, 10, 1, 11, 9, 2, 3, 18, 5, 16, 15, 4, 17, 8, 12, 6, 7, 14, 13],
    ),
]

BY_HASH = [
    (
        RowOrder(10_000, 1, 1, WINDOW_ROWS, 42),
        0,
        "7f2c02a666cac760107ef60c50e33addd799a7a008964f31edf2f4e0fd8863c3",
    ),
    (
        RowOrder(10_000, 1, 1, WINDOW_ROWS, 42),
        1,
        "fd2e53d915849133641a6b0a32ee36b179e15b5d64b7ccb5aa57cb65a711b827",
    ),
    (
        RowOrder(10_000, 1, 1, WINDOW_ROWS, 42),
        1000,
        "7c948ed18db0c55c2993385d99506f7705b62ce6103dd9d96699c0757cf0fdcc",
    ),
    (
        RowOrder(10_000, 7, 1, WINDOW_ROWS, 42),
        0,
        "4578e70691c02df44f39a2e9adceb792fedec1d34ba93354c963a6778bd27aae",
    ),
    (
        RowOrder(10_000, 7, 1, WINDOW_ROWS, 42),
        1,
        "286ee42e44c79f7d8dddf539e8736fd810bce81377e3ebf89d4af77d1bcb1cc4",
    ),
    (
        RowOrder(10_000, 7, 1, WINDOW_ROWS, 42),
        1000,
        "e9157b1b036d724b239ecd18132f92d8fb656f4f997136b227007893bbd971ef",
    ),
    (
        RowOrder(10_000, 64, 1, WINDOW_ROWS, 42),
        0,
        "186ea25a1cd8c8a6f03f636e35ed70101a09fdb2f7042925bb1a01e3dd08683c",
    ),
    (
        RowOrder(10_000, 64, 1, WINDOW_ROWS, 42),
        1,
        "243ce0dfcca7c58ff709f3810dda4fc4fc7850572deb916ee5082ccacb830e09",
    ),
    (
        RowOrder(10_000, 64, 1, WINDOW_ROWS, 42),
        1000,
        "c999a5e2fa135397168e48cd4ce1c2b50eeb67d38e1f97cf5a78ff10ad185744",
    ),
    (
        RowOrder(10_007, 1, 9, 2500, 0),
        0,
        "08525cbe76eb8c34577a16fae0ba9feb57128b222818a042417f07e66f78c267",
    ),
    (
        RowOrder(10_007, 1, 9, 2500, 0),
        1,
        "23cdcd2597203ba72c96bbaf3f0a02240e0a1b8bd70cc9ca2d9668804bf3e842",
    ),
    (
        RowOrder(10_007, 1, 9, 2500, 0),
        1000,
        "5e053621638dcf6a13ba0e4d7c82dfe3cda3d9cca67264de290774c3d7c8d551",
    ),
    (
        RowOrder(10_007, 7, 3, 700, 0),
        0,
        "dc010290a14b168e9528d3e486c8593f93d236794ca3e47498f1cb23fe71425d",
    ),
    (
        RowOrder(10_007, 7, 3, 700, 0),
        1,
        "5d5ce308e5a3fd5c1dff3251ff81507001fde6af2aac537cb31ae410e439665c",
    ),
    (
        RowOrder(10_007, 7, 3, 700, 0),
        1000,
        "65ce3dab5d2a0091b870d13e22daeb77b691e634960248b8d94014f9dd5b15a3",
    ),
    (
        RowOrder(10_007, 64, 5, 100, 2**63 - 1),
        0,
        "cfd827942768ac7f3ae90337fb5edc498d34ab731ce6d30da6f621ef10f24ddd",
    ),
    (
        RowOrder(10_007, 64, 5, 100, 2**63 - 1),
        1,
        "0fbc7c39aba9345b6fe26e403f4a494b5a49ee8c5930e0b6fb2df494d0ddd702",
    ),
    (
        RowOrder(10_007, 64, 5, 100, 2**63 - 1),
        1000,
        "ed29c137536d8eb543673ed4141f2bbbeeaf5d72a038fd50c11319f174df5939",
    ),
    (
        RowOrder(2_500_000, 1, 20, WINDOW_ROWS, 42),
        0,
        "47bb50dd0e17aa9d0a74314a72d63d6d9d683d55807fbca7ff8fce9513d26b0f",
    ),
    (
        RowOrder(2_500_000, 64, 1, WINDOW_ROWS, 42),
        0,
        "30a71a259e0dd5f8bfedbec5b61195af31f4f24200ea52cf04287dc47fe7100b",
    ),
]

RANKS_WRITTEN_OUT = [
    (RowOrder(13, 1, 1, 13, 42), 0, 5, [[[6, 8], [1, 7], [2]], [[9, 12, 0], [5, 10, 11], [3, 4]]]),
    (
        RowOrder(13, 4, 1, 13, 42),
        0,
        6,
        [[[4, 0, 3, 1], [5, 2], []], [[7, 10], [12, 8, 6, 9], [11]]],
    ),
    (
        RowOrder(13, 4, 1, 13, 42),
        0,
        6,
        [[[0, 1], [2], []], [[4, 3], [5], []], [[7, 10], [12, 8, 6, 9], [11]]],
    ),
    (
        RowOrder(13, 2, 1, 13, 42),
        0,
        6,
        [[[0], [2], []], [[1], [3], []], [[5], [4], []], [[10], [7], []], [[12, 9], [6, 11], [8]]],
    ),
    (
        RowOrder(19, 2, 3, 4, 42),
        1,
        8,
        [[[4, 5, 3, 8], [6, 7, 0, 2], [1]], [[16, 15, 17, 18], [14, 12, 13, 10], [9, 11]]],
    ),
]
"""Order, epoch, rows of a batch, and then `[rank][step]`."""

RANKS_BY_HASH = [
    (
        RowOrder(100_003, 1, 1, WINDOW_ROWS, 42),
        2,
        1024,
        (1, 3),
        "9ec3a7e0706f95bebcb0d34b2a036d548945b1d092ea6995dccb41445accb6f7",
        "c19697f4c0c498755be44a9106c09db9ae57bfc6d91599cc01be02c83a2ac486",
    ),
    (
        RowOrder(100_003, 7, 1, WINDOW_ROWS, 42),
        2,
        1024,
        (2, 3),
        "92f3af564f69756d16b3ab3166af81d1f69b73f1080d01bb5899a9f42b10e8e1",
        "ad3aff99add98118da295e3b3d19c91b36813a6fcf0672d7a6a8bd09f7f56f1f",
    ),
    (
        RowOrder(100_003, 64, 4, 500, 42),
        2,
        1024,
        (3, 4),
        "19adedf8b1346f451dc7605ae67e72faa535ce206477d97daa2d169c9e30266b",
        "a6604b3a8ea4fb1320e5b43c9697760d4ea92fcab16bfa7124860c491c098a6a",
    ),
    (
        RowOrder(100_003, 64, 4, 500, 42),
        2,
        1024,
        (57, 100),
        "d650e92f0f8fcdcb3e7db0516c1ee81736472bb53916f9e820720425bc223420",
        "53d55f00906c1e9ac5fd322f026243078140e58a21948d179314ca4f33556fdb",
    ),
]
"""Order, epoch, rows of a batch, rank and world size, and the hashes of rows and step starts."""


def sha256_of(numbers: np.ndarray) -> str:
    """Of the numbers as little-endian int64."""
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def test_the_raw_words_are_those_of_philox() -> None:
    assert counter_generator(42, 0, "lane", 0).random_raw(3).tolist() == GOLDEN_WORDS


@pytest.mark.parametrize(("order", "epoch", "rows"), WRITTEN_OUT)
def test_a_small_order_is_the_golden_one(order: RowOrder, epoch: int, rows: list[int]) -> None:
    assert order.epoch(epoch).tolist() == rows


@pytest.mark.parametrize(("order", "epoch", "sha256"), BY_HASH)
def test_a_larger_order_is_the_golden_one(order: RowOrder, epoch: int, sha256: str) -> None:
    assert sha256_of(order.epoch(epoch)) == sha256


@pytest.mark.parametrize(("order", "epoch", "batch_rows", "parts"), RANKS_WRITTEN_OUT)
def test_what_ranks_serve_is_golden(
    order: RowOrder, epoch: int, batch_rows: int, parts: list[list[list[int]]]
) -> None:
    for rank, expected in enumerate(parts):
        mine = rank_rows(
            order, epoch=epoch, batch_rows=batch_rows, world_size=len(parts), rank=rank
        )
        cut = np.split(mine.rows, mine.step_starts[1:-1])
        assert [rows.tolist() for rows in cut] == expected


@pytest.mark.parametrize(("order", "epoch", "batch_rows", "which", "rows", "starts"), RANKS_BY_HASH)
def test_what_a_rank_of_many_serves_is_golden(
    order: RowOrder, epoch: int, batch_rows: int, which: tuple[int, int], rows: str, starts: str
) -> None:
    rank, world_size = which
    mine = rank_rows(order, epoch=epoch, batch_rows=batch_rows, world_size=world_size, rank=rank)
    assert (sha256_of(mine.rows), sha256_of(mine.step_starts)) == (rows, starts)
