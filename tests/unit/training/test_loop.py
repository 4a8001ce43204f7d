"""The loop against a worker that is made up: what it counts, keeps, and leaves alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import ArtifactError, DivergedError, InterruptedRunError, TrainingError
from batchtrain.models.early_stop import EarlyStop
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.row_order import RowOrder
from batchtrain.spec.optimizers import Adam, Sgd
from batchtrain.spec.run import ResourcesSpec
from batchtrain.spec.training import TrainingSpec
from batchtrain.training import loop, machine
from batchtrain.training.loop import StepLosses, train_until_done
from batchtrain.training.machine import choose_machine, machine_in_force
from batchtrain.training.plan import TrainingPlan, auto_batch_rows, make_plan
from batchtrain.training.ranks import OneRank
from batchtrain.training.state import TrainState, weights_of
from batchtrain.training.worker import ResidentWorker, Share
from tests.support.builders import quantity_table, run, spec_for, stop_training


class LineNet(nn.Module):
    """One weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.line(self.dropout(numeric_BF))


class FakeWorker:
    """Serves batches of made-up rows, all epochs the same."""

    def __init__(self, train: Sequence[Batch], valid: Sequence[Batch]) -> None:
        self.device = torch.device("cpu")
        self.ranks = OneRank()
        self.splits = {"train": train, "valid": valid}
        self.asked: list[tuple[int, int]] = []
        self.seeds: list[int] = []

    def wrap(self, model: nn.Module, loss: Loss) -> nn.Module:
        return model

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        self.asked.append((epoch, first_step))
        rest = self.splits["train"][first_step:]
        return (Share([batch], len(batch.target_B)) for batch in rest)

    def gradient(self, model: nn.Module, loss: Loss, share: Share, step: int) -> Tensor:
        self.seeds.append(step)
        torch.default_generator.manual_seed(step)
        (batch,) = share.batches
        value = loss(model(batch.numeric_BF, batch.codes_BC), batch)
        value.backward()
        return value.detach()

    def loss_divisor(self, global_rows: int) -> float:
        return 1

    def split_blocks(self, split: str) -> Iterator[tuple[int, Batch]]:
        return iter(enumerate(self.splits[split]))


class StopAt:
    """Keeps nothing and stops after so many steps, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        if state.step == self.step:
            losses.flush()
        return state.step != self.step


class Heard:
    """Remembers all that a watcher hears."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.records: list[dict[str, Any]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.state: TrainState | None = None

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        for step, loss in enumerate(losses, first_step):
            assert step not in self.losses
            self.losses[step] = loss

    def epoch_done(self, record: dict[str, Any]) -> None:
        self.records.append(dict(record))
        if self.state is not None:
            self.weights.append(weights_of(self.state.model))


