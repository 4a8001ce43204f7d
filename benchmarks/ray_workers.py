"""Runs a function in workers of Ray Train, for what can only be measured there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchtrain.engines.session import RaySession
from batchtrain.training.ranks import Ranks

__all__ = ["InWorkers", "ray_here", "run_in_workers"]

InWorkers = Callable[[Ranks], Any]
"""Called on every rank; what rank 0 returns is JSON."""


@contextmanager
def ray_here(cpus: int) -> Iterator[None]:
    """A Ray with so many cores, with the settings of a run."""
    with RaySession("local", cpus=cpus) as session:
        session.connect()
        yield


def run_in_workers(function: InWorkers, workers: int) -> Any:
    """Call a function on so many workers of one core each, joined by gloo; what rank 0 returned."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        TorchTrainer(
            _call,
            train_loop_config={"function": function, "answer": str(answer)},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="measured", storage_path=folder),
            torch_config=TorchConfig(backend="gloo"),
        ).fit()
        return json.loads(answer.read_text(encoding="utf-8"))


def _call(config: Mapping[str, Any]) -> None:
    import ray.train
    import torch

    from batchtrain.training.ranks import GlooRanks, OneRank

    torch.set_num_threads(1)
    context = ray.train.get_context()
    ranks: Ranks = GlooRanks() if context.get_world_size() > 1 else OneRank()
    found = config["function"](ranks)
    if ranks.rank == 0:
        Path(config["answer"]).write_text(json.dumps(found), encoding="utf-8")
    ranks.gather("done")
