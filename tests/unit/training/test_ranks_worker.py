"""The worker of one of several ranks: all of them together do what one alone would do."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import DivergedError, TrainingError
from batchtrain.models.inputs import Batch
from batchtrain.models.losses import Loss, make_loss
from batchtrain.models.optimizers import build_optimizer
from batchtrain.models.schedules import build_schedule
from batchtrain.row_order import RowOrder
from batchtrain.spec.optimizers import Sgd
from batchtrain.spec.run import CANONICAL_GROUPS, Determinism
from batchtrain.spec.training import LossName
from batchtrain.training import loop
from batchtrain.training.loop import StepLosses, measure
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import OneRank, Ranks
from batchtrain.training.state import TrainState
from batchtrain.training.worker import ResidentWorker, Share
from tests.support.ranks import OneOf

CPU = torch.device("cpu")
LONG = 60.0
"""Seconds after which ranks that wait for each other fail."""

CLASSES = 3
LOSSES: list[LossName] = ["mse", "mae", "huber", "cross_entropy", "bce"]


# ----------------------------------------------------------------------------------------------
# Ranks of this process


class ThreadRanks:
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, laid: list[str], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.size = len(laid)
        self._laid = laid
        self._barrier = barrier

    def gather(self, value: Any) -> list[Any]:
        self._laid[self.rank] = json.dumps(value)
        self._barrier.wait()
        found = [json.loads(each) for each in self._laid]
        # Nobody lays down the next value before all have read this one.
        self._barrier.wait()
        return found

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        raise AssertionError("neither losses nor measures travel as tensors")


def together(size: int, rank_does: Callable[[Ranks], Any]) -> list[Any]:
    """What each rank gives; one that raises ends those that wait for it."""
    barrier = threading.Barrier(size, timeout=LONG)
    laid = [""] * size

    def one(rank: int) -> Any:
        try:
            return rank_does(ThreadRanks(rank, laid, barrier))
        except threading.BrokenBarrierError:
            return None
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return [each.result() for each in [threads.submit(one, rank) for rank in range(size)]]


# ----------------------------------------------------------------------------------------------
# Rows


def rows_of(num_rows: int, *, loss: LossName = "mse", seed: int = 0) -> SplitRows:
    """Rows whose first feature and first code say which row it is."""
    random = np.random.default_rng(seed)
    numeric = random.normal(0, 1, (num_rows, 3)).astype(np.float32)
    numeric[:, 0] = np.arange(num_rows)
    classes = {"cross_entropy": CLASSES, "bce": 2}
    target: np.ndarray[Any, Any] = random.normal(5, 2, num_rows)
    if loss in classes:
        target = random.integers(0, classes[loss], num_rows)
    return SplitRows(
        numeric=numeric,
        codes=np.arange(num_rows, dtype=np.int64)[:, None],
        target=target,
        row_id=np.arange(num_rows, dtype=np.int64),
    )


def plan_of(num_rows: int, *, batch_rows: int, lanes: int = 1, seed: int = 7) -> TrainingPlan:
    order = RowOrder(num_rows, lanes=lanes, shards_per_lane=1, window_rows=10**6, seed=seed)
    return TrainingPlan(order, batch_rows, epochs=2)


def workers_of(
    plan: TrainingPlan,
    size: int,
    *,
    gather_rows: int = 16,
    determinism: Determinism = "order",
    **splits: SplitRows,
) -> list[ResidentWorker]:
    rows = {"train": rows_of(plan.order.num_rows), **splits}
    return [
        ResidentWorker(
            plan,
            rows,
            CPU,
            ranks=OneOf(rank, size),
            gather_rows=gather_rows,
            determinism=determinism,
        )
        for rank in range(size)
    ]


def served(batch: Batch) -> list[int]:
    """The rows of a batch that count; there is one row at least, or no step could be taken."""
    assert len(batch.target_B) > 0
    if batch.weight_B is not None:
        assert batch.weight_B.tolist() == [0.0]
        assert len(batch.target_B) == 1
        return []
    return [int(row) for row in batch.numeric_BF[:, 0].tolist()]


# ----------------------------------------------------------------------------------------------
# Batches

WAYS: list[Determinism] = ["order", "canonical"]
SHAPES = [
    pytest.param(num_rows, batch_rows, lanes, id=f"{num_rows} rows by {batch_rows}, {lanes} lanes")
    for num_rows, batch_rows, lanes in [
        (23, 8, 1),
        (23, 8, 4),
        (40, 8, 8),
        (24, 3, 6),
        (7, 7, 2),
        (10, 1, 2),
        (2, 8, 1),
        (1, 1, 1),
    ]
]


@pytest.mark.parametrize("determinism", WAYS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("num_rows", "batch_rows", "lanes"), SHAPES)
def test_d01_d04_the_shares_of_all_ranks_are_the_global_batch(
    num_rows: int, batch_rows: int, lanes: int, size: int, determinism: Determinism
) -> None:
    plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
    workers = workers_of(plan, size, determinism=determinism)
    for epoch in (0, 1):
        order = plan.order.epoch(epoch).tolist()
        shares = [list(worker.shares(epoch, 0)) for worker in workers]
        # A rank that took a step less would let the others wait for ever.
        assert {len(each) for each in shares} == {plan.steps_per_epoch}
        for step in range(plan.steps_per_epoch):
            expected = order[step * batch_rows : (step + 1) * batch_rows]
            of_step = [each[step] for each in shares]
            batches = [batch for share in of_step for batch in share.batches]
            assert len(batches) == (size if determinism == "order" else CANONICAL_GROUPS)
            assert Counter(row for batch in batches for row in served(batch)) == Counter(expected)
            assert {share.global_rows for share in of_step} == {len(expected)}
            for batch in batches:
                assert batch.codes_BC[:, 0].tolist() == batch.numeric_BF[:, 0].tolist()


@pytest.mark.parametrize("determinism", WAYS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("gather_rows", [1, 8, 20, 1000])
def test_a_rank_that_goes_on_in_an_epoch_gets_what_it_would_have_got_in_the_same_place(
    size: int, gather_rows: int, determinism: Determinism
) -> None:
    plan = plan_of(43, batch_rows=8, lanes=4)
    for worker in workers_of(plan, size, gather_rows=gather_rows, determinism=determinism):
        whole = list(worker.shares(0, 0))
        for first in range(plan.steps_per_epoch + 1):
            rest = list(worker.shares(0, first))
            assert [share.global_rows for share in rest] == [
                share.global_rows for share in whole[first:]
            ]
            for share, expected in zip(rest, whole[first:], strict=True):
                for batch, other in zip(share.batches, expected.batches, strict=True):
                    assert torch.equal(batch.numeric_BF, other.numeric_BF)
                    assert served(batch) == served(other)
                    # The last bits of a product depend on where its rows lie.
                    places = [each.numeric_BF.data_ptr() % 64 for each in (batch, other)]
                    assert places[0] == places[1]


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 60),
    batch_rows=st.integers(1, 70),
    lanes=st.integers(1, 9),
    size=st.integers(1, 8),
    gather_rows=st.integers(1, 100),
    epoch=st.integers(0, 3),
    determinism=st.sampled_from(WAYS),
)
def test_d01_every_row_is_served_once_an_epoch_whatever_the_numbers(
    num_rows: int,
    batch_rows: int,
    lanes: int,
    size: int,
    gather_rows: int,
    epoch: int,
    determinism: Determinism,
) -> None:
    plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
    workers = workers_of(plan, size, gather_rows=gather_rows, determinism=determinism)
    found = [
        row
        for worker in workers
        for share in worker.shares(epoch, 0)
        for batch in share.batches
        for row in served(batch)
    ]
    assert sorted(found) == list(range(num_rows))


def test_normalisation_by_batch_is_refused_where_batches_are_divided_and_by_name() -> None:
    plan = plan_of(9, batch_rows=3)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    (alone,) = workers_of(plan, 1)
    assert alone.wrap(model, make_loss("mse")) is model
    divided = [
        workers_of(plan, 2)[0],
        *workers_of(plan, 1, determinism="canonical"),
    ]
    for worker in divided:
        with pytest.raises(TrainingError, match=r"BatchNorm1d in '1'.*LayerNorm"):
            worker.wrap(model, make_loss("mse"))


def test_more_ranks_than_there_are_canonical_groups_are_refused() -> None:
    plan = plan_of(9, batch_rows=3)
    workers_of(plan, CANONICAL_GROUPS, determinism="canonical")
    with pytest.raises(TrainingError, match=r"at most 8 workers.*found 9.*Use fewer workers"):
        workers_of(plan, CANONICAL_GROUPS + 1, determinism="canonical")


# ----------------------------------------------------------------------------------------------
# Gradients


class SmallNet(nn.Module):
    """In float64, so that a difference is one of arithmetic and not of rounding."""

    def __init__(self, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, outputs)
        )
        self.double()

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        outputs_BK: Tensor = self.layers(numeric_BF.to(dtype) / 10)
        return outputs_BK


def small_net(loss: LossName, *, dropout: float = 0.0) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return SmallNet(CLASSES if loss == "cross_entropy" else 1, dropout=dropout)


def gradient(
    worker: ResidentWorker, model: nn.Module, loss: Loss, share: Share, step: int = 0
) -> tuple[Tensor, list[float]]:
    """The gradient that a worker leaves in the parameters, flat, and the losses of its parts."""
    model.zero_grad()
    with torch.random.fork_rng(devices=[]):
        losses = worker.gradient(model, loss, share, step)
    parts = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([part.flatten() for part in parts if part is not None])
    return flat, losses.reshape(-1).tolist()


FEW_ROWS = [(23, 8, 1), (23, 8, 4), (9, 4, 3), (2, 8, 1), (1, 1, 1)]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("num_rows", "batch_rows", "lanes"), FEW_ROWS)
def test_d05_the_mean_of_the_ranks_gradients_is_that_of_the_whole_batch(
    size: int, name: LossName, num_rows: int, batch_rows: int, lanes: int
) -> None:
    plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
    rows = rows_of(num_rows, loss=name)
    model, loss = small_net(name), make_loss(name)
    (alone,) = workers_of(plan, 1, train=rows)
    workers = workers_of(plan, size, train=rows)
    shares = [list(worker.shares(0, 0)) for worker in workers]
    for step, whole in enumerate(alone.shares(0, 0)):
        expected, (expected_loss,) = gradient(alone, model, loss, whole)
        found = [
            gradient(worker, model, loss, each[step])
            for worker, each in zip(workers, shares, strict=True)
        ]
        # As DDP does it: the mean over the ranks.
        mean = torch.stack([part for part, _losses in found]).sum(dim=0) / size
        assert float(expected.abs().max()) > 1e-6
        assert float((mean - expected).abs().max()) <= 1e-10
        total = sum(value for _part, losses in found for value in losses)
        divisor = workers[0].loss_divisor(whole.global_rows)
        assert total / divisor == pytest.approx(expected_loss, abs=1e-12)
        for (part, losses), each in zip(found, shares, strict=True):
            (batch,) = each[step].batches
            if not served(batch):
                assert part.tolist() == [0.0] * len(part)
                assert losses == [0.0]


def test_d05_ranks_without_a_row_occur_among_those() -> None:
    empty = 0
    for num_rows, batch_rows, lanes in FEW_ROWS:
        plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
        for worker in workers_of(plan, 5):
            empty += sum(not served(*share.batches) for share in worker.shares(0, 0))
    assert empty > 10


class CapturedError(Exception):
    """What a rank wants to tell the others is known, and that was all."""


@dataclass
class TurnRanks:
    """One of several ranks that take turns: first each says its part, then each hears all."""

    rank: int
    size: int
    said: dict[int, Tensor]

    def gather(self, value: Any) -> list[Any]:
        raise AssertionError("a gradient needs no other collective")

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        if len(self.said) < self.size:
            self.said[self.rank] = value.clone()
            raise CapturedError
        assert torch.equal(self.said[self.rank], value)
        return [self.said[rank] for rank in range(self.size)]


def canonical_steps(
    plan: TrainingPlan, rows: SplitRows, size: int, name: LossName
) -> list[tuple[bytes, list[float]]]:
    """For each step of an epoch the gradient on every rank, and all losses in their order."""
    model, loss = small_net(name, dropout=0.4).float(), make_loss(name)
    said: dict[int, Tensor] = {}
    workers = [
        ResidentWorker(
            plan, {"train": rows}, CPU, ranks=TurnRanks(rank, size, said), determinism="canonical"
        )
        for rank in range(size)
    ]
    steps = []
    shares = [list(worker.shares(0, 0)) for worker in workers]
    for step in range(plan.steps_per_epoch):
        said.clear()
        for worker, each in zip(workers, shares, strict=True):
            with pytest.raises(CapturedError):
                gradient(worker, model, loss, each[step], step)
        found = [
            gradient(worker, model, loss, each[step], step)
            for worker, each in zip(workers, shares, strict=True)
        ]
        (bits,) = {part.numpy().tobytes() for part, _losses in found}
        steps.append((bits, [value for _part, losses in found for value in losses]))
    return steps


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("num_rows", "batch_rows", "lanes"), [(43, 16, 1), (43, 16, 4), (3, 8, 1)])
def test_r09_canonical_gradients_have_the_same_bits_for_any_number_of_ranks(
    name: LossName, num_rows: int, batch_rows: int, lanes: int
) -> None:
    plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
    rows = rows_of(num_rows, loss=name)
    alone = canonical_steps(plan, rows, 1, name)
    # Steps differ, so that equal ones would be no accident.
    assert len({bits for bits, _losses in alone}) == plan.steps_per_epoch
    for size in range(2, CANONICAL_GROUPS + 1):
        assert canonical_steps(plan, rows, size, name) == alone


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("num_rows", "batch_rows", "lanes"), FEW_ROWS)
def test_the_canonical_gradient_is_that_of_the_whole_batch(
    name: LossName, num_rows: int, batch_rows: int, lanes: int
) -> None:
    plan = plan_of(num_rows, batch_rows=batch_rows, lanes=lanes)
    rows = rows_of(num_rows, loss=name)
    model, loss = small_net(name), make_loss(name)
    (alone,) = workers_of(plan, 1, train=rows)
    canonical = ResidentWorker(plan, {"train": rows}, CPU, ranks=OneRank(), determinism="canonical")
    for share, parts in zip(alone.shares(0, 0), canonical.shares(0, 0), strict=True):
        expected, (expected_loss,) = gradient(alone, model, loss, share)
        found, losses = gradient(canonical, model, loss, parts)
        assert float((found - expected).abs().max()) <= 1e-10
        mean = sum(losses) / canonical.loss_divisor(parts.global_rows)
        assert mean == pytest.approx(expected_loss, abs=1e-12)


def test_dropout_draws_apart_on_each_rank_and_step_and_as_ever_on_the_first_rank() -> None:
    plan = plan_of(9, batch_rows=3)
    drawn: list[tuple[float, ...]] = []

    class Drawing(SmallNet):
        def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
            drawn.append(tuple(torch.rand(4).tolist()))
            return super().forward(numeric_BF, codes_BC)

    model, loss = Drawing(1), make_loss("mse")

    def draws(ranks: Ranks, step: int) -> tuple[float, ...]:
        worker = ResidentWorker(plan, {"train": rows_of(9)}, CPU, ranks=ranks)
        gradient(worker, model, loss, next(worker.shares(0, 0)), step)
        return drawn[-1]

    ranks = [OneOf(rank, 4) for rank in range(4)]
    found = {(rank.rank, step): draws(rank, step) for rank in ranks for step in range(30)}
    assert len(set(found.values())) == 120
    for step in range(30):
        assert found[0, step] == draws(OneRank(), step)
        assert found[1, step] == draws(OneOf(1, 2), step)


# ----------------------------------------------------------------------------------------------
# The losses of the steps


# Nobody looks at the weights; threads must not draw some from torch's one generator at once.
MODELS = [nn.Linear(1, 1, bias=False, device="meta") for _ in range(4)]


def state_of(rank: int) -> TrainState:
    model = MODELS[rank]
    optimizer = build_optimizer(Sgd(kind="sgd"), model.parameters(), fused=False)
    return TrainState(model, optimizer, build_schedule(None, optimizer, 1), None)


class Heard:
    """The losses that a watcher is told."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def steps_done(self, first_step: int, losses: Sequence[float]) -> None:
        self.losses |= dict(enumerate(losses, first_step))

    def epoch_done(self, record: dict[str, Any]) -> None:
        raise AssertionError("no epoch is over")


