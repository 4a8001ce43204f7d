"""What the tests of several ranks build on: trainings of small tables, and networks that fail."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import safetensors.torch
from torch import Tensor

from batchtrain.artifacts.claims import read_claims
from batchtrain.artifacts.trained import TrainedModel
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import Determinism
from batchtrain.storage import Storage
from batchtrain.testing.processes import Limits
from batchtrain.testing.training import GlooWorker
from batchtrain.training.lineage import newest_checkpoint
from tests.support.builders import layout_for, mixed_table, quantity_table, spec_for

__all__ = [
    "KILLED_WHEN_SAVED",
    "SAVED_OFTEN",
    "STUCK",
    "OneOf",
    "Told",
    "compared",
    "custom_spec",
    "forwards_before",
    "is_running",
    "last_weights",
    "newest_step",
    "small_spec",
    "telling_pids",
    "train_ranks",
    "wait_until_gone",
]

SAVED_OFTEN = {"every_steps": 2, "every_seconds": None}

KILLED_WHEN_SAVED = "step.optimizer:5:kill"
"""With `SAVED_OFTEN` the checkpoint two steps after the start is published by then: the next one
waits for it, and the step after that for all ranks."""

STUCK = Limits(stuck_seconds=5)

WARM_UP_FORWARDS = 3
"""What `exact_ddp` does before the first step of every start."""

SECONDS_TO_VANISH = 60.0

FAULTY_NET = '''
"""A small network that does what RANK_FAULT asks of one rank in one of its training forwards.

RANK_FAULT is `what:rank:number`; forwards are counted from 1 in each process. Each process leaves
a file named by its pid in the folder RANK_PIDS, and is slow while the file RANK_SLOW is there.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.full_like(gradient, float("inf"))


def strike(what, outputs_BK):
    if what == "nan":
        return outputs_BK * float("nan")
    if what == "infinite_gradient":
        return InfiniteGradient.apply(outputs_BK)
    if what == "raise":
        raise ValueError("these rows are not to my taste")
    if what == "exit":
        sys.exit(0)
    if what == "leave":
        os._exit(0)
    if what == "hang":
        threading.Event().wait()
    raise AssertionError(what)


class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.num_numeric, 6),
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(6, inputs.num_outputs),
        )
        self.forwards = 0
        if not dist.is_initialized():
            return
        if "RANK_PIDS" in os.environ:
            (Path(os.environ["RANK_PIDS"]) / str(os.getpid())).touch()
        if os.environ.get("RANK_FAULT") == f"build:{dist.get_rank()}:0":
            raise ValueError("this machine is not to my taste")

    def forward(self, numeric_BF, codes_BC):
        outputs_BK = self.layers(numeric_BF)
        if not (self.training and dist.is_initialized()):
            return outputs_BK
        self.forwards += 1
        if os.path.exists(os.environ.get("RANK_SLOW", "")):
            time.sleep(0.05)
        what, rank, number = os.environ.get("RANK_FAULT", ":-1:0").split(":")
        if (int(rank), int(number)) == (dist.get_rank(), self.forwards):
            return strike(what, outputs_BK)
        return outputs_BK
'''

_numbers = itertools.count()


def custom_spec(
    folder: Path,
    code: str = FAULTY_NET,
    table: pa.Table | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    **sections: Any,
) -> LoadedSpec:
    """A spec for the class `Net` of some code, in a module that no other test has imported."""
    folder.mkdir(exist_ok=True)
    module = f"ranks_net_{next(_numbers)}"
    (folder / f"{module}.py").write_text(code)
    return spec_for(
        folder,
        quantity_table(60, features=4) if table is None else table,
        target="y",
        model={"kind": "custom", "target": f"{module}:Net"},
        training={"epochs": 3, "batch_size": 8, "checkpoint": SAVED_OFTEN, **(training or {})},
        **sections,
    )


def train_ranks(
    loaded: LoadedSpec,
    size: int = 0,
    *,
    progress: Progress | None = None,
    storage: Storage | None = None,
    **launching: Any,
) -> TrainedModel:
    """Train on so many ranks; on 0 of them, which is the default, in this process."""
    target = getattr(loaded.spec.model, "target", "")
    result = run_spec(
        loaded,
        last="train",
        progress=progress,
        allow_code=[target.partition(":")[0]],
        storage=storage,
        launcher=GlooWorker(size, **launching) if size else None,
    )
    assert result.trained is not None
    return result.trained


def compared(trained: TrainedModel) -> dict[str, str]:
    """What two trainings have alike that are the same to the last bit."""
    files = trained.artifact.manifest.files
    names = ("best.safetensors", "last.safetensors", "history.jsonl", "inexact.json")
    return {
        "state": trained.content["state_sha256"],
        **{name: files[name].sha256 for name in names},
    }


def newest_step(loaded: LoadedSpec) -> int:
    """The step of the latest checkpoint that is whole; 0 where there is none."""
    layout = layout_for(loaded)
    found = newest_checkpoint(layout, read_claims(layout.storage, layout.root), Progress())
    return found.name.step if found else 0


def last_weights(trained: TrainedModel) -> dict[str, Tensor]:
    """The weights after the last step."""
    return safetensors.torch.load(trained.artifact.read("last.safetensors"))


def small_spec(folder: Path, *, epochs: int = 3) -> LoadedSpec:
    """Six steps an epoch, with dropout and Adam, in a folder that is made."""
    folder.mkdir()
    return spec_for(
        folder,
        mixed_table(60),
        training={"epochs": epochs, "batch_size": 8, "checkpoint": SAVED_OFTEN},
    )


def forwards_before(step: int, determinism: Determinism) -> int:
    """The training forwards of rank 1 of 3 before a step, from a start at step 0."""
    if determinism == "order":
        return WARM_UP_FORWARDS + step
    return 3 * step  # it holds three of the eight groups


@dataclass(frozen=True)
class OneOf:
    """One of several ranks that have nothing to say to each other."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        raise AssertionError("serving rows needs no collective")

    def gather_tensor(self, value: Tensor) -> list[Tensor]:
        raise AssertionError("serving rows needs no collective")


@dataclass
class Told(Progress):
    """Remembers what a person is told."""

    epochs: list[int] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def epoch_finished(self, record: Mapping[str, Any], epochs: int) -> None:
        """See `Progress.epoch_finished`."""
        self.epochs.append(record["epoch"])
        self.records.append(dict(record))

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self.notes.append(text)


def is_running(pid: int) -> bool:
    """Whether a process is there and not dead; a dead one may wait for its parent to look."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


@contextmanager
def telling_pids(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which each process of a `FAULTY_NET` leaves its pid; waits until all are gone."""
    folder.mkdir()
    patch.setenv("RANK_PIDS", str(folder))
    yield folder
    told = [int(path.name) for path in folder.iterdir()]
    assert told
    wait_until_gone(told)


def wait_until_gone(pids: list[int]) -> None:
    """Wait for processes that end on their own."""
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.01)
