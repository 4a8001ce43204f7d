"""The shipped examples, each run once for all acceptance tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from batchtrain.pipeline import StageName
from batchtrain.tables import SAMPLES
from tests.support.runs import SPECS, FinishedRun, finish

Example = Callable[..., FinishedRun]
"""`example("line", "seed=1")`: the finished run of jobs/specs/line.yaml with these overrides."""


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples' runs lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def example(storage: Path) -> Example:
    """Run a shipped example, or return the run that an earlier test asked for."""

    @cache
    def run(name: str, *overrides: str, last: StageName = "export") -> FinishedRun:
        return finish(SPECS / f"{name}.yaml", f"storage={storage}", *overrides, last=last)

    return run


@pytest.fixture
def drug200(example: Example) -> FinishedRun:
    """The example that most tests look at."""
    return example("drug200")


@pytest.fixture(scope="session")
def patients() -> pd.DataFrame:
    """The raw rows of drug200."""
    return SAMPLES["drug200"]().to_pandas()


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[[str], Path]:
    """Write the text of a spec into the test's own folder, beside which its data may lie."""

    def write(text: str) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(f"version: 1\nstorage: runs\n{text}")
        return path

    return write


NETWORKS = '''\
"""Networks of a user, for `model.kind: custom`."""

import torch
from torch import nn

CALLS = []


class RawLine(nn.Module):
    """A weight and a bias, as raw parameters."""

    def __init__(self, inputs):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(1))
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, numeric_BF, codes_BC):
        return self.weights * numeric_BF + self.bias


class Witness(nn.Module):
    """Writes down in which mode it was called."""

    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(inputs.num_numeric, inputs.num_outputs)

    def forward(self, numeric_BF, codes_BC):
        CALLS.append((self.training, torch.is_grad_enabled(), len(numeric_BF)))
        return self.linear(numeric_BF)


class Normed(nn.Module):
    """Layers that work differently in training and in evaluation."""

    def __init__(self, inputs, dropout):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.num_numeric, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, inputs.num_outputs),
        )

    def forward(self, numeric_BF, codes_BC):
        return self.layers(numeric_BF)
'''


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `seed_networks`; specs that name its classes lie beside it.

    One folder for the whole session: a process imports a module of one name only once.
    """
    folder = tmp_path_factory.mktemp("networks")
    (folder / "seed_networks.py").write_text(NETWORKS)
    return folder