def add_losses(
    ranks: Ranks, losses: Sequence[Sequence[float]], rows: Sequence[int]
) -> tuple[TrainState, Heard]:
    """Take a rank's losses as the loop does; `losses` holds those of all ranks."""
    state, heard = state_of(ranks.rank), Heard()
    worker = ResidentWorker(plan_of(4, batch_rows=2), {"train": rows_of(4)}, CPU, ranks=ranks)
    taken = StepLosses(state, heard, worker)
    for loss, global_rows in zip(losses[ranks.rank], rows, strict=True):
        state.step += 1
        taken.add(torch.tensor(loss), global_rows)
    taken.flush()
    return state, heard


@pytest.mark.parametrize("flush_steps", [1, 3, 64])
def test_all_ranks_add_up_the_same_losses_wherever_they_read_them(
    monkeypatch: pytest.MonkeyPatch, flush_steps: int
) -> None:
    random = np.random.default_rng(1)
    losses = random.normal(3, 1, (3, 10)).astype(np.float32).tolist()
    rows = [8] * 9 + [3]
    expected = 0.0
    for step in range(10):
        expected += sum(of_rank[step] for of_rank in losses) / 3 * rows[step]
    monkeypatch.setattr(loop, "FLUSH_STEPS", flush_steps)
    found = together(3, lambda ranks: add_losses(ranks, losses, rows))
    assert [state.loss_sum for state, _heard in found] == [expected] * 3
    assert [state.loss_rows for state, _heard in found] == [75] * 3
    means = [sum(of_rank[step] for of_rank in losses) / 3 for step in range(10)]
    assert [heard.losses for _state, heard in found] == [dict(enumerate(means))] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 4, 9])
