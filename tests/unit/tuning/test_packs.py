"""A pack that cannot be trained as one: what is one trial's fault, and what memory cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from batchtrain.errors import RankMemoryError, TrainingError
from batchtrain.spec.load import LoadedSpec
from batchtrain.training.packed.training import PackedTraining
from batchtrain.tuning import packs, running
from batchtrain.tuning.running import UnitRunner, read_outcome
from batchtrain.tuning.shapes import Shapes
from batchtrain.tuning.stage import tune_spec
from batchtrain.tuning.work import Member, MemberOutcome, Unit
from tests.support.builders import mixed_table, spec_for, storage_of
from tests.support.search_units import EPOCHS, LR, done, new_spec, runner_for

RUNG = 3
RATES = (0.01, 0.02, 0.03, 0.04, 0.05)
OUT_OF_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 144000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def spec(tmp_path: Path) -> LoadedSpec:
    return new_spec(tmp_path)


def members_of(*values: dict[str, Any]) -> tuple[Member, ...]:
    return tuple(Member(number, each) for number, each in enumerate(values))


def whole(members: Sequence[Member], *, is_pack: bool = True) -> Unit:
    return Unit(tuple(members), 0, EPOCHS, EPOCHS, is_pack)


def to_rung(members: Sequence[Member]) -> Unit:
    return Unit(tuple(members), 0, RUNG, EPOCHS, is_pack=True)


def beyond(before: Unit, numbers: Sequence[int]) -> Unit:
    """Some trials of a pack from the rung to the end."""
    members = (
        Member(number, before.members[number].values, before.key, number) for number in numbers
    )
    return Unit(tuple(members), RUNG, EPOCHS, EPOCHS, is_pack=True)


# ---- values that do not go together


COLUMNS = sorted(set(mixed_table(1).column_names) - {"label"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training.loss": "mse"}, "expected a loss for classification, found 'mse'"),
        ({"data.exclude": COLUMNS}, "expected at least one feature column"),
    ],
    ids=["a loss of another task", "no columns"],
)
def test_a_pack_that_cannot_begin_is_failed_trials_as_alone(
    spec: LoadedSpec, values: dict[str, Any], words: str
) -> None:
    members = members_of(*({**values, LR: rate} for rate in RATES[:3]))
    runner = runner_for(spec, own_data="data.exclude" in values)
    packed = done(runner, whole(members))
    assert packed == done(runner, whole(members, is_pack=False))
    # None of them began, so none has rows.
    assert [(each.state, each.rows) for each in packed.members] == [("failed", 0)] * 3
    assert [words in each.error for each in packed.members] == [True] * 3


def test_only_the_trial_that_is_wrong_fails_and_the_others_go_on(spec: LoadedSpec) -> None:
    schedule = {"training.schedule": {"kind": "cosine", "min_lr": 0.015}}
    members = members_of(*({**schedule, LR: rate} for rate in RATES))
    runner = runner_for(spec)
    pack = to_rung(members)
    found = done(runner, pack)
    assert [each.state for each in found.members] == ["failed"] + ["paused"] * 4
    assert "expected at most the optimizer's lr, 0.01" in found.members[0].error
    then = done(runner, beyond(pack, [1, 2, 3, 4]))
    assert [each.state for each in then.members] == ["finished"] * 4
    check_same(then.members, done(runner, whole(members[1:])).members)


# ---- memory


def run_out_above(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let packs of more trials find no memory; gives the sizes that are tried from then on."""
    tried: list[int] = []

    def short(specs: Sequence[LoadedSpec], *rest: Any, **named: Any) -> PackedTraining:
        tried.append(len(specs))
        if len(specs) > most:
            raise RuntimeError(OUT_OF_MEMORY)
        return PackedTraining(specs, *rest, **named)

    monkeypatch.setattr(packs, "PackedTraining", short)
    return tried


