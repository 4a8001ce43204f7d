"""What follows a loss or gradient that is no number: the end, a step less, or the epoch again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchtrain.errors import DivergedError
from batchtrain.spec.training import CheckpointSpec
from batchtrain.training.deciding import MOST_ROLL_BACKS
from batchtrain.training.keeping import StateKeeper
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import Snapshot, TrainState, weights_of
from batchtrain.training.update import MOST_LEFT_OUT
from tests.support.loops import LoopRun, SmallNet, StopAfter, rows_of, written

INF, NAN = float("inf"), float("nan")
ADAM = {"kind": "adam", "lr": 0.02}


def spoilt(*steps: int, gradient: float = NAN, loss: float = 1) -> Any:
    """Spoil these steps."""
    return lambda _state, step: (gradient, loss) if step in steps else (1, 1)


# --- skip -------------------------------------------------------------------------------------


class NormedNet(SmallNet):
    """With running means, which a forward over bad rows spoils."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return super().forward(self.norm(numeric_BF), codes_BC)


def skipping(**options: Any) -> LoopRun:
    return LoopRun({"on_nan": "skip", "optimizer": ADAM}, **options)


@pytest.mark.parametrize(
    ("gradient", "loss"), [(NAN, 1), (INF, 1), (1, INF), (1, NAN), (-INF, INF), (1e30, 1)]
)
def test_a_step_that_is_left_out_changes_nothing_and_is_counted(
    gradient: float, loss: float
) -> None:
    run = skipping(spoils=spoilt(6, gradient=gradient, loss=loss))
    weights: dict[int, dict[str, Tensor]] = {}

    def look(state: TrainState) -> None:
        weights[state.step] = weights_of(state.model)

    state = run.new_state()
    run.go(state, StopAfter(looks=look))
    assert all(torch.equal(value, weights[7][name]) for name, value in weights[6].items())
    assert not all(torch.equal(value, weights[8][name]) for name, value in weights[7].items())
    assert (state.left_out.total, state.left_out.in_a_row) == (1, 0)
    assert [record.get("left_out_steps") for record in state.history] == [None, None, 1, None]
    assert state.step == 15
    assert [step for step, _loss in run.heard.losses] == [step for step in range(15) if step != 6]
    of_epoch = [value for step, value in run.heard.losses if 5 <= step < 10]
    assert state.history[2]["train_loss"] == pytest.approx(sum(of_epoch) / 4)
    (note,) = run.notes
    assert note.startswith("step 6 is left out")


def test_rows_that_are_no_numbers_leave_no_trace_in_running_means() -> None:
    train = rows_of(40, seed=1)
    train.numeric[17] = NAN
    state = skipping(train=train, network=NormedNet).whole()
    assert state.left_out.total == 3
    assert all(bool(value.isfinite().all()) for value in weights_of(state.model).values())
    assert state.history[-1]["train_loss"] < state.history[1]["train_loss"]


def test_without_the_policy_the_run_fails() -> None:
    for on_nan in ("stop", "skip"):
        run = LoopRun({"on_nan": on_nan}, spoils=spoilt(6, loss=NAN))
        if on_nan == "skip":
            run.whole()
        else:
            with pytest.raises(DivergedError, match="step 6"):
                run.whole()


def test_too_many_in_a_row_are_an_error_and_others_between_them_are_none() -> None:
    training = {"on_nan": "skip", "epochs": 24}
    run = LoopRun(training, spoils=lambda _state, step: (NAN, 1) if step >= 7 else (1, 1))
    with pytest.raises(DivergedError, match=rf"{MOST_LEFT_OUT} steps in a row.*step 106\. Lower"):
        run.whole()
    run = LoopRun(training, spoils=lambda _state, step: (NAN, 1) if step % 90 else (1, 1))
    state = run.whole()
    assert state.left_out.total == 120 - 2
    # An epoch without a loss.
    assert state.history[2]["train_loss"] is None


@pytest.mark.parametrize("stops", [(6,), (7,), (3, 3, 1, 1)])
def test_a_resume_goes_on_counting(stops: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"spoils": spoilt(5, 6, 11), "network": NormedNet}
    whole, parts = skipping(**options).whole(), skipping(**options).in_parts(*stops)
    assert written(parts) == written(whole)
    assert whole.left_out.total == 3


# --- roll back --------------------------------------------------------------------------------


def too_fast(step: int, rate: float) -> Callable[[TrainState, int], tuple[float, float]]:
    """Spoil a step as long as the rate is not below this."""

    def spoils(state: TrainState, at: int) -> tuple[float, float]:
        return (NAN, 1) if at == step and state.learning_rate() >= rate else (1, 1)

    return spoils


def rolling(step: int = 7, rate: float = 0.01, **training: Any) -> LoopRun:
    return LoopRun(
        {"on_nan": "roll_back", "optimizer": ADAM, "epochs": 4, **training},
        spoils=too_fast(step, rate),
    )


def test_the_epoch_is_repeated_with_half_the_rate_and_the_same_rows() -> None:
    run = rolling()
    state = run.whole()
    # Twice, since the rate has to fall below 0.01: 0.02, 0.01, 0.005.
    assert state.rolled_back == [
        {"epoch": 1, "step": 7, "share": 0.5},
        {"epoch": 1, "step": 7, "share": 0.25},
    ]
    assert [record["lr"] for record in state.history] == [0.02, 0.02, 0.005, 0.005, 0.005]
    assert [record["epoch"] for record in state.history] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in state.history] == [0, 5, 10, 15, 20]
    assert (state.step, state.undone) == (20, 6)
    rows: dict[int, list[Tensor]] = {}
    for step, numeric_BF in run.seen:
        rows.setdefault(step, []).append(numeric_BF)
    # 5 and 6 three times, 7 at least as often; some more until the losses are read.
    assert [len(rows[step]) for step in (4, 5, 6, 7, 10)] == [1, 3, 3, 3, 1]
    for each in rows.values():
        assert all(torch.equal(each[0], other) for other in each)
    assert [note.partition(";")[0] for note in run.notes] == ["the training diverged in step 7"] * 2