def test_r23_one_rank_whose_loss_is_no_number_ends_all_in_the_same_step(
    bad: float, at: int
) -> None:
    losses = [[1.0] * 10 for _ in range(4)]
    losses[2][at] = bad

    def rank_does(ranks: Ranks) -> str:
        with pytest.raises(DivergedError) as caught:
            add_losses(ranks, losses, [8] * 10)
        return str(caught.value)

    (said,) = set(together(4, rank_does))
    assert f"in step {at} (epoch 1)" in said


# ----------------------------------------------------------------------------------------------
# Measuring


@settings(max_examples=60)
@given(num_rows=st.integers(1, 60), gather_rows=st.integers(1, 70), size=st.integers(1, 7))
def test_d01_the_blocks_of_all_ranks_are_every_row_once(
    num_rows: int, gather_rows: int, size: int
) -> None:
    plan = plan_of(4, batch_rows=2)
    blocks: dict[int, Batch] = {}
    for worker in workers_of(plan, size, gather_rows=gather_rows, valid=rows_of(num_rows)):
        for number, batch in worker.split_blocks("valid"):
            assert number not in blocks
            blocks[number] = batch
    assert sorted(blocks) == list(range(-(-num_rows // gather_rows)))
    ids = [row for number in sorted(blocks) for row in blocks[number].numeric_BF[:, 0].tolist()]
    assert ids == [float(row) for row in range(num_rows)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("num_rows", "gather_rows"), [(61, 7), (61, 20), (5, 2), (1, 9)])
def test_what_is_measured_is_the_same_to_the_last_bit_for_any_number_of_ranks(
    name: LossName, num_rows: int, gather_rows: int
) -> None:
    plan, loss = plan_of(4, batch_rows=2), make_loss(name)
    splits = {"train": rows_of(4, loss=name), "valid": rows_of(num_rows, loss=name, seed=5)}
    model = small_net(name).float()

    def rank_does(ranks: Ranks) -> str:
        worker = ResidentWorker(plan, splits, CPU, ranks=ranks, gather_rows=gather_rows)
        return json.dumps(measure(copy.deepcopy(model), loss, worker, "valid"))

    alone = rank_does(OneRank())
    for size in (1, 2, 3, 4):
        assert set(together(size, rank_does)) == {alone}
    # It is what a plain computation over all rows gives.
    found = json.loads(alone)
    whole = next(ResidentWorker(plan, splits, CPU, gather_rows=1000).split_blocks("valid"))[1]
    with torch.no_grad():
        outputs_BK = model(whole.numeric_BF, whole.codes_BC)
    assert found["loss"] == pytest.approx(float(loss.sum(outputs_BK, whole)) / num_rows, rel=1e-5)
    assert set(found) == expected_scores(name, num_rows)
    if "r2" in found:
        target = whole.target_B.double()
        residual = (outputs_BK[:, 0].double() - target).square().sum()
        spread = (target - target.mean()).square().sum()
        assert found["r2"] == pytest.approx(float(1 - residual / spread), rel=1e-5)


def expected_scores(name: LossName, num_rows: int) -> set[str]:
    if name in {"cross_entropy", "bce"}:
        return {"loss", "accuracy"}
    # The R2 of one row is undefined.
    return {"loss", "r2"} if num_rows > 1 else {"loss"}


@pytest.mark.parametrize("bad_row", [0, 30, 60])
def test_r23_a_row_that_one_rank_cannot_measure_ends_all_ranks(bad_row: int) -> None:
    plan, loss = plan_of(4, batch_rows=2), make_loss("mse")
    valid = rows_of(61)
    valid.numeric[bad_row, 1] = np.nan
    model = small_net("mse")

    def rank_does(ranks: Ranks) -> str:
        splits = {"train": rows_of(4), "valid": valid}
        worker = ResidentWorker(plan, splits, CPU, ranks=ranks, gather_rows=9)
        with pytest.raises(DivergedError) as caught:
            measure(copy.deepcopy(model), loss, worker, "valid")
        return str(caught.value)

    assert len(set(together(3, rank_does))) == 1
