"""A search is a function of its outcomes: in whatever order they come, by however many hands."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.spec.search import Asha, HyperBand, Pbt
from batchtrain.tuning import search as search_module
from batchtrain.tuning.rungs import brackets
from batchtrain.tuning.search import Search
from batchtrain.tuning.work import Member, MemberOutcome, Outcome, Unit
from tests.support.searches import (
    EPOCH_ROWS,
    EPOCHS,
    GOAL,
    LR,
    Fate,
    SpecRules,
    outcome_of,
    rules_for,
    searched,
)


@contextmanager
def stripes_of(size: int) -> Iterator[None]:
    """Deal so many trials at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "STRIPE", size)
        patch.setattr(search_module, "BUDGET_STRIPE", size)
        yield


fates = st.builds(
    Fate,
    fails_in=st.none() | st.integers(1, EPOCHS),
    ends_in=st.none() | st.integers(1, EPOCHS),
    shape=st.sampled_from(["packed", "packed", "large", "alone"]),
)
halving = st.one_of(
    st.just("none"),
    st.builds(Asha, kind=st.just("asha"), first_epochs=st.integers(1, 4), factor=st.integers(2, 4)),
    st.builds(
        HyperBand,
        kind=st.just("hyperband"),
        first_epochs=st.integers(1, 4),
        factor=st.integers(2, 4),
    ),
)
orders = st.lists(st.integers(0, 50), max_size=60)


@settings(max_examples=100)
@given(
    st.lists(fates, min_size=1, max_size=14),
    halving,
    orders,
    st.integers(2, 5),
    st.sampled_from([None, None, 4]),
    st.sampled_from([None, None, 300, 1000]),
    st.sampled_from([3, 7, 256]),
    st.booleans(),
    st.sampled_from([None, 1, 3]),
)
def test_whoever_comes_first_the_table_and_the_work_are_the_same(
    trials: list[Fate],
    scheduler: Any,
    picks: list[int],
    hands: int,
    wave: int | None,
    max_rows: int | None,
    stripe: int,
    chunks: bool,
    distinct: int | None,
) -> None:
    def rules() -> SpecRules:
        may_chunk = chunks and scheduler == "none"
        return rules_for(
            trials,
            scheduler,
            wave=wave,
            max_rows=max_rows,
            chunks=may_chunk,
            distinct=distinct,
        )

    with stripes_of(stripe):
        one_by_one = searched(rules(), trials)
        side_by_side = searched(rules(), trials, picks=picks, hands=hands)
    assert side_by_side.table == one_by_one.table
    assert side_by_side.keys == one_by_one.keys
    records = one_by_one.search.trials()
    assert [each.number for each in records] == list(range(len(records)))
    if max_rows is None:
        assert len(records) == len(trials)
    else:
        assert sum(each.rows for each in records) <= max_rows
    for unit in one_by_one.units:
        shapes = {one_by_one.search.shapes[number].key for number in unit.numbers}
        assert len(shapes) == 1
        assert len(unit.members) <= one_by_one.search.shapes[unit.numbers[0]].size


@settings(max_examples=40)
@given(
    st.lists(fates.map(lambda each: replace(each, shape="packed")), min_size=2, max_size=10),
    st.builds(Pbt, kind=st.just("pbt"), interval_epochs=st.integers(1, 5)),
    orders,
    st.integers(2, 5),
    st.sampled_from(["packed", "large"]),
)
def test_a_population_is_the_same_by_however_many_hands(
    members: list[Fate], scheduler: Pbt, picks: list[int], hands: int, shape: str
) -> None:
    trials = [replace(each, shape=shape) for each in members]
    one_by_one = searched(rules_for(trials, scheduler), trials)
    side_by_side = searched(rules_for(trials, scheduler), trials, picks=picks, hands=hands)
    assert side_by_side.table == one_by_one.table
    assert side_by_side.keys == one_by_one.keys
    # Whoever goes on from a state finds it where the one that it is of was trained last.
    numbers_in = {unit.key: set(unit.numbers) for unit in one_by_one.units}
    until = {unit.key: unit.last_epoch for unit in one_by_one.units}
    for unit in one_by_one.units:
        for each in unit.members:
            assert bool(each.source) == bool(unit.first_epoch)
            if each.source:
                assert each.parent in numbers_in[each.source]
                assert until[each.source] == unit.first_epoch


@settings(max_examples=60)
@given(
    st.lists(fates, min_size=2, max_size=10),
    halving | st.just("pbt"),
    st.integers(0, 4),
    orders,
)
def test_a_search_whose_time_is_up_begins_nothing_and_ends_what_began(
    trials: list[Fate], scheduler: Any, begun: int, picks: list[int]
) -> None:
    if scheduler == "pbt":
        trials = [replace(each, shape="packed") for each in trials]
    found = searched(rules_for(trials, scheduler), trials, skipped_from=begun, picks=picks, hands=2)
    trained = set(itertools.chain.from_iterable(unit.numbers for unit in found.units))
    for each in found.search.trials():
        assert (each.state == "skipped") == (each.number not in trained)
        if each.state == "skipped":
            assert each.rows == 0