def test_what_follows_is_the_training_that_had_that_rate_from_that_epoch_on() -> None:
    rolled = rolling().whole()
    run = LoopRun({"optimizer": ADAM, "epochs": 4})
    state = run.new_state()
    run.go(state, StopAfter(5))
    state.schedule.scale_to(0.25)
    run.go(state)
    for name, value in weights_of(state.model).items():
        assert torch.equal(value, weights_of(rolled.model)[name])
    assert state.history == rolled.history


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "step", "every_epochs": 1, "factor": 0.5},
        {"kind": "cosine"},
        {"kind": "plateau", "patience": 0, "factor": 0.5},
    ],
)
def test_schedules_go_on_from_a_rate_that_is_scaled(schedule: dict[str, Any]) -> None:
    rates = {
        which: [record["lr"] for record in run.whole().history]
        for which, run in {
            "plain": LoopRun({"optimizer": ADAM, "epochs": 4, "schedule": schedule}),
            "rolled": rolling(12, 0.003, schedule=schedule),
        }.items()
    }
    assert rates["plain"][:3] == rates["rolled"][:3]
    if schedule["kind"] != "plateau":
        shares = {
            rolled / plain
            for plain, rolled in zip(rates["plain"][3:], rates["rolled"][3:], strict=True)
            if plain > 0
        }
        assert len(shares) == 1
        assert shares.pop() in {0.5, 0.25}


@dataclass
class Saver:
    """Keeps the snapshots, and reads each to the end as the writer of checkpoints does."""

    saved: list[Snapshot]
    is_idle: bool = True

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        snapshot.to_bytes()
        self.saved.append(snapshot)


def kept(run: LoopRun) -> tuple[TrainState, list[Snapshot]]:
    """A whole training that is saved after each step."""
    saver = Saver([])
    rules = CheckpointSpec(every_steps=1, every_seconds=None)
    state = run.new_state()
    assert run.go(state, StateKeeper(rules, OneRank(), saver, lambda: False))
    return state, saver.saved


@pytest.mark.parametrize("ema", [None, {"decay": 0.9}])
def test_a_resume_from_any_checkpoint_before_during_and_after_is_the_same_bytes(ema: Any) -> None:
    whole = rolling(ema=ema).whole()
    state, saved = kept(rolling(ema=ema))
    assert written(state) == written(whole)
    places = [snapshot.place for snapshot in saved]
    # Checkpoints go by a number that a roll-back does not turn back.
    assert places == sorted(set(places))
    assert len(whole.rolled_back) == 2
    assert len(places) == 20 + 2 + 2
    for snapshot in saved[3:15:2]:
        run = rolling(ema=ema)
        other = run.new_state()
        other.load_bytes(*snapshot.to_bytes(), where="memory")
        assert run.go(other)
        assert written(other) == written(whole)


def test_a_run_that_really_diverges_is_saved_by_smaller_rates() -> None:
    def training(on_nan: str) -> LoopRun:
        return LoopRun(
            {
                "on_nan": on_nan,
                "epochs": 1,
                "batch_size": 50,
                "optimizer": {"kind": "sgd", "lr": 1.4},
            },
            train=rows_of(7500, seed=1),
            network=LineNet,
        )

    with pytest.raises(DivergedError):
        training("stop").whole()
    run = training("roll_back")
    state, saved = kept(run)
    assert 1 <= len(state.rolled_back) <= MOST_ROLL_BACKS
    assert state.history[-1]["valid_loss"] < 0.1 * state.history[0]["valid_loss"]
    other = training("roll_back").new_state()
    middle = saved[len(saved) // 3]
    other.load_bytes(*middle.to_bytes(), where="memory")
    run.go(other)
    assert written(other) == written(state)


class LineNet(nn.Module):
    """One weight for each of three features; the loss is a bowl."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.line(numeric_BF)


def test_after_five_times_the_run_fails() -> None:
    run = rolling(rate=0.0)
    with pytest.raises(DivergedError, match=rf"step 7 .*half the learning rate {MOST_ROLL_BACKS}"):
        run.whole()
    assert len(run.notes) == MOST_ROLL_BACKS


def test_validation_that_is_no_number_rolls_back_too() -> None:
    class Bursting(LineNet):
        """Its outputs leave the numbers where its weights are too large."""

        def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
            outputs_BK = super().forward(numeric_BF, codes_BC)
            too_large = not self.training and float(self.line.weight.detach().abs().max()) > 0.5
            return outputs_BK * INF if too_large else outputs_BK

    run = LoopRun(
        {"on_nan": "roll_back", "optimizer": {"kind": "sgd", "lr": 0.2}, "epochs": 1},
        network=Bursting,
    )
    state = run.whole()
    assert state.rolled_back[0]["epoch"] == 0
    assert [record["epoch"] for record in state.history] == [0, 1]


def test_an_error_that_one_rank_alone_knows_of_is_not_rolled_back() -> None:
    run = rolling(rate=INF)

    def fails(state: TrainState) -> None:
        if state.step == 7:
            raise DivergedError("the checkpoint holds a weight that is no number")

    with pytest.raises(DivergedError, match="the checkpoint holds"):
        run.go(run.new_state(), StopAfter(looks=fails))


def test_only_the_policy_that_needs_it_keeps_an_anchor() -> None:
    assert LoopRun({}).whole().anchor is None
    names = rolling().whole().snapshot().tensors
    assert any(name.startswith("anchor/model/") for name in names)