def check_same(found: Sequence[MemberOutcome], expected: Sequence[MemberOutcome]) -> None:
    """The same trials but for the last bits."""
    assert [(each.number, each.state, each.epochs, each.rows, each.error) for each in found] == [
        (each.number, each.state, each.epochs, each.rows, each.error) for each in expected
    ]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.scores == pytest.approx(theirs.scores, rel=2e-5)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [5, 2, 1, 1, 3, 1, 2, 1, 1]), (2, [5, 2, 3, 1, 2]), (3, [5, 2, 3])]
)
def test_a_pack_that_memory_cannot_hold_is_trained_in_parts(
    tmp_path: Path, most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = to_rung(members_of(*({LR: rate} for rate in RATES)))
    then = beyond(pack, [4, 0, 2, 3, 1])
    for folder in ("undisturbed", "short"):
        (tmp_path / folder).mkdir()
    undisturbed = runner_for(new_spec(tmp_path / "undisturbed"))
    expected = [done(undisturbed, pack), done(undisturbed, then)]
    tried = run_out_above(monkeypatch, most)
    runner = runner_for(new_spec(tmp_path / "short"))
    found = [done(runner, pack), done(runner, then)]
    assert tried == sizes * 2
    for mine, theirs in zip(found, expected, strict=True):
        check_same(mine.members, theirs.members)
        assert mine.histories.keys() == theirs.histories.keys()
    states = storage_of(runner.loaded).root / runner.layout.states("")
    assert len(list(states.parent.iterdir())) == 1


def test_what_no_pack_can_hold_is_a_run_of_its_own_where_it_can_be(
    spec: LoadedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = members_of(*({LR: rate} for rate in RATES[:2]))
    run_out_above(monkeypatch, 0)
    runner = runner_for(spec)
    found = done(runner, whole(members))
    assert found == done(runner, whole(members, is_pack=False))
    # To a rung it cannot, since it would leave no state to go on from in a pack.
    failed = done(runner, to_rung(members)).members
    assert [each.state for each in failed] == ["failed", "failed"]
    assert all("found that it ran out" in each.error for each in failed)
    rows = rows_of(runner, {LR: 0.01}) * RUNG // EPOCHS
    assert [each.rows for each in failed] == [rows, rows]


def test_a_network_that_no_run_can_hold_is_a_trial_that_failed(
    spec: LoadedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_args: Any, **_named: Any) -> Any:
        # As where the weights are made, which is before any step.
        raise RuntimeError(OUT_OF_MEMORY)

    run_out_above(monkeypatch, 0)
    monkeypatch.setattr(running, "train", short)
    (found,) = done(runner_for(spec), whole(members_of({LR: 0.01}))).members
    assert found.state == "failed"
    assert "DefaultCPUAllocator" in found.error


def test_another_error_of_torch_ends_the_search(
    spec: LoadedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_named: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(packs, "PackedTraining", broken)
    runner, pack = runner_for(spec), whole(members_of({LR: 0.01}))
    with pytest.raises(RuntimeError, match="mat1"):
        done(runner, pack)
    assert read_outcome(runner.layout, pack) is None


def test_what_was_tried_is_no_longer_in_memory_when_a_part_of_it_is(
    spec: LoadedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows:
        """What an attempt holds."""

        count = 0

        def __init__(self) -> None:
            Rows.count += 1

        def __del__(self) -> None:
            Rows.count -= 1

    def short(specs: Sequence[LoadedSpec], *rest: Any, **named: Any) -> PackedTraining:
        assert Rows.count == 0
        if len(specs) > 1:
            held = Rows()
            held_in_a_circle = [held]
            held_in_a_circle.append(held_in_a_circle)  # type: ignore[arg-type]  # on purpose
            raise RuntimeError(OUT_OF_MEMORY)
        return PackedTraining(specs, *rest, **named)

    monkeypatch.setattr(packs, "PackedTraining", short)
    found = done(runner_for(spec), whole(members_of({LR: 0.01}, {LR: 0.02})))
    assert [each.state for each in found.members] == ["finished", "finished"]


def test_a_search_on_a_small_machine_finds_what_a_large_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        search = {
            "space": {LR: {"log_uniform": [1e-3, 1e-1]}},
            "trials": 7,
            "scheduler": {"kind": "asha", "first_epochs": 1, "factor": 2},
            "export": False,
        }
        training = {"epochs": 4, "batch_size": 16}
        loaded = spec_for(folder, mixed_table(60), training=training, search=search)
        return dict(tune_spec(loaded).document)

    large = searched(tmp_path / "large")
    tried = run_out_above(monkeypatch, 2)
    small = searched(tmp_path / "small")
    assert max(tried) == 7
    assert small["best"] == large["best"]
    assert small["packed"] == large["packed"]
    for mine, theirs in zip(small["trials"], large["trials"], strict=True):
        assert mine.pop("scores") == pytest.approx(theirs.pop("scores"), rel=2e-5)
        rungs, others = mine.pop("rungs"), theirs.pop("rungs")
        assert rungs.keys() == others.keys()
        for epochs, scores in rungs.items():
            assert scores == pytest.approx(others[epochs], rel=2e-5)
        assert mine == theirs


# ---- the machine


def test_a_machine_without_what_is_asked_for_is_no_trials_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    resources = {"device": "cuda"}
    loaded = spec_for(
        tmp_path,
        mixed_table(60),
        training={"epochs": EPOCHS},
        search={"space": {LR: {"log_uniform": [1e-3, 1e-1]}}},
        resources=resources,
    )
    runner, pack = runner_for(loaded), whole(members_of({LR: 0.01}))
    with pytest.raises(TrainingError, match="expected a CUDA device"):
        done(runner, pack)
    assert read_outcome(runner.layout, pack) is None


# ---- the rows of trials that failed


def memory_error(*_args: Any, **_named: Any) -> Any:
    raise RankMemoryError("expected the step to fit into memory, found that it ran out")


def diverges(_monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"training.optimizer": {"kind": "sgd", "lr": 1e6}}


def does_not_fit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(running, "train", memory_error)
    return {LR: 0.02}


@pytest.mark.parametrize("make", [diverges, does_not_fit])
@pytest.mark.parametrize("last", [RUNG, EPOCHS])
def test_a_trial_alone_that_failed_counts_with_all_rows_to_the_end_of_its_unit(
    spec: LoadedSpec,
    make: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    last: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, runner = make(monkeypatch), runner_for(spec)
    (found,) = done(runner, Unit((Member(0, values),), 0, last, EPOCHS, is_pack=False)).members
    assert found.state == "failed"
    assert found.rows == rows_of(runner, values) * last // EPOCHS > 0


def rows_of(runner: UnitRunner, values: dict[str, Any]) -> int:
    """What a budget of rows allows for a trial."""
    search = runner.loaded.spec.search
    assert search is not None
    return Shapes(runner.loaded, search, runner.prepared, runner.goals).rows(values)


def test_a_budget_of_rows_holds_where_trials_fail(tmp_path: Path) -> None:
    search = {
        "space": {LR: {"log_uniform": [1e5, 1e6]}},
        "trials": 20,
        "max_rows": 400,
        "pack": 1,
        "export": False,
    }
    # 41 rows are trained with, so 164 a trial.
    training = {"epochs": 4, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.1}}
    loaded = spec_for(tmp_path, mixed_table(60), training=training, search=search)
    with pytest.raises(TrainingError, match="found none among 2"):
        tune_spec(loaded)