def batches(*sizes: int, seed: int = 0, slope: float = 2.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        numeric = torch.randn(size, 1, generator=generator)
        target = slope * numeric[:, 0] + torch.randn(size, generator=generator)
        made.append(Batch(numeric, torch.empty(size, 0, dtype=torch.int64), target))
    return made


def new_state(
    spec: Any = None, *, stop: EarlyStop | None = None, dropout: bool = False
) -> TrainState:
    torch.default_generator.manual_seed(0)
    model = LineNet()
    model.dropout.p = 0.5 if dropout else 0.0
    optimizer = build_optimizer(spec or Sgd(kind="sgd", lr=0.05), model.parameters(), fused=True)
    return TrainState(model, optimizer, build_schedule(None, optimizer, 10), stop)


def plan_of(train: Sequence[Batch], epochs: int) -> TrainingPlan:
    rows = sum(len(batch.target_B) for batch in train)
    return TrainingPlan(order_of(rows), len(train[0].target_B), epochs)


def go(
    state: TrainState,
    worker: FakeWorker,
    epochs: int,
    heard: Heard | None = None,
    stop_at: int = 0,
) -> tuple[bool, Heard]:
    heard = heard or Heard()
    plan = plan_of(worker.splits["train"], epochs)
    measured = ["valid"] if worker.splits["valid"] else []
    done = train_until_done(state, worker, plan, make_loss("mse"), heard, StopAt(stop_at), measured)
    return done, heard


def written(state: TrainState) -> tuple[bytes, bytes]:
    return state.snapshot().to_bytes()


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """These tests draw weights; a test must not change what the next one draws."""
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_loss_of_an_epoch_is_that_of_its_rows_with_a_short_last_batch() -> None:
    train = batches(4, 4, 1)
    # So slow that the weights stay as they are.
    state = new_state(Sgd(kind="sgd", lr=1e-30))
    _done, heard = go(state, FakeWorker(train, batches(3, 2, seed=1)), epochs=2)
    errors = [
        (state.model.line(batch.numeric_BF)[:, 0] - batch.target_B).square().detach()
        for batch in train
    ]
    assert heard.records[1]["train_loss"] == pytest.approx(float(torch.cat(errors).mean()))
    assert heard.losses[2] == pytest.approx(float(errors[2].mean()))
    assert state.loss_rows == 0


def test_epoch_0_is_the_untrained_model_and_each_epoch_has_one_record() -> None:
    state = new_state()
    worker = FakeWorker(batches(4, 3), batches(5, seed=1))
    done, heard = go(state, worker, epochs=3)
    assert done
    assert [record["epoch"] for record in state.history] == [0, 1, 2, 3]
    assert [record["step"] for record in state.history] == [0, 2, 4, 6]
    assert state.history[0]["train_loss"] is None
    assert state.history == heard.records
    assert sorted(heard.losses) == list(range(6))
    assert worker.seeds == list(range(6))
    assert worker.asked == [(0, 0), (1, 0), (2, 0)]
    assert (state.epoch, state.step) == (3, 6)
    # A call after the last epoch does nothing.
    before = written(state)
    assert go(state, worker, epochs=3)[0]
    assert written(state) == before
    assert len(worker.seeds) == 6


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_stop_comes_back_between_two_steps_and_the_next_call_goes_on(stop_at: int) -> None:
    train, valid = batches(4, 3), batches(5, seed=1)
    whole = new_state(Adam(kind="adam", lr=0.1), dropout=True)
    _done, expected = go(whole, FakeWorker(train, valid), epochs=3)
    state = new_state(Adam(kind="adam", lr=0.1), dropout=True)
    done, heard = go(state, FakeWorker(train, valid), epochs=3, stop_at=stop_at)
    assert not done
    assert state.step == stop_at
    copy = new_state(Adam(kind="adam", lr=0.1), dropout=True)
    copy.load_bytes(*written(state), where="here")
    worker = FakeWorker(train, valid)
    done, heard = go(copy, worker, epochs=3, heard=heard)
    assert done
    assert worker.asked[0] == divmod(stop_at, 2)
    assert written(copy) == written(whole)
    assert heard.losses == expected.losses
    assert heard.records == expected.records


@pytest.mark.parametrize("flush", [1, 2, 3, 64])
def test_where_losses_are_read_changes_nothing(monkeypatch: pytest.MonkeyPatch, flush: int) -> None:
    monkeypatch.setattr(loop, "FLUSH_STEPS", flush)
    state = new_state()
    _done, heard = go(state, FakeWorker(batches(4, 4, 4, 4, 1), batches(5, seed=1)), epochs=2)
    monkeypatch.setattr(loop, "FLUSH_STEPS", 5)
    other = new_state()
    _done, expected = go(other, FakeWorker(batches(4, 4, 4, 4, 1), batches(5, seed=1)), epochs=2)
    assert written(state) == written(other)
    assert heard.losses == expected.losses


def test_the_best_weights_are_those_of_the_epoch_with_the_lowest_validation_loss() -> None:
    heard = Heard()
    # A slope that validation contradicts: it gets better, passes, and gets worse.
    heard.state = state = new_state(Sgd(kind="sgd", lr=0.05))
    worker = FakeWorker(batches(8, 8, slope=3.0), batches(40, seed=1, slope=1.0))
    go(state, worker, epochs=12, heard=heard)
    losses = [record["valid_loss"] for record in state.history]
    best = int(np.argmin(losses[1:])) + 1
    assert 1 < best < 12
    assert state.best_epoch == best
    for name, value in state.best[0].weights.items():
        assert torch.equal(value, heard.weights[best][name])
        assert not torch.equal(value, heard.weights[12][name])


def test_without_validation_the_last_weights_are_kept() -> None:
    # The rate is too high, so that the training loss rises.
    state = new_state(Sgd(kind="sgd", lr=2.0))
    go(state, FakeWorker(batches(8, 8), []), epochs=4)
    losses = [record["train_loss"] for record in state.history[1:]]
    assert int(np.argmin(losses)) < 3
    assert state.best_epoch == 4
    kept, last = state.kept_weights(), weights_of(state.model)
    assert all(torch.equal(kept[name], last[name]) for name in last)


def test_early_stopping_ends_the_run_and_a_later_call_does_not_wake_it() -> None:
    state = new_state(stop=EarlyStop(2))
    worker = FakeWorker(batches(8, 8, slope=3.0), batches(40, seed=1, slope=1.0))
    done, _heard = go(state, worker, epochs=50)
    assert done
    assert state.stopped
    assert state.epoch == state.best_epoch + 2
    before = written(state)
    assert go(state, worker, epochs=50)[0]
    assert written(state) == before


@pytest.mark.parametrize("bad", [0, 1, 4])
@pytest.mark.parametrize("flush", [1, 3, 64])
def test_r23_a_loss_that_is_no_number_names_its_step_and_epoch(
    monkeypatch: pytest.MonkeyPatch, bad: int, flush: int
) -> None:
    monkeypatch.setattr(loop, "FLUSH_STEPS", flush)
    train = batches(4, 4, 4, 4, 4, 4)
    train[bad] = replace(train[bad], target_B=train[bad].target_B * float("nan"))
    state = new_state()
    with pytest.raises(DivergedError, match=rf"found nan in step {bad} \(epoch 1\).*lr"):
        go(state, FakeWorker(train, batches(5, seed=1)), epochs=2)
    assert state.best_epoch == 0


def test_a_stop_request_never_commits_a_state_whose_loss_is_no_number() -> None:
    train = batches(4, 4)
    train[0] = replace(train[0], target_B=train[0].target_B * float("inf"))
    with pytest.raises(DivergedError, match="step 0"):
        go(new_state(), FakeWorker(train, batches(5, seed=1)), epochs=2, stop_at=1)


def test_a_learning_rate_of_a_million_diverges_with_advice_and_publishes_nothing(
    tmp_path: Path,
) -> None:
    training = {"epochs": 50, "batch_size": 8, "optimizer": {"kind": "sgd", "lr": 1e6}}
    loaded = spec_for(tmp_path, quantity_table(60), target="y", training=training)
    with pytest.raises(DivergedError, match=r"step \d+ \(epoch 1\).*training\.optimizer\.lr"):
        run(loaded)
    assert not list((tmp_path / "runs" / "small").rglob("manifest.json"))


def test_a_state_of_another_model_or_optimizer_is_refused() -> None:
    class WideNet(LineNet):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 1)

    state = new_state()
    saved = written(state)
    model = WideNet()
    optimizer = build_optimizer(Sgd(kind="sgd"), model.parameters(), fused=True)
    other = TrainState(model, optimizer, build_schedule(None, optimizer, 1), None)
    with pytest.raises(ArtifactError, match=r"here.*another"):
        other.load_bytes(*saved, where="here")
    with pytest.raises(ArtifactError):
        new_state(Adam(kind="adam")).load_bytes(*saved, where="here")


