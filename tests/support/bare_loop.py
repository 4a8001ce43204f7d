"""The training loop as a tutorial writes it, to hold ours against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batchtrain.row_order import epoch_order
from tests.support.runs import FinishedRun

__all__ = ["bare_loop"]


def bare_loop(
    run: FinishedRun,
    optimizer_of: Callable[[Iterator[nn.Parameter]], Optimizer],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The weights that plain torch learns from a run's start, rows and batches (no dropout)."""
    model = run.fresh_model()
    numeric, codes, target = run.tensors("train")
    optimizer = optimizer_of(model.parameters())
    for epoch in range(run.loaded.spec.training.epochs):
        order = epoch_order(len(target), lanes=1, seed=run.loaded.spec.seed, epoch=epoch)
        for rows in torch.from_numpy(order).split(run.trained.content["batch_rows"]):
            optimizer.zero_grad()
            loss_of(model(numeric[rows], codes[rows]), target[rows]).backward()
            optimizer.step()
    return model.state_dict()
