"""The ranks together serve the rows, and find the gradient, that one process does."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.models.losses import make_loss
from batchtrain.row_order import RowOrder
from batchtrain.spec.run import Determinism
from batchtrain.testing.gloo import run_gloo
from batchtrain.testing.processes import Report
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import GlooRanks, Ranks
from batchtrain.training.worker import ResidentWorker, Share

pytestmark = pytest.mark.fault

SIZES = [1, 2, 3, 4]


def rows_of(num_rows: int, *, has_classes: bool = False) -> SplitRows:
    """Rows whose first feature says which row it is."""
    random = np.random.default_rng(num_rows)
    numeric = random.normal(0, 1, (num_rows, 4)).astype(np.float32)
    numeric[:, 0] = np.arange(num_rows)
    return SplitRows(
        numeric=numeric,
        codes=random.integers(0, 3, (num_rows, 1)),
        target=random.integers(0, 3, num_rows) if has_classes else random.normal(2, 1, num_rows),
        row_id=np.arange(num_rows),
    )


def worker_of(
    rows: SplitRows,
    ranks: Ranks | None,
    *,
    batch_rows: int,
    lanes: int,
    determinism: Determinism = "order",
) -> ResidentWorker:
    order = RowOrder(len(rows), lanes=lanes, shards_per_lane=1, window_rows=10**6, seed=5)
    plan = TrainingPlan(order, batch_rows, epochs=2)
    return ResidentWorker(
        plan,
        {"train": rows},
        torch.device("cpu"),
        ranks=ranks,
        gather_rows=16,
        determinism=determinism,
    )


def served(share: Share) -> list[int]:
    """The rows of a share that count."""
    return [
        int(row)
        for batch in share.batches
        if batch.weight_B is None
        for row in batch.numeric_BF[:, 0].tolist()
    ]


ROW_CASES = [
    (num_rows, batch_rows, lanes)
    for num_rows in (1, 2, 3, 24, 25, 26, 27, 28, 29)
    for batch_rows in (2, 8)
    for lanes in (1, 4, 7)
]
RESUMED_AT = 2


def serve_rows(ranks: GlooRanks, report: Report) -> list[list[list[int]]]:
    """The rows of each step of the second epoch, and of a resume inside of it, for each case."""
    found = []
    for num_rows, batch_rows, lanes in ROW_CASES:
        worker = worker_of(rows_of(num_rows), ranks, batch_rows=batch_rows, lanes=lanes)
        found.append([served(share) for share in worker.shares(1, 0)])
        assert [served(share) for share in worker.shares(1, RESUMED_AT)] == found[-1][RESUMED_AT:]
    return found


@pytest.mark.parametrize(
    "size", [2, 4, *(pytest.param(size, marks=pytest.mark.long) for size in (1, 3))]
)
def test_p2_d01_every_batch_is_the_rows_that_the_order_gives_it(size: int) -> None:
    of_ranks = run_gloo(serve_rows, size)
    for case, (num_rows, batch_rows, lanes) in enumerate(ROW_CASES):
        order = RowOrder(num_rows, lanes, 1, 10**6, seed=5).epoch(1).tolist()
        for step in range(-(-num_rows // batch_rows)):
            rows = [row for of_rank in of_ranks for row in of_rank[case][step]]
            assert sorted(rows) == sorted(order[step * batch_rows : (step + 1) * batch_rows])


class DoubleNet(nn.Module):
    """In float64, so that a difference is one of arithmetic and not of rounding."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))
        self.unused = nn.Linear(2, 2)
        self.double()

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        embedded_BD = self.embedding(codes_BC[:, 0])
        return self.layers(torch.cat([numeric_BF.double() / 10, embedded_BD], dim=1))


GRADIENT_CASES = [
    (num_rows, batch_rows, lanes)
    for num_rows, batch_rows in ((65, 16), (10, 3), (2, 8))
    for lanes in (1, 7, 64)
]


def differ_from_one(
    ranks: GlooRanks, report: Report, *, determinism: Determinism
) -> dict[str, float]:
    """How far gradients and losses of all ranks are from those of one process, at most."""
    found = {"gradient": 0.0, "loss": 0.0, "least": 1e9}
    for has_classes in (False, True):
        loss = make_loss("cross_entropy" if has_classes else "mse")
        for num_rows, batch_rows, lanes in GRADIENT_CASES:
            rows = rows_of(num_rows, has_classes=has_classes)
            torch.manual_seed(3)
            model = DoubleNet(3 if has_classes else 1)
            alone = worker_of(rows, None, batch_rows=batch_rows, lanes=lanes)
            mine = worker_of(
                rows, ranks, batch_rows=batch_rows, lanes=lanes, determinism=determinism
            )
            wrapped = mine.wrap(model, loss)
            for step, (whole, share) in enumerate(
                zip(alone.shares(0, 0), mine.shares(0, 0), strict=True)
            ):
                expected_P, loss_of_one = gradient_of(alone, model, model, loss, whole, step)
                found_P, losses = gradient_of(mine, model, wrapped, loss, share, step)
                added = sum(sum(each) for each in ranks.gather(losses))
                mean = added / mine.loss_divisor(share.global_rows)
                apart = float((found_P - expected_P).abs().max() / expected_P.abs().max())
                found["gradient"] = max(found["gradient"], apart)
                found["loss"] = max(found["loss"], abs(mean - loss_of_one[0]))
                found["least"] = min(found["least"], float(expected_P.abs().max()))
    return found


def gradient_of(
    worker: ResidentWorker, model: nn.Module, wrapped: nn.Module, loss: Any, share: Share, step: int
) -> tuple[Tensor, list[float]]:
    """The gradient as one row, and the losses of the worker's parts."""
    for parameter in model.parameters():
        parameter.grad = None
    losses = worker.gradient(wrapped, loss, share, step)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, each in gradients.items() if each is None] == [
        "unused.weight",
        "unused.bias",
    ]
    flat = torch.cat([each.flatten() for each in gradients.values() if each is not None])
    return flat, losses.reshape(-1).tolist()


WAYS = [
    pytest.param(size, determinism, marks=[] if size == 3 else pytest.mark.long)
    for size in SIZES
    for determinism in ("order", "canonical")
]


@pytest.mark.parametrize(("size", "determinism"), WAYS)
def test_p2_d05_the_gradient_of_a_step_is_that_of_one_process(
    size: int, determinism: Determinism
) -> None:
    for found in run_gloo(partial(differ_from_one, determinism=determinism), size):
        assert found["least"] > 1e-3
        assert found["gradient"] <= 1e-10
        assert found["loss"] <= 1e-10
