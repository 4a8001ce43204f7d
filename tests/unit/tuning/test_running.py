"""What comes of a unit of a search, whoever trained its trials before and wherever it was cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.ownership import claim_run
from batchtrain.artifacts.prepared import PreparedData
from batchtrain.errors import (
    ArtifactDamagedError,
    FencedError,
    InterruptedRunError,
    LauncherLostError,
    RankLostError,
    RankMemoryError,
    RankStuckError,
)
from batchtrain.pipeline import run_spec
from batchtrain.spec.load import LoadedSpec, with_values
from batchtrain.spec.search import SearchSpec
from batchtrain.storage import FolderStorage
from batchtrain.training.rank import TrainTask
from batchtrain.training.train import OneProcess
from batchtrain.tuning import running
from batchtrain.tuning.layout import SearchLayout
from batchtrain.tuning.running import UnitRunner, read_outcome
from batchtrain.tuning.shapes import Shapes
from batchtrain.tuning.work import Member, Outcome, Unit
from tests.support.builders import layout_for, storage_of
from tests.support.search_units import EPOCHS, LR, done, new_spec, nobody, runner_for, unit


@pytest.fixture
def spec(tmp_path: Path) -> LoadedSpec:
    return new_spec(tmp_path)


# ---- whoever trained a trial before


@pytest.mark.parametrize("metric", ["valid_loss", "valid_accuracy"])
@pytest.mark.parametrize("until", [5, EPOCHS])
def test_a_run_that_went_further_gives_what_it_had_at_the_rung(
    tmp_path: Path, metric: str, until: int
) -> None:
    # It becomes worse, so that the best epoch at the rung is not the last one there.
    loaded = new_spec(
        tmp_path,
        optimizer={"kind": "sgd", "lr": 0.5, "momentum": 0.9},
        early_stopping={"metric": metric, "patience": EPOCHS},
    )
    rungs = [unit({LR: 0.5}, 0, 3), unit({LR: 0.5}, 3, EPOCHS)]
    expected = [done(runner_for(loaded), each) for each in rungs]
    assert [each.members[0].state for each in expected] == ["paused", "finished"]
    assert expected[0].members[0].best_epoch <= 3

    shutil.rmtree(storage_of(loaded).root)
    done(runner_for(loaded), unit({LR: 0.5}, 0, until))
    shutil.rmtree(storage_of(loaded).root / "small" / "search-0123456789ab")
    assert [done(runner_for(loaded), each) for each in rungs] == expected


def test_an_ordinary_run_of_the_same_values_is_not_trained_again(
    spec: LoadedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = run_spec(with_values(spec, {LR: 0.02}), last="train").trained
    assert ordinary is not None
    monkeypatch.setattr(running, "train", None)
    (found,) = done(runner_for(spec), unit({LR: 0.02})).members
    record = ordinary.history()[found.best_epoch]
    assert (found.state, found.epochs) == ("finished", EPOCHS)
    assert found.scores == {"valid_loss": record["valid_loss"]}


@pytest.mark.parametrize("is_pack", [False, True])
def test_what_is_published_is_not_done_again_and_the_first_counts(
    spec: LoadedSpec, is_pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = unit({LR: 0.02}, 0, 2, is_pack=is_pack)
    runner = runner_for(spec)
    outcome = done(runner, work)
    other = replace(outcome, members=(replace(outcome.members[0], rows=1),))
    key = runner.layout.outcome(work.key)
    assert read_outcome(runner.layout, work) == outcome
    # As if another process had been first, while this one was at work.
    runner.storage.delete(key)

    def late(layout: SearchLayout, each: Unit) -> Outcome | None:
        found = read_outcome(layout, each)
        if found is None:
            write(runner.storage, key, other)
        return found

    monkeypatch.setattr("batchtrain.tuning.running.read_outcome", late)
    assert done(runner, work) == other


def write(storage: Any, key: str, outcome: Outcome) -> None:
    storage.create(key, canonical_json(outcome.to_json()))


# ---- trials that are not like the others


@pytest.mark.parametrize("epochs", [2, 4])
@pytest.mark.parametrize("is_pack", [False, True])
def test_a_trial_of_fewer_epochs_is_finished_after_its_last(
    spec: LoadedSpec, epochs: int, is_pack: bool
) -> None:
    work = unit({"training.epochs": epochs}, 0, 4, is_pack=is_pack)
    (found,) = done(runner_for(spec), work).members
    assert (found.state, found.epochs, found.ended_by) == ("finished", epochs, "")


def test_values_that_do_not_go_together_are_a_trial_that_failed(spec: LoadedSpec) -> None:
    values = {"training.batch_size": -1}
    assert isinstance(spec.spec.search, SearchSpec)
    runner = runner_for(spec)
    shape = Shapes(spec, spec.spec.search, runner.prepared, runner.goals).of(values)
    assert (shape.is_pack, shape.size) == (False, 1)
    (found,) = done(runner, unit(values)).members
    assert found.state == "failed"
    assert "training.batch_size" in found.error


# ---- what is no trial's fault


class Losing(OneProcess):
    """What starts the ranks of a trial, and does not come to it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def __call__(self, *_: Any) -> Any:
        raise self._error


def losing(error: Exception) -> Callable[[LoadedSpec, PreparedData], OneProcess]:
    return lambda _loaded, _prepared: Losing(error)


