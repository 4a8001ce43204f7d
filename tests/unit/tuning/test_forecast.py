"""What is told of a search before it starts, held against the same search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import SpecError
from batchtrain.spec.load import LoadedSpec, load_spec
from batchtrain.tuning.choice import FEW_SECONDS
from batchtrain.tuning.forecast import forecast
from batchtrain.tuning.outline import SearchOutline
from batchtrain.tuning.planning import plan_document, plan_run
from batchtrain.tuning.shapes import PACKED_SPEED
from batchtrain.tuning.stage import SearchResult, tune_spec
from tests.support.builders import mixed_table, prepared_for, spec_for, storage_of

LR = {"training.optimizer.lr": {"log_uniform": [1e-3, 1e-1]}}
SHAPES = {
    "training.optimizer.kind": {"choice": ["adam", "rmsprop"]},
    "model.hidden": {"choice": [[4], [6, 3]]},
    **LR,
}


def searched(folder: Path, search: dict[str, Any], **sections: Any) -> LoadedSpec:
    model = {"kind": "mlp", "hidden": [4], "dropout": 0.1}
    training = {"epochs": 3, "batch_size": 32, **sections.pop("training", {})}
    search = {"export": False, **search}
    return spec_for(
        folder, mixed_table(gaps=False), model=model, training=training, search=search, **sections
    )


def told_and_done(loaded: LoadedSpec) -> tuple[SearchOutline, SearchResult]:
    """The forecast, made while nothing is prepared, and what the search then was."""
    told = forecast(loaded, plan_run(loaded).task.prepared)
    assert not storage_of(loaded).root.exists()
    return told, tune_spec(loaded)


@pytest.mark.parametrize("pack", ["auto", 3])
def test_packs_and_trials_alone_are_those_of_the_search(tmp_path: Path, pack: Any) -> None:
    loaded = searched(tmp_path, {"space": SHAPES, "trials": 12, "pack": pack})
    told, done = told_and_done(loaded)
    packed = done.document["packed"]
    assert sum(shape.packs for shape in told.shapes) == packed["packs"]
    assert sum(shape.trials for shape in told.shapes if shape.packs) == packed["trials"] > 0
    alone = {shape.why_alone: shape.trials for shape in told.shapes if shape.why_alone}
    assert alone == packed["why_not"]
    assert {shape.shape for shape in told.shapes if shape.packs} == {
        "optimizer.kind adam, hidden 4",
        "optimizer.kind adam, hidden 6-3",
    }
    # Nothing ends a trial early here.
    assert told.rows_at_most == told.rows_expected == done.document["rows"]
    assert (told.goals, told.trials) == ((("valid_loss", "min"),), 12)


def test_a_grid_has_all_of_its_points_and_a_shape_of_many_is_summed_up(tmp_path: Path) -> None:
    widths = {"model.hidden": {"choice": [[width] for width in range(2, 13)]}}
    search = {"space": {**widths, "model.dropout": {"choice": [0, 0.1]}}, "algorithm": "grid"}
    loaded = searched(tmp_path, search)
    told = forecast(loaded, prepared_for(loaded))
    assert (told.trials, len(told.shapes)) == (22, 9)
    assert (told.shapes[-1].shape, told.shapes[-1].trials) == ("3 other shapes", 6)
    assert sum(shape.packs for shape in told.shapes) == 11
    assert {shape.shape for shape in told.shapes[:-1]} <= {f"hidden {n}" for n in range(2, 13)}


def test_hyperband_has_the_rungs_and_rows_that_are_told(tmp_path: Path) -> None:
    search = {"space": LR, "trials": 22, "scheduler": {"kind": "hyperband"}}
    told, done = told_and_done(searched(tmp_path, search, training={"epochs": 9}))
    trials = done.document["trials"]
    # Of Li et al. (2018), table 1, for R = 9: 9, 5 and 3 trials, and those that are left.
    counts = {bracket.rungs: bracket.trials for bracket in told.brackets}
    assert counts == {(1, 3, 9): (9 + 5, 3 + 1, 1 + 1), (3, 9): (5, 1), (9,): (3,)}
    for rungs, wanted in counts.items():
        mine = [each for each in trials if set(each["rungs"]) <= set(map(str, rungs))]
        mine = [each for each in mine if str(rungs[0]) in each["rungs"]]
        assert [sum(str(epochs) in each["rungs"] for each in mine) for epochs in rungs] == [*wanted]
    assert told.rows_expected == done.document["rows"] < told.rows_at_most


def test_asha_is_told_by_about_how_many_go_on(tmp_path: Path) -> None:
    search = {"space": LR, "trials": 64, "scheduler": "asha"}
    told, done = told_and_done(searched(tmp_path, search, training={"epochs": 16}))
    (bracket,) = told.brackets
    assert bracket.rungs == (1, 4, 16)
    assert bracket.trials[0] == 64
    # A quarter each time, and the first few more, since they have nobody to be compared with.
    assert 16 <= bracket.trials[1] <= 22
    assert 4 <= bracket.trials[2] <= 10
    assert done.document["rows"] <= told.rows_at_most == 64 * 16 * 62
    assert 0.5 < told.rows_expected / done.document["rows"] < 2


def test_a_population_trains_all_of_its_members_to_the_end(tmp_path: Path) -> None:
    search = {"space": LR, "trials": 6, "scheduler": {"kind": "pbt", "interval_epochs": 2}}
    told, done = told_and_done(searched(tmp_path, search, training={"epochs": 6}))
    (bracket,) = told.brackets
    assert (bracket.rungs, bracket.trials) == ((2, 4, 6), (6, 6, 6))
    assert told.rows_expected == told.rows_at_most == 6 * 6 * 62
    assert sum(each["rows"] for each in done.document["trials"]) == told.rows_at_most
    frozen = {"space": {"model.hidden": {"choice": [[4], [5]]}}, "scheduler": "pbt"}
    with pytest.raises(SpecError, match="pbt"):
        searched(tmp_path, frozen, training={"epochs": 6})


def test_tpe_is_told_of_by_random_values_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    loaded = searched(tmp_path, {"space": LR, "trials": 20, "algorithm": "tpe"})
    told = forecast(loaded, prepared_for(loaded))
    assert [shape.packs for shape in told.shapes] == [3]
    assert "tpe chooses 8 trials at a time" in told.notes[0]


def test_a_budget_of_rows_and_a_large_search_are_told_of(tmp_path: Path) -> None:
    budget = 10 * 3 * 62
    loaded = searched(tmp_path, {"space": LR, "trials": 50, "max_rows": budget})
    told, done = told_and_done(loaded)
    assert told.rows_at_most == told.rows_expected == done.document["rows"] == budget
    assert any("about 10 trials" in note for note in told.notes)
    large = load_spec(loaded.path, ["search.max_rows=null", "search.trials=5000"])
    whole = forecast(large, prepared_for(large))
    assert whole.rows_at_most == whole.rows_expected == 5000 * 3 * 62
    assert any("first 512 trials" in note for note in whole.notes)


def test_the_time_knows_packs_and_machines(tmp_path: Path) -> None:
    loaded = searched(tmp_path, {"space": LR, "trials": 20})
    prepared = prepared_for(loaded)
    packed = forecast(loaded, prepared)
    assert packed.run_lengths == pytest.approx(20 / PACKED_SPEED)
    assert (packed.starts, packed.concurrent) == (0, 1)
    alone = load_spec(loaded.path, ["search.pack=1"])
    assert forecast(alone, prepared).run_lengths == pytest.approx(20)
    assert forecast(alone, prepared).starts == 20
    document = plan_document(plan_run(alone), forecast(alone, prepared))
    assert document["search"]["seconds"] > 20 * document["time"]["seconds"]

    many = load_spec(loaded.path, ["search.pack=1", f"search.trials={20 * FEW_SECONDS:.0f}"])
    here, there = (forecast(many, prepared, cpus=cpus) for cpus in (1, 4))
    assert "in this process" in here.where
    assert "Ray Tune" in there.where
    assert (here.concurrent, there.concurrent) == (1, 4)
    assert there.run_lengths == pytest.approx(here.run_lengths / 4)
    ranks = load_spec(loaded.path, ["resources.workers=2", "search.concurrent=3"])
    assert forecast(ranks, prepared, cpus=4).concurrent == 2
    assert "not on this machine alone" in forecast(ranks, prepared, cpus=1).where
