"""Ranks that cut their rows into pieces: the gradient of the whole batch, and no deadlock."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import TrainingError
from batchtrain.models.losses import make_loss
from batchtrain.pipeline import run_spec
from batchtrain.row_order import RowOrder
from batchtrain.spec.run import Determinism
from batchtrain.testing.gloo import run_gloo
from batchtrain.testing.processes import Report
from batchtrain.testing.training import GlooWorker
from batchtrain.training.gradients import GradientRules
from batchtrain.training.plan import TrainingPlan
from batchtrain.training.ranks import GlooRanks, Ranks
from batchtrain.training.worker import ResidentWorker, Share
from tests.support.ranks import Told, custom_spec

pytestmark = pytest.mark.fault

CLASS_WEIGHTS = (0.5, 2.0, 0.0)


def rows_of(num_rows: int, *, has_weights: bool) -> SplitRows:
    random = np.random.default_rng(num_rows)
    # Every third row weighs nothing, so that some parts of a batch do.
    weights = np.where(np.arange(num_rows) % 3, random.random(num_rows), 0).astype(np.float32)
    return SplitRows(
        numeric=random.normal(0, 1, (num_rows, 4)).astype(np.float32),
        codes=np.empty((num_rows, 0), dtype=np.int64),
        target=random.integers(0, 3, num_rows),
        row_id=np.arange(num_rows),
        weight=weights if has_weights else None,
    )


class DoubleNet(nn.Module):
    """In float64, so that a difference is one of arithmetic and not of rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        return self.layers(numeric_BF.double())


def worker_of(
    rows: SplitRows,
    ranks: Ranks | None,
    batch_rows: int,
    determinism: Determinism,
    micro_rows: int | None,
) -> ResidentWorker:
    order = RowOrder(len(rows), lanes=7, shards_per_lane=1, window_rows=10**6, seed=5)
    return ResidentWorker(
        TrainingPlan(order, batch_rows, epochs=2),
        {"train": rows},
        torch.device("cpu"),
        ranks=ranks,
        gather_rows=16,
        determinism=determinism,
        rules=GradientRules(micro_rows=micro_rows),
    )