def test_the_weights_that_are_kept_do_not_follow_the_model() -> None:
    state = new_state()
    kept = weights_of(state.model)
    with torch.no_grad():
        state.model.line.weight.add_(1)
    assert not torch.equal(kept["line.weight"], state.model.line.weight)


# ----------------------------------------------------------------------------------------------
# The worker of one process, and the plan.


def order_of(num_rows: int, *, lanes: int = 1, seed: int = 0) -> RowOrder:
    return RowOrder(num_rows, lanes=lanes, shards_per_lane=1, window_rows=10**6, seed=seed)


def rows(num_rows: int) -> SplitRows:
    return SplitRows(
        numeric=np.arange(num_rows, dtype=np.float32)[:, None],
        codes=np.arange(num_rows, dtype=np.int64)[:, None] * 2,
        target=np.arange(num_rows, dtype=np.float64) * 3,
        row_id=np.arange(num_rows, dtype=np.int64),
    )


@pytest.mark.parametrize("gather", [1, 7, 10, 1000])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("batch_rows", [1, 4, 23, 50])
def test_d01_a_worker_serves_the_global_batches_of_the_order(
    gather: int, lanes: int, batch_rows: int
) -> None:
    num_rows = 23
    plan = TrainingPlan(order_of(num_rows, lanes=lanes, seed=5), batch_rows, epochs=2)
    worker = ResidentWorker(
        plan, {"train": rows(num_rows)}, torch.device("cpu"), gather_rows=gather
    )
    for epoch in (0, 1):
        order = plan.order.epoch(epoch)
        served = [share.batches[0] for share in worker.shares(epoch, 0)]
        assert len(served) == plan.steps_per_epoch
        for step, batch in enumerate(served):
            expected = order[step * batch_rows : (step + 1) * batch_rows]
            assert batch.numeric_BF[:, 0].tolist() == expected.tolist()
            assert batch.codes_BC[:, 0].tolist() == (expected * 2).tolist()
            assert batch.target_B.tolist() == (expected * 3).tolist()
        for first in range(plan.steps_per_epoch + 1):
            rest = [share.batches[0] for share in worker.shares(epoch, first)]
            assert len(rest) == plan.steps_per_epoch - first
            for batch, whole in zip(rest, served[first:], strict=True):
                assert torch.equal(batch.numeric_BF, whole.numeric_BF)
                # The bits of a product depend on where its rows lie.
                assert batch.numeric_BF.data_ptr() % 64 == whole.numeric_BF.data_ptr() % 64