def test_a_network_that_is_too_large_is_a_trial_that_failed(spec: LoadedSpec) -> None:
    error = RankMemoryError("rank 1 was ended because memory ran out")
    # Halved to one row, and tried once more: nothing helps.
    found = done(runner_for(spec, launcher=losing(error)), unit({LR: 0.02})).members[0]
    assert (found.state, found.error) == ("failed", str(error))


@pytest.mark.parametrize("kind", [RankLostError, RankStuckError, LauncherLostError])
def test_what_befalls_the_processes_of_a_trial_is_not_its_failure(
    spec: LoadedSpec, kind: type[Exception]
) -> None:
    runner, work = runner_for(spec, launcher=losing(kind("it is gone"))), unit({LR: 0.02})
    with pytest.raises(kind, match="it is gone"):
        done(runner, work)
    assert read_outcome(runner.layout, work) is None
    # The same search goes on where its processes stay.
    assert done(runner_for(spec), work).members[0].state == "finished"


class TakenOver(OneProcess):
    """Another process takes the run over while this one trains."""

    def __call__(self, task: TrainTask, *rest: Any) -> Any:
        storage, folder = task.layout.storage, task.layout.root
        with claim_run(storage, folder, continues=lambda _claims: None, take_over=True):
            return super().__call__(task, *rest)


def test_a_trial_that_another_process_writes_too_is_said_as_a_search_can_be_told(
    spec: LoadedSpec,
) -> None:
    runner, work = runner_for(spec, launcher=lambda *_: TakenOver()), unit({LR: 0.02})
    with pytest.raises(FencedError) as caught:
        done(runner, work)
    said = str(caught.value)
    run = layout_for(with_values(spec, {LR: 0.02}))
    assert f"expected this search alone to write trial 0 in {run.storage.url(run.root)}" in said
    assert f"found that process {os.getpid()} on " in said
    assert "run the same command again to go on" in said
    assert "take" not in said
    assert read_outcome(runner.layout, work) is None


@pytest.mark.parametrize("is_pack", [False, True])
def test_a_stop_publishes_nothing_and_what_was_trained_is_used(
    spec: LoadedSpec, is_pack: bool
) -> None:
    looks = 0

    def stop() -> bool:
        nonlocal looks
        looks += 1
        return looks > 5

    runner, work = runner_for(spec), unit({LR: 0.02}, is_pack=is_pack)
    with pytest.raises(InterruptedRunError):
        runner.run(work, nobody, stop)
    assert read_outcome(runner.layout, work) is None
    stopped = done(runner, work)
    shutil.rmtree(storage_of(spec).root)
    assert stopped == done(runner_for(spec), work)


# ---- what lies on storage


def pack_of_two(runner: UnitRunner) -> tuple[Unit, Unit]:
    """A pack up to a rung, and the two trials beyond it, the second as a copy of the first."""
    first = Unit((Member(0, {LR: 0.01}), Member(1, {LR: 0.02})), 0, 3, EPOCHS, is_pack=True)
    members = (
        Member(0, {LR: 0.01}, first.key, 0),
        Member(1, {LR: 0.05}, first.key, 0),
    )
    return first, Unit(members, 3, EPOCHS, EPOCHS, is_pack=True)


def test_a_copy_goes_on_with_the_state_of_its_parent_and_its_own_values(spec: LoadedSpec) -> None:
    runner = runner_for(spec)
    first, then = pack_of_two(runner)
    before = done(runner, first).histories
    after = done(runner, then).histories
    assert after[0][:4] == before[0] == after[1][:4] != before[1]
    assert (after[0][-1]["lr"], after[1][-1]["lr"]) == (0.01, 0.05)
    assert after[0][4:] != after[1][4:]


DAMAGES: dict[str, Callable[[FolderStorage, SearchLayout, Unit], str]] = {
    "states that are gone": lambda storage, layout, of: gone(storage, layout.states(of.key)),
    "states that are cut": lambda storage, layout, of: cut(storage, layout.states(of.key)),
    "an outcome that is cut": lambda storage, layout, of: cut(storage, layout.outcome(of.key)),
}


def gone(storage: FolderStorage, key: str) -> str:
    storage.delete(key)
    return key


def cut(storage: FolderStorage, key: str) -> str:
    storage.write(key, storage.read(key)[:100])
    return key


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_said_with_a_way_out(spec: LoadedSpec, damage: str) -> None:
    runner = runner_for(spec)
    first, then = pack_of_two(runner)
    expected = done(runner, first)
    key = DAMAGES[damage](storage_of(spec), runner.layout, first)
    work = first if key == runner.layout.outcome(first.key) else then
    with pytest.raises(ArtifactDamagedError) as caught:
        done(runner, work)
    assert storage_of(spec).url(key) in str(caught.value)
    # What the message says.
    outcome = storage_of(spec).url(runner.layout.outcome(first.key))
    assert f"Delete {'the file' if work is first else outcome}" in str(caught.value)
    Path(outcome).unlink()
    assert done(runner, first) == expected
    assert [each.state for each in done(runner, then).members] == ["finished", "finished"]


def test_an_outcome_says_nothing_of_time_or_place(spec: LoadedSpec) -> None:
    found = done(runner_for(spec), unit({LR: 0.02}, 0, 2, is_pack=True))
    assert set(asdict(found.members[0])) == {
        *(
            "number",
            "state",
            "epochs",
            "best_epoch",
            "scores",
            "rows",
            "ended_by",
            "error",
            "latest",
        )
    }
    names = {name for record in found.histories[0] for name in record}
    assert names == {"epoch", "step", "lr", "train_loss", "valid_loss", "valid_accuracy"}