def gradient_of(
    worker: ResidentWorker, model: nn.Module, wrapped: nn.Module, loss: Any, share: Share
) -> tuple[Tensor, list[float]]:
    for parameter in model.parameters():
        parameter.grad = None
    losses = worker.gradient(wrapped, loss, share, 3)
    flat_P = torch.cat(
        [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    )
    return flat_P, losses.reshape(-1).tolist()


def differ_from_one(
    ranks: GlooRanks, report: Report, *, determinism: Determinism
) -> dict[str, float]:
    """How far the pieces of all ranks are from the whole batch of one process, at most."""
    found = {"gradient": 0.0, "loss": 0.0, "steps": 0.0, "uneven": 0.0}
    for has_weights in (False, True):
        loss = make_loss(
            "cross_entropy",
            class_weights=CLASS_WEIGHTS if has_weights else None,
            row_weights=has_weights,
        )
        # The last of these leaves some ranks without a row.
        for num_rows, batch_rows, micro_rows in ((65, 16, 3), (65, 64, 5), (7, 2, 1)):
            rows, model = rows_of(num_rows, has_weights=has_weights), DoubleNet()
            alone = worker_of(rows, None, batch_rows, "order", None)
            mine = worker_of(rows, ranks, batch_rows, determinism, micro_rows)
            wrapped = mine.wrap(model, loss)
            for whole, share in zip(alone.shares(0, 0), mine.shares(0, 0), strict=True):
                expected_P, (expected,) = gradient_of(alone, model, model, loss, whole)
                found_P, losses = gradient_of(mine, model, wrapped, loss, share)
                added = sum(sum(each) for each in ranks.gather(losses))
                mean = added / mine.loss_divisor(share.global_rows)
                apart = float((found_P - expected_P).abs().max())
                found["gradient"] = max(found["gradient"], apart)
                found["loss"] = max(found["loss"], abs(mean - expected))
                found["steps"] += 1
                pieces = ranks.gather(-(-len(share.batches[0].target_B) // micro_rows))
                found["uneven"] += len(set(pieces)) > 1
    return found


@pytest.mark.parametrize(
    ("size", "determinism"),
    [
        (3, "order"),
        (3, "canonical"),
        pytest.param(2, "order", marks=pytest.mark.long),
        pytest.param(2, "canonical", marks=pytest.mark.long),
    ],
)
def test_p2_d05_the_pieces_of_all_ranks_add_up_to_the_gradient_of_the_batch(
    size: int, determinism: Determinism
) -> None:
    for found in run_gloo(partial(differ_from_one, determinism=determinism), size):
        assert found["steps"] > 20
        # Ranks with another number of pieces are what a deadlock would come of.
        assert determinism == "canonical" or found["uneven"] > 0
        assert found["gradient"] <= 1e-12
        assert found["loss"] <= 1e-12


class Forgetful(DoubleNet):
    """Leaves out its second layer in the last piece of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 3).double()
        self.forwards = 0

    def forward(self, numeric_BF: Tensor, codes_BC: Tensor) -> Tensor:
        self.forwards += 1
        outputs_BK = super().forward(numeric_BF, codes_BC)
        # The first three come before the first step.
        if self.forwards > 3 and self.forwards % 2 == 1:
            return outputs_BK
        return outputs_BK + self.second(numeric_BF.double())


def forget(ranks: GlooRanks, report: Report) -> str:
    rows, model, loss = rows_of(70, has_weights=False), Forgetful(), make_loss("cross_entropy")
    # 30 and 40 rows in two pieces each, so that all ranks come to the same.
    worker = worker_of(rows, ranks, 70, "order", 20)
    wrapped = worker.wrap(model, loss)
    try:
        gradient_of(worker, model, wrapped, loss, next(worker.shares(0, 0)))
    except TrainingError as error:
        return str(error)
    return ""


def test_a_last_piece_that_does_not_use_a_parameter_is_found_out() -> None:
    for said in run_gloo(forget, 2):
        assert "expected every forward to use the parameters that the first one used" in said


GREEDY = '''
"""A network for which memory runs out where it is given more than so many rows at once."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.num_numeric, 6), nn.Tanh(), nn.Linear(6, inputs.num_outputs)
        )

    def forward(self, numeric_BF, codes_BC):
        if self.training and len(numeric_BF) > {most}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layers(numeric_BF)
'''


def train_greedy(folder: Path, most: int, told: Told) -> Mapping[str, Any]:
    training = {"epochs": 3, "batch_size": 12, "checkpoint": {"every_steps": 2}}
    loaded = custom_spec(folder, GREEDY.replace("{most}", str(most)), training=training)
    module = loaded.spec.model.target.partition(":")[0]  # type: ignore[union-attr]
    result = run_spec(
        loaded, last="train", launcher=GlooWorker(2), progress=told, allow_code=[module]
    )
    assert result.trained is not None
    machine = result.trained.machine()
    return {"micro_rows": machine["micro_rows"], "history": result.trained.history()}


def test_memory_that_runs_out_on_the_ranks_halves_the_rows_of_all_and_keeps_the_curve(
    tmp_path: Path,
) -> None:
    told, silent = Told(), Told()
    # Six rows on each rank, then three, then two.
    found = train_greedy(tmp_path / "short", 2, told)
    whole = train_greedy(tmp_path / "ample", 10**6, silent)
    assert (found["micro_rows"], whole["micro_rows"]) == (2, None)
    assert len([note for note in told.notes if "fit into memory" in note]) == 2
    for mine, other in zip(found["history"], whole["history"], strict=True):
        assert mine["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-6)
        if mine["train_loss"] is not None:
            assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
