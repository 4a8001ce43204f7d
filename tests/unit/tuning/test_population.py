"""Population-based training from one generation to the next."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.spec.search import Distribution, Pbt, SearchSpec
from batchtrain.tuning.population import (
    Member,
    changes_along,
    next_generation,
    quantile_size,
)
from batchtrain.tuning.schedulers import cohorts_of
from batchtrain.tuning.trials import Goal, TrialRecord

LR, MOMENTUM = "training.optimizer.lr", "training.optimizer.momentum"
SPACE = {LR: Distribution(log_uniform=(1e-4, 1.0))}
PBT = Pbt(kind="pbt", resample=0.0)


def members_of(*costs: float) -> list[Member]:
    return [Member(number, {LR: 0.001 * (1 + number)}, cost) for number, cost in enumerate(costs)]


def test_the_worst_quarter_goes_on_as_changed_copies_of_the_best() -> None:
    members = members_of(0.8, 0.1, 0.7, 0.2, 0.5, 0.3, 0.4, 0.6)
    found = next_generation(members, space=SPACE, spec=PBT, seed=1, generation=0)
    assert [each.number for each in found] == list(range(8))
    for member, each in zip(members, found, strict=True):
        if member.number in {0, 2}:
            assert each.parent in {1, 3}
            of_parent = members[each.parent].values[LR]
            assert each.values[LR] in {round(of_parent * factor, 9) for factor in (1.2, 0.8)}
        else:
            assert (each.parent, each.values) == (member.number, member.values)


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, math.inf]), min_size=1, max_size=20),
    st.floats(0.01, 0.5),
    st.integers(0, 2**32),
)
def test_the_population_keeps_its_size_and_nobody_copies_the_bad(
    costs: list[float], quantile: float, seed: int
) -> None:
    spec = Pbt(kind="pbt", quantile=quantile)
    members = members_of(*costs)
    found = next_generation(members, space=SPACE, spec=spec, seed=seed, generation=4)
    assert [each.number for each in found] == list(range(len(costs)))
    replaced = {each.number for each in found if each.parent != each.number}
    parents = {each.parent for each in found if each.parent != each.number}
    assert not parents & replaced
    size, able = quantile_size(len(costs), quantile), sum(cost < math.inf for cost in costs)
    if able == 0 or size == 0:
        assert not replaced
    else:
        assert all(costs[each.parent] < math.inf for each in found)
        # The quantile, and beyond it all that failed.
        assert len(replaced) == max(size, len(costs) - able)
        assert len(parents) <= size
    # Of any order, the same.
    again = next_generation(members[::-1], space=SPACE, spec=spec, seed=seed, generation=4)
    assert again == found


def test_parents_are_drawn_from_all_of_the_best_and_by_seed_generation_and_member() -> None:
    members = members_of(*[number / 10 for number in range(8)])
    parents = [
        [
            each.parent
            for each in next_generation(members, space=SPACE, spec=PBT, seed=seed, generation=at)
            if each.number >= 6
        ]
        for seed in range(20)
        for at in range(5)
    ]
    counts = Counter(parent for each in parents for parent in each)
    assert set(counts) == {0, 1}
    assert min(counts.values()) > 60
    assert len({tuple(each) for each in parents}) == 4


def test_a_value_is_explored_by_seed_generation_and_member_and_reads_well() -> None:
    """Over many exchanges too: no value gets the digits of a product of products."""
    seen: dict[tuple[int, int], Any] = {}
    for seed in range(4):
        members = members_of(0.1, 0.2, 0.3, 0.4)
        for at in range(10):
            found = next_generation(
                members, space=SPACE, spec=Pbt(kind="pbt"), seed=seed, generation=at
            )
            seen[seed, at] = found[3].values[LR]
            assert float(f"{seen[seed, at]:.6g}") == seen[seed, at]
            members = [replace(one, values=found[3].values) for one in members]
    assert len(set(seen.values())) > 30
    again = next_generation(members, space=SPACE, spec=PBT, seed=3, generation=9)
    assert again == next_generation(members, space=SPACE, spec=PBT, seed=3, generation=9)


def test_resampling_and_conditions() -> None:
    space = {
        "training.optimizer.kind": Distribution(choice=("sgd", "adam")),
        MOMENTUM: Distribution(uniform=(0.1, 0.9), when={"training.optimizer.kind": "sgd"}),
    }
    spec = Pbt(kind="pbt", resample=1.0, quantile=0.5)
    members = [
        Member(0, {"training.optimizer.kind": "adam"}, 0.1),
        Member(1, {"training.optimizer.kind": "adam"}, 0.2),
    ]
    kinds = set()
    for seed in range(30):
        copy = next_generation(members, space=space, spec=spec, seed=seed, generation=0)[1]
        assert copy.parent == 0
        kinds.add(copy.values["training.optimizer.kind"])
        assert (MOMENTUM in copy.values) is (copy.values["training.optimizer.kind"] == "sgd")
    assert kinds == {"sgd", "adam"}


def paused(number: int, epochs: int, cost: float, **others: Any) -> TrialRecord:
    return TrialRecord(
        number, state="paused", epochs=epochs, rungs={epochs: {"valid_loss": cost}}, **others
    )


def test_a_generation_waits_for_all_and_revives_who_failed() -> None:
    search = SearchSpec(space=SPACE, scheduler=Pbt(kind="pbt", interval_epochs=2, resample=0))
    goal = Goal("valid_loss", "min")
    cohorts = cohorts_of(search, epochs=6, trials=4, goal=goal, seed=0)
    values = [{LR: 0.01 * (1 + number)} for number in range(4)]
    known = {number: paused(number, 2, 0.1 * number, values=values[number]) for number in range(3)}
    assert cohorts.rungs_of(0) == (2, 4, 6)
    assert cohorts.decide(0, 2, known) is None
    known[3] = TrialRecord(3, state="failed", epochs=1, values=values[3])
    assert [cohorts.decide(number, 2, known) for number in range(4)] == ["go on"] * 4
    heirs = [cohorts.heir(number, 2, known) for number in range(4)]
    assert [each.parent for each in heirs if each] == [0, 1, 2, 0]
    assert heirs[3] is not None
    assert any(heirs[3].values[LR] == pytest.approx(each) for each in (0.012, 0.008))
    # Who has gone on, with other values, does not change what the others are told.
    known[3] = replace(known[3], state="running", values=heirs[3].values, error="")
    assert cohorts.heir(2, 2, known) == heirs[2]
    # The next generation begins with the values of this one.
    for number, heir in enumerate(heirs):
        assert heir is not None
        known[number] = paused(number, 4, 0.4 - 0.1 * number, values=heir.values)
    second = cohorts.heir(0, 4, known)
    assert second is not None
    assert second.parent == 3
    assert any(
        second.values[LR] == pytest.approx(heirs[3].values[LR] * each) for each in (1.2, 0.8)
    )
    assert cohorts.decide(0, 6, known) == "stop"


def test_a_lineage_as_changes_of_an_ordinary_training() -> None:
    path = [(0, {LR: 0.01}), (2, {LR: 0.012}), (4, {LR: 0.012}), (6, {LR: 0.0144, MOMENTUM: 0.5})]
    assert changes_along(path) == [
        {"epoch": 2, "lr": 0.012},
        {"epoch": 6, "lr": 0.0144, "momentum": 0.5},
    ]
    assert changes_along(path[:1]) == []
    with pytest.raises(ValueError, match="to differ, found"):
        changes_along([(0, {"model.hidden": [3]}), (2, {"model.hidden": [4]})])


def test_a_population_of_which_all_failed_ends() -> None:
    search = SearchSpec(space=SPACE, scheduler="pbt")
    cohorts = cohorts_of(search, epochs=20, trials=2, goal=Goal("valid_loss", "min"), seed=0)
    known = {number: TrialRecord(number, state="failed", epochs=1) for number in range(2)}
    assert [cohorts.decide(number, 5, known) for number in range(2)] == ["stop", "stop"]
