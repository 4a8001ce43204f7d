"""The masks of a pack against torch's own dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batchtrain.training.packed import dropout
from batchtrain.training.packed.dropout import DropoutMasks
from batchtrain.training.passes import dropout_seed, seed_dropout

CPU = torch.device("cpu")
WIDTHS = [5, 3, 5, 3]
SEEDS = [1, 1, 2, 1]
SHARES = [[0.25, 0.5] * 2, [0.1, 0.0] * 2, [0.25, 0.5] * 2, [0.0, 0.0] * 2]


def drawn_alone(step: int, rows: int) -> list[Tensor]:
    """What each trial's own dropout layers multiply by, one after the other."""
    masks = [torch.ones(len(SEEDS), rows, width) for width in WIDTHS]
    for number, (seed, shares) in enumerate(zip(SEEDS, SHARES, strict=True)):
        seed_dropout(dropout_seed(seed, 0) + step, CPU)
        for mask, share in zip(masks, shares, strict=True):
            mask[number] = F.dropout(mask[number], share)
    return masks


@pytest.mark.parametrize("is_shared", [True, False])
def test_masks_are_those_of_torch(is_shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "draws_can_be_shared", lambda: is_shared)
    masks = DropoutMasks(SEEDS, SHARES, WIDTHS, CPU)
    with torch.random.fork_rng(devices=[]):
        for step, rows in ((0, 7), (1, 7), (5, 2)):
            found = [mask.clone() for mask in masks.draw(step, rows)]
            expected = drawn_alone(step, rows)
            assert all(map(torch.equal, found, expected))
            assert not torch.equal(found[0][0], found[0][2])


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    assert DropoutMasks([1, 2], [[0.0], [0.0]], [4], CPU).draw(0, 3) == ()


def test_this_build_of_torch_lets_draws_be_shared() -> None:
    assert dropout.draws_can_be_shared()
