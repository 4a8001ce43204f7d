"""The trainer of Ray Train for one attempt."""

from __future__ import annotations

from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from batchtrain.training.placement import Placement
from batchtrain.training.ray_data import lane_shards
from batchtrain.training.ray_rank import RankConfig, train_ray_rank

__all__ = ["make_trainer"]

NO_RESTARTS: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0}
"""Not even after a preempted node: what to go on from is ours to say."""


def make_trainer(
    config: RankConfig, placement: Placement, folder: str, *, timeout_seconds: float
) -> TorchTrainer:
    """A trainer that runs each rank once, and writes nothing of its own that matters.

    Args:
        config: What the ranks are handed.
        placement: How many, and on what.
        folder: A folder of this machine that Ray Train may write to.
        timeout_seconds: When a collective gives up.
    """
    task = config.task
    resources: dict[str, float] = {"CPU": placement.cpus_per_worker}
    if placement.gpus_per_worker:
        resources["GPU"] = placement.gpus_per_worker
    datasets, data_config = lane_shards(task, placement.workers)
    return _Trainer(
        train_ray_rank,
        train_loop_config={"rank_config": config},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # Ray goes on by itself from a name that it knows.
            name=f"{task.layout.run_id}-{task.claim}-{task.token[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(**NO_RESTARTS),
        ),
        torch_config=TorchConfig(backend=placement.backend, timeout_s=int(timeout_seconds)),
        datasets=datasets,
        dataset_config=data_config,
    )


class _Trainer(TorchTrainer):
    """Starts no process that this training has no use for: each takes a second to import Ray.

    The list of callbacks is not public. Where Ray names them otherwise, all are started.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # What frees the cores of a controller that died: the driver does that itself.
        unused = {"PlacementGroupCleanerCallback"}
        if not self.datasets:
            unused.add("DatasetsCallback")
        created: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in created if type(each).__name__ not in unused]