def alone(*names: str) -> list[Fate]:
    return [Fate(shape=name) for name in names]


@pytest.mark.parametrize("scheduler", ["none", "asha", "hyperband"])
def test_more_trials_keep_what_was_done(scheduler: str) -> None:
    fates_of_all = alone(*["alone"] * 24)
    first = searched(rules_for(fates_of_all, scheduler, trials=12), fates_of_all)
    more = searched(rules_for(fates_of_all, scheduler, trials=24), fates_of_all)
    assert first.search.initial.items() <= more.search.initial.items()
    if scheduler != "hyperband":
        assert first.keys < more.keys
        records = {each.number: each for each in more.search.trials()}
        assert all(records[each.number] == each for each in first.search.trials())
    else:
        # The last bracket was not full, the ones before it stay as they are.
        full = brackets(EPOCHS, 3)[0].trials
        assert first.search.trials()[:full] == more.search.trials()[:full]


def test_packs_of_a_full_stripe_stay_as_they_are_where_there_are_more_trials() -> None:
    fates_of_all = alone(*["packed"] * 24)
    with stripes_of(6):
        first = searched(rules_for(fates_of_all, trials=12), fates_of_all)
        more = searched(rules_for(fates_of_all, trials=24), fates_of_all)
    assert first.keys < more.keys


def test_packs_are_dealt_anew_after_a_rung() -> None:
    # Nine begin in packs of three; one in three goes on, and those fill a pack again.
    fates_of_all = alone(*["packed"] * 16)
    scheduler = HyperBand(kind="hyperband", factor=3)
    found = searched(rules_for(fates_of_all, scheduler), fates_of_all)
    assert [len(each.members) for each in found.units if each.last_epoch == 1] == [3, 3, 3]
    second = [each for each in found.units if (each.first_epoch, each.last_epoch) == (1, 3)]
    assert [len(each.members) for each in second] == [3]
    sources = {member.source for member in second[0].members}
    assert len(sources) > 1
    assert sources <= {each.key for each in found.units if each.last_epoch == 1}
    survivors = second[0].numbers
    costs = {each.number: each.rungs[1]["valid_loss"] for each in found.search.trials()[:9]}
    able = sorted((GOAL.cost(cost), number) for number, cost in costs.items())
    assert set(survivors) == {number for _, number in able[:3]}


def test_shapes_are_packed_apart_and_the_record_says_in_which_pack() -> None:
    trials = alone(*["packed", "alone", "large"] * 2)
    found = searched(rules_for(trials), trials)
    assert sorted(each.numbers for each in found.units) == [(0, 3), (1,), (2,), (4,), (5,)]
    packs = [each.pack for each in found.search.trials()]
    assert packs == ["000000", "", "000002", "000000", "", "000005"]


def test_trials_that_are_compared_with_nobody_share_a_unit_in_twos() -> None:
    trials = alone(*["alone"] * 5)
    found = searched(rules_for(trials, chunks=True), trials)
    assert [each.numbers for each in found.units] == [(0, 1), (2, 3), (4,)]
    assert not any(each.is_pack for each in found.units)


def test_a_trial_alone_waits_for_one_with_its_values_and_lets_others_pass() -> None:
    trials = alone(*["alone"] * 4)
    search = Search(rules_for(trials, distinct=2))
    first, second = search.next_unit(), search.next_unit()
    assert first is not None
    assert second is not None
    assert (first.numbers, second.numbers) == ((0,), (1,))
    assert search.next_unit() is None
    assert not search.is_over()
    search.finished(second, outcome_of(second, trials))
    third = search.next_unit()
    assert third is not None
    assert third.numbers == (3,)
    assert search.next_unit() is None
    # Nor does one that is left out keep another waiting.
    search.skip(first)
    fourth = search.next_unit()
    assert fourth is not None
    assert fourth.numbers == (2,)


def test_one_that_waits_for_its_twin_keeps_nobody_from_the_next_rung() -> None:
    trials = alone(*["alone"] * 4)
    search = Search(rules_for(trials, "asha", distinct=2))
    first, second = search.next_unit(), search.next_unit()
    assert first is not None
    assert second is not None
    search.finished(first, outcome_of(first, trials))
    twin = search.next_unit()
    assert twin is not None
    assert twin.numbers == (2,)
    search.finished(twin, outcome_of(twin, trials))
    # Trial 3 waits for trial 1, which is still at work. The first trial goes on in any case.
    onward = search.next_unit()
    assert onward is not None
    assert (onward.numbers, onward.first_epoch) == ((0,), 1)


def test_packs_with_the_same_values_wait_for_nobody() -> None:
    trials = alone(*["packed"] * 6)
    search = Search(rules_for(trials, distinct=1))
    units = [search.next_unit() for _ in range(2)]
    assert [each.numbers for each in units if each] == [(0, 1, 2), (3, 4, 5)]


