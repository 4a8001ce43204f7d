"""Splits: each row in one of them, near its share, whatever the features are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from batchtrain.preparation.splits import assign_splits, split_sizes
from batchtrain.spec.data import Fractions, OrderedSplit, RandomSplit, SplitSpec, StratifiedSplit


def fractions_of(valid: float, test: float) -> Fractions:
    return Fractions(train=1 - valid - test, valid=valid, test=test)


def random_split(fractions: Fractions, seed: int | None = None) -> RandomSplit:
    return RandomSplit(kind="random", fractions=fractions, seed=seed)


def stratified(fractions: Fractions, seed: int | None = None) -> StratifiedSplit:
    return StratifiedSplit(kind="stratified", fractions=fractions, seed=seed)


def ordered(fractions: Fractions) -> OrderedSplit:
    return OrderedSplit(kind="ordered", fractions=fractions)


SHARES = st.sampled_from(
    [(0.1, 0.2), (0.0, 0.2), (0.2, 0.0), (0.0, 0.0), (0.15, 0.15), (1 / 3, 1 / 3), (0.05, 0.9)]
).map(lambda shares: fractions_of(*shares))
LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=400).map(np.array)
RULES = st.sampled_from([random_split, stratified, ordered])


@given(labels=LABELS, fractions=SHARES, rule=RULES, seed=st.integers(0, 2**63 - 1))
def test_each_row_is_in_one_split_and_sizes_follow_the_shares(
    labels: np.ndarray, fractions: Fractions, rule: type[SplitSpec], seed: int
) -> None:
    splits = assign_splits(len(labels), labels, rule(fractions), seed=seed)
    assert splits.dtype == np.uint8
    assert splits.shape == labels.shape
    assert set(splits.tolist()) <= {0, 1, 2}
    groups = len(np.unique(labels)) if rule is stratified else 1
    for place, share in enumerate((fractions.train, fractions.valid, fractions.test)):
        size = np.count_nonzero(splits == place)
        if share == 0:
            assert size == 0
        # A group is off by less than a row by rounding, and by one more to fill an empty split.
        assert abs(size - share * len(labels)) <= 2 * groups


@given(rows=st.integers(0, 10**9), fractions=SHARES)
def test_the_sizes_add_up_and_are_within_a_row_of_their_share(
    rows: int, fractions: Fractions
) -> None:
    sizes = split_sizes(np.array([rows]), fractions)[0]
    shares = np.array([fractions.train, fractions.valid, fractions.test])
    assert sizes.sum() == rows
    assert sizes.min() >= 0
    assert not sizes[shares == 0].any()
    if rows >= 100:
        assert np.abs(sizes - shares * rows).max() < 1 + 1e-6


@given(valid=st.floats(0, 0.98), test=st.floats(0, 0.98), rows=st.integers(0, 10_000))
def test_any_shares_that_a_spec_allows_give_sizes_that_add_up(
    valid: float, test: float, rows: int
) -> None:
    assume(valid + test < 0.999)
    sizes = split_sizes(np.array([rows, 3, 1]), fractions_of(valid, test))
    assert sizes.sum(axis=1).tolist() == [rows, 3, 1]
    assert sizes.min() >= 0


@given(labels=LABELS, seed=st.integers(0, 1000))
def test_d21_every_class_with_three_rows_is_in_all_three_splits(
    labels: np.ndarray, seed: int
) -> None:
    splits = assign_splits(len(labels), labels, stratified(fractions_of(0.1, 0.2)), seed=seed)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        found = set(splits[labels == label].tolist())
        assert found == {1: {0}, 2: {0, 2}}.get(int(count), {0, 1, 2})


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (10, [7, 1, 2])],
)
def test_a_small_group_serves_train_then_test_then_valid(rows: int, sizes: list[int]) -> None:
    assert split_sizes(np.array([rows]), fractions_of(0.1, 0.2)).tolist() == [sizes]


def test_a_group_smaller_than_its_splits_serves_only_those_with_a_share() -> None:
    assert split_sizes(np.array([1, 2]), fractions_of(0.2, 0.0)).tolist() == [[1, 0, 0], [1, 1, 0]]
    assert split_sizes(np.array([1, 2]), fractions_of(0.0, 0.2)).tolist() == [[1, 0, 0], [1, 0, 1]]
    assert split_sizes(np.array([0, 1]), fractions_of(0.0, 0.0)).tolist() == [[0, 0, 0], [1, 0, 0]]


@given(num_rows=st.integers(1, 300), fractions=SHARES, seed=st.integers(0, 9))
def test_an_ordered_split_keeps_the_order_and_knows_no_seed(
    num_rows: int, fractions: Fractions, seed: int
) -> None:
    splits = assign_splits(num_rows, None, ordered(fractions), seed=seed)
    assert np.array_equal(splits, np.sort(splits))
    assert np.array_equal(splits, assign_splits(num_rows, None, ordered(fractions), seed=seed + 1))


@pytest.mark.parametrize("rule", [random_split, stratified])
def test_another_seed_is_another_split_and_the_rules_own_seed_wins(rule: type[SplitSpec]) -> None:
    labels = np.arange(500) % 3
    fractions = fractions_of(0.1, 0.2)
    one, two = (assign_splits(500, labels, rule(fractions), seed=seed) for seed in (1, 2))
    assert np.count_nonzero(one != two) > 100
    fixed = [assign_splits(500, labels, rule(fractions, seed=1), seed=seed) for seed in (7, 8)]
    assert np.array_equal(fixed[0], fixed[1])
    assert np.array_equal(fixed[0], one)


def test_a_random_split_does_not_look_at_the_labels() -> None:
    rule = random_split(fractions_of(0.1, 0.2))
    with_labels = assign_splits(300, np.arange(300) % 5, rule, seed=4)
    assert np.array_equal(with_labels, assign_splits(300, None, rule, seed=4))


def test_a_stratified_split_depends_on_which_rows_share_a_class_and_not_on_its_code() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 200)
    rule = stratified(fractions_of(0.1, 0.2))
    assert np.array_equal(
        assign_splits(200, labels, rule, seed=1), assign_splits(200, labels * 10 + 5, rule, seed=1)
    )


def test_the_proportions_are_those_of_scikit_learn() -> None:
    labels = np.repeat(np.arange(4), [500, 300, 150, 50])
    np.random.default_rng(1).shuffle(labels)
    splits = assign_splits(1000, labels, stratified(fractions_of(0.0, 0.2)), seed=3)
    oracle = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    train, test = next(oracle.split(labels, labels))
    assert np.array_equal(np.bincount(labels[splits == 0]), np.bincount(labels[train]))
    assert np.array_equal(np.bincount(labels[splits == 2]), np.bincount(labels[test]))


def test_the_split_is_the_golden_one() -> None:
    # Golden: a published split never changes, whatever the versions of libraries.
    labels = np.array([0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2, 0])
    fractions = fractions_of(0.1, 0.2)
    found = {
        "random": assign_splits(12, None, random_split(fractions), seed=42).tolist(),
        "stratified": assign_splits(12, labels, stratified(fractions), seed=42).tolist(),
        "ordered": assign_splits(12, None, ordered(fractions), seed=42).tolist(),
    }
    assert found == GOLDEN


GOLDEN = {
    "random": [0, 0, 0, 2, 0, 2, 0, 0, 1, 0, 2, 0],
    "stratified": [0, 0, 2, 2, 0, 2, 0, 1, 1, 0, 1, 0],
    "ordered": [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2],
}
