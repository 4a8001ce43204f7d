"""Steps of a user's network on several ranks: what they train is what one process trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from batchtrain.errors import RankLostError
from batchtrain.spec.run import Determinism
from tests.support.ranks import (
    KILLED_WHEN_SAVED,
    compared,
    custom_spec,
    last_weights,
    newest_step,
    train_ranks,
)

pytestmark = pytest.mark.fault

SGD = {"optimizer": {"kind": "sgd", "lr": 0.05}}

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs.num_numeric, 6), nn.Tanh())
        self.head = nn.Linear(6, inputs.num_outputs)
        self.spread = nn.Linear(6, 1)
        self.share = nn.Parameter(torch.ones(()))

    def forward(self, numeric_BF, codes_BC):
        return self.head(self.body(numeric_BF))
"""

OWN_STEP = """
    # Two heads: a value, and how sure it is (Nix and Weigend 1994).
    def train_step(self, batch):
        hidden = self.body(batch.numeric_BF)
        error = (self.head(hidden)[:, 0] - batch.target_B).square()
        log_variance = self.spread(hidden)[:, 0]
        return self.share * 0.5 * (error * torch.exp(-log_variance) + log_variance)
"""

OWN_LOSS = """
    # A parameter of the loss alone: DDP must see it used.
    def loss(self, outputs_BK, batch):
        return self.share.square() * (outputs_BK[:, 0] - batch.target_B).abs()
"""

NOISY_STEP = """
    def train_step(self, batch):
        noisy = batch.numeric_BF + 0.1 * torch.randn_like(batch.numeric_BF)
        return (self(noisy, batch.codes_BC)[:, 0] - batch.target_B).square() * self.share
"""


@pytest.mark.parametrize("determinism", ["order", "canonical"])
@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(OWN_STEP, id="step"),
        pytest.param(OWN_LOSS, id="loss", marks=pytest.mark.long),
    ],
)
def test_p2_two_ranks_with_steps_of_their_own_train_what_one_process_trains(
    tmp_path: Path, methods: str, determinism: Determinism
) -> None:
    found = []
    for size in (0, 2):
        loaded = custom_spec(
            tmp_path / str(size), NET + methods, training=SGD, determinism=determinism
        )
        found.append(train_ranks(loaded, size))

    expected, weights = map(last_weights, found)
    assert set(weights) == set(expected)
    assert "share" in weights
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
    assert expected["share"] != 1
    if determinism == "canonical":
        assert compared(found[0]) == compared(found[1])


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(OWN_STEP, id="two heads", marks=pytest.mark.long),
        pytest.param(NOISY_STEP, id="noise"),
    ],
)
def test_p1_a_training_with_a_step_of_its_own_resumes_to_the_same_bytes(
    tmp_path: Path, methods: str
) -> None:
    found = {}
    for name in ("whole", "killed"):
        loaded = custom_spec(tmp_path / name, NET + methods)
        if name == "killed":
            with pytest.raises(RankLostError):
                train_ranks(loaded, 2, faults={1: KILLED_WHEN_SAVED})
            assert 0 < newest_step(loaded) < 24
        found[name] = train_ranks(loaded, 2)

    assert compared(found["killed"]) == compared(found["whole"])