def test_trials_are_begun_only_while_the_rows_last_and_those_that_stop_make_room() -> None:
    trials = alone(*["alone"] * 40)
    budget = 12 * EPOCHS * EPOCH_ROWS
    with stripes_of(4):
        plain = searched(rules_for(trials, max_rows=budget), trials)
        halved = searched(rules_for(trials, "asha", max_rows=budget), trials)
    assert len(plain.search.trials()) == 12
    rows = [sum(each.rows for each in found.search.trials()) for found in (plain, halved)]
    assert rows[0] == budget
    assert len(halved.search.trials()) > 12
    assert budget - EPOCHS * EPOCH_ROWS < rows[1] <= budget or len(halved.search.trials()) == 40


def test_a_bracket_or_a_population_begins_whole_or_not_at_all() -> None:
    trials = alone(*["packed"] * 20)
    full = brackets(EPOCHS, 3)[0].trials
    whole = EPOCHS * EPOCH_ROWS
    found = searched(rules_for(trials, "hyperband", max_rows=whole * (full + 2)), trials)
    # The first bracket stops most of its trials early, and so there is room for the next.
    counts = list(itertools.accumulate(each.trials for each in brackets(EPOCHS, 3)))
    assert len(found.search.trials()) in {*counts, 20}
    none = searched(rules_for(trials, Pbt(kind="pbt"), max_rows=whole * 19), trials)
    assert none.search.trials() == []


def test_what_is_known_of_a_trial_stays_where_a_later_part_of_it_fails() -> None:
    trials = [Fate(shape="alone"), Fate(shape="alone")]
    search = Search(rules_for(trials, Asha(kind="asha", factor=2)))
    unit = search.next_unit()
    assert unit is not None
    search.finished(unit, outcome_of(unit, trials))
    before = search.records[0]
    later = next(each for each in iter(search.next_unit, None) if each.first_epoch)
    assert later.numbers == (0,)
    search.finished(later, Outcome((MemberOutcome(0, "failed", error="it broke"),)))
    after = search.records[0]
    assert (after.state, after.error) == ("failed", "it broke")
    assert (after.epochs, after.rows) == (before.epochs, before.rows)
    assert after.costs([GOAL]) == (math.inf,)


# ---- units and outcomes on storage


def unit_of(**other: Any) -> Unit:
    members = (Member(7, {LR: 0.1, "model.hidden": [8, 4]}), Member(9, {LR: 0.2}, "of", 3))
    return replace(Unit(members, 3, 9, 27, is_pack=True), **other)


CHANGED: dict[str, Callable[[], Unit]] = {
    "other values": lambda: unit_of(members=(Member(7, {LR: 0.1}), unit_of().members[1])),
    "one more": lambda: unit_of(members=(*unit_of().members, Member(11, {}))),
    "another source": lambda: unit_of(
        members=(unit_of().members[0], replace(unit_of().members[1], source="else"))
    ),
    "another parent": lambda: unit_of(
        members=(unit_of().members[0], replace(unit_of().members[1], parent=4))
    ),
    "another order": lambda: unit_of(members=unit_of().members[::-1]),
    "another beginning": lambda: unit_of(first_epoch=2),
    "another end": lambda: unit_of(last_epoch=10),
    "a longer training": lambda: unit_of(full_epochs=28),
    "alone": lambda: unit_of(is_pack=False),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_unit_that_does_something_else_has_another_name(change: str) -> None:
    assert unit_of().key != CHANGED[change]().key


def test_the_name_of_a_unit_is_what_it_does_and_begins_with_trial_and_epoch() -> None:
    again = json.loads(json.dumps([each.__dict__ for each in unit_of().members]))
    assert unit_of(members=tuple(Member(**each) for each in again)).key == unit_of().key
    assert unit_of().key.startswith("000007-0000009-")


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
outcomes = st.lists(
    st.builds(
        MemberOutcome,
        number=st.integers(0, 99),
        state=st.sampled_from(["paused", "finished", "failed"]),
        epochs=st.integers(0, 9),
        best_epoch=st.integers(0, 9),
        scores=st.dictionaries(st.sampled_from(["valid_loss", "parameters"]), numbers),
        rows=st.integers(0, 10**12),
        ended_by=st.sampled_from(["", "early_stopping"]),
        error=st.text(max_size=9),
    ),
    max_size=3,
)


@given(outcomes, st.dictionaries(st.integers(0, 99), st.lists(st.just({"epoch": 1, "lr": 0.1}))))
def test_an_outcome_comes_back_from_storage_as_it_was(
    members: list[MemberOutcome], histories: dict[int, list[dict[str, Any]]]
) -> None:
    outcome = Outcome(tuple(members), histories)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_an_outcome_of_another_time_is_refused() -> None:
    document = {**Outcome(()).to_json(), "format": 2}
    with pytest.raises(ValueError, match="format"):
        Outcome.from_json(document)
