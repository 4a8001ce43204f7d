"""Which split each row belongs to: a pure function of (rows, labels, rule, seed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchtrain.row_order import counter_generator
from batchtrain.spec.data import SPLITS, Fractions, OrderedSplit, RandomSplit, StratifiedSplit

__all__ = ["assign_splits", "file_splits", "group_splits", "split_sizes", "time_splits"]


def split_sizes(rows: npt.NDArray[np.int64], fractions: Fractions) -> npt.NDArray[np.int64]:
    """How many of each group's rows go to train, valid and test.

    Sizes are the largest remainders of rows times fraction, ties to the earlier split. A split
    with a share gets at least one row of every group that has as many rows as there are splits
    with a share; a smaller group serves train first, then test, then valid.

    Args:
        rows: int64 `[K]`, the rows of each group.
        fractions: The share of each split.

    Returns:
        int64 `[K, 3]`; each line adds up to its group's rows.
    """
    shares = np.array([fractions.of(split) for split in SPLITS])
    ideal = rows[:, None] * shares
    # A hair is added, so that 0.7 * 10 is 7 also where binary fractions make it 6.999.
    sizes: npt.NDArray[np.int64] = np.floor(ideal + 1e-9).astype(np.int64)
    remainder = ideal - sizes
    by_remainder = np.argsort(-remainder, axis=1, kind="stable")
    rank = np.argsort(by_remainder, axis=1, kind="stable")
    sizes += rank < (rows - sizes.sum(axis=1))[:, None]

    wanted = shares > 0
    large = rows >= wanted.sum()
    for split in np.flatnonzero(wanted).tolist():
        poor = large & (sizes[:, split] == 0)
        sizes[poor, np.argmax(sizes[poor], axis=1)] -= 1
        sizes[poor, split] += 1
    small = ~large
    order = [split for split in (0, 2, 1) if wanted[split]]
    for place, split in enumerate(order):
        sizes[small, split] = rows[small] > place
    sizes[np.ix_(small, ~wanted)] = 0
    return sizes


def assign_splits(
    num_rows: int,
    labels: npt.NDArray[Any] | None,
    rule: RandomSplit | StratifiedSplit | OrderedSplit,
    *,
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Name the split of every row, by its place in `SPLITS`.

    The features play no part, so that nothing about them can leak from one split to another.

    Args:
        num_rows: N.
        labels: The class code of each row `[N]`; only a stratified rule reads them.
        rule: The rule of the spec.
        seed: The run's seed, for a rule without one of its own.

    Returns:
        uint8 `[N]`.
    """
    if isinstance(rule, OrderedSplit):
        sizes = split_sizes(np.array([num_rows]), rule.fractions)[0]
        return np.repeat(np.arange(3, dtype=np.uint8), sizes)
    chosen = seed if rule.seed is None else rule.seed
    words = counter_generator(chosen, "split").random_raw(num_rows)
    groups = np.zeros(num_rows, dtype=np.int64)
    if isinstance(rule, StratifiedSplit) and labels is not None:
        groups = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    # Rows of one group stand together, each group in random order.
    order = np.lexsort((words, groups))
    counts = np.bincount(groups, minlength=1)
    sizes = split_sizes(counts, rule.fractions)
    splits = np.empty(num_rows, dtype=np.uint8)
    splits[order] = np.repeat(np.tile(np.arange(3, dtype=np.uint8), len(counts)), sizes.reshape(-1))
    return splits


def time_splits(times: npt.NDArray[Any], fractions: Fractions) -> npt.NDArray[np.uint8]:
    """The split of each row: the earliest rows train, the next validate, the latest test.

    Args:
        times: int64 or float64 `[N]`; rows of one time stay in their order.
        fractions: The share of each split.

    Returns:
        uint8 `[N]`, places in `SPLITS`.
    """
    sizes = split_sizes(np.array([len(times)]), fractions)[0]
    splits = np.empty(len(times), dtype=np.uint8)
    splits[np.argsort(times, kind="stable")] = np.repeat(np.arange(3, dtype=np.uint8), sizes)
    return splits


def group_splits(words: npt.NDArray[np.uint64], fractions: Fractions) -> npt.NDArray[np.uint8]:
    """The split of each row, the same for all rows of a group.

    The groups stand in the order of their words, and each goes to the split in whose share of the
    rows its middle lies. A split with a share gets at least one group, where there are as many
    groups as such splits; fewer serve train first, then test, then valid.

    Args:
        words: uint64 `[N]`, the word of each row's group; groups of one word are one group.
        fractions: The share of each split.

    Returns:
        uint8 `[N]`, places in `SPLITS`.
    """
    _words, group_of_row, rows = np.unique(words, return_inverse=True, return_counts=True)
    middles = np.cumsum(rows) - rows / 2
    edges = len(words) * np.cumsum([fractions.train, fractions.valid])
    # How many groups lie before valid, and before test.
    first, second = np.searchsorted(middles, edges, side="right").tolist()
    has_valid, has_test = fractions.valid > 0, fractions.test > 0
    if len(rows) <= has_valid + has_test:
        first, second = 1, 1 if has_test else 2
    else:
        first = min(max(first, 1), len(rows) - has_valid - has_test)
        second = min(max(second, first + has_valid), len(rows) - has_test)
    places = np.arange(len(rows))
    split_of_group = (places >= first).astype(np.uint8) + (places >= second)
    splits: npt.NDArray[np.uint8] = split_of_group[group_of_row]
    return splits


def file_splits(splits: Sequence[str], rows_of_files: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The split of each row, by the split of its file.

    Args:
        splits: The split of each file.
        rows_of_files: Its rows.

    Returns:
        uint8 `[N]`, places in `SPLITS`.
    """
    places = np.array([SPLITS.index(split) for split in splits], dtype=np.uint8)
    return np.repeat(places, rows_of_files)