def test_a_worker_serves_every_row_of_a_split_once_in_order() -> None:
    plan = TrainingPlan(order_of(5), 2, 1)
    splits = {"train": rows(5), "valid": rows(20)}
    worker = ResidentWorker(plan, splits, torch.device("cpu"), gather_rows=8)
    served = [batch.target_B for _number, batch in worker.split_blocks("valid")]
    assert torch.cat(served).tolist() == [float(3 * row) for row in range(20)]
    assert served[0].dtype == torch.float32


def test_dropout_draws_by_the_global_step_and_the_runs_seed_alone() -> None:
    def draws(seed: int, step: int) -> list[float]:
        plan = TrainingPlan(order_of(5, seed=seed), 2, 1)
        worker = ResidentWorker(plan, {"train": rows(5)}, torch.device("cpu"))
        drawn: list[float] = []

        class Drawing(nn.Linear):
            def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
                drawn.extend(torch.rand(4).tolist())
                return super().forward(numeric_BF)

        share = next(worker.shares(0, 0))
        worker.gradient(Drawing(1, 1), make_loss("mse"), share, step)
        return drawn

    assert draws(1, 7) == draws(1, 7)
    assert len({tuple(draws(seed, step)) for seed in (1, 2) for step in range(20)}) == 40


@pytest.mark.parametrize(
    ("num_rows", "batch"),
    [(1, 32), (1279, 32), (1280, 32), (2559, 32), (2560, 64), (40_000, 512), (10**7, 1024)],
)
def test_the_automatic_batch_is_a_fortieth_of_the_rows_as_a_power_of_two(
    num_rows: int, batch: int
) -> None:
    assert auto_batch_rows(num_rows) == batch


@pytest.mark.parametrize(
    ("asked", "rows_per_batch", "steps"),
    [("full", 70, 1), ("auto", 32, 3), (70, 70, 1), (69, 69, 2)],
)
def test_a_plan_resolves_the_batch_size(asked: Any, rows_per_batch: int, steps: int) -> None:
    order = order_of(70, lanes=2, seed=3)
    plan = make_plan(TrainingSpec(batch_size=asked, epochs=9), order)
    assert plan == TrainingPlan(order, rows_per_batch, 9)
    assert plan.steps_per_epoch == steps


# ----------------------------------------------------------------------------------------------
# The machine.


def global_state() -> tuple[Any, ...]:
    """Whatever a caller of the library may have set."""
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002  # to see that it is left alone
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_leaves_torchs_global_state_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    # The call itself imports a second of compilers.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, **named: None)
    loaded = spec_for(
        tmp_path, quantity_table(60), target="y", resources={"cpus_per_worker": threads}
    )
    torch.default_generator.manual_seed(99)
    before = global_state()
    stop_training(loaded, 2)
    assert global_state() == before
    run(loaded)
    assert global_state() == before
    assert run(loaded).stages[-1].status == "reused"
    assert global_state() == before


def test_the_callers_choices_come_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    on = {"mode": True, "warn_only": True}

    def use(mode: bool, *, warn_only: bool = False) -> None:
        on.update(mode=mode, warn_only=warn_only)

    monkeypatch.setattr(torch, "use_deterministic_algorithms", use)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: on["mode"])
    monkeypatch.setattr(
        torch, "is_deterministic_algorithms_warn_only_enabled", lambda: on["warn_only"]
    )
    choices = replace(choose_machine(ResourcesSpec()), threads=2)
    threads = torch.get_num_threads()

    def stopped_inside() -> None:
        with machine_in_force(choices):
            assert torch.get_num_threads() == 2
            assert on == {"mode": True, "warn_only": False}
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        stopped_inside()
    assert torch.get_num_threads() == threads
    assert on == {"mode": True, "warn_only": True}


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    assert choose_machine(ResourcesSpec(device="auto")).device == "cpu"
    with pytest.raises(TrainingError, match=r"resources\.device.*Use `device: auto`"):
        choose_machine(ResourcesSpec(device="cuda"))
