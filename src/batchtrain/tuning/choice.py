"""Where a search is carried out: in this process, or by Ray Tune over a machine or a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchtrain.engines.session import ClusterResources
from batchtrain.errors import ClusterError
from batchtrain.spec.run import ResourcesSpec, RunSpec

__all__ = ["FEW_SECONDS", "ExecutorChoice", "UnitResources", "choose_executor", "unit_resources"]

FEW_SECONDS = 60.0
"""A search that one core does in this time is not worth Ray's start: Ray itself takes 3 s to come
up, and each actor as long to import torch."""


@dataclass(frozen=True)
class ExecutorChoice:
    """Where, and why.

    Attributes:
        on_ray: Whether Ray Tune carries it out.
        why: One sentence, for the terminal.
    """

    on_ray: bool
    why: str


@dataclass(frozen=True)
class UnitResources:
    """What one unit holds, and how many there are at a time.

    Attributes:
        cpus: The cores that the actor of a unit holds; 0 where ranks of its own hold them.
        gpus: The GPUs, which may be a fraction.
        concurrent: How many units there are at most.
    """

    cpus: float
    gpus: float
    concurrent: int

    def bundle(self) -> dict[str, float]:
        """What Ray is asked for."""
        # A bundle may not be empty, and one of a thousandth of a core would keep a whole one from
        # the ranks of a trial.
        wanted = {"CPU": self.cpus, "GPU": self.gpus} if self.cpus else {"memory": 2.0**20}
        return {name: amount for name, amount in wanted.items() if amount}


def choose_executor(
    spec: RunSpec, *, seconds: float, is_attached: bool, cores: int
) -> ExecutorChoice:
    """Choose by what the spec asks for, and else by how long the search takes on one core.

    Args:
        spec: The spec of the search.
        seconds: What one core would take for it, as far as can be told.
        is_attached: Whether there is a cluster to join.
        cores: Of this machine.

    Example:
        >>> from batchtrain.spec.data import DataSpec
        >>> spec = RunSpec(version=1, name="a", data=DataSpec(source="a.csv", target="y"))
        >>> choose_executor(spec, seconds=5, is_attached=False, cores=8).on_ray
        False
    """
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    if spec.engine == "embedded":
        return ExecutorChoice(False, "")
    if spec.engine == "ray":
        return ExecutorChoice(True, "trials run on Ray Tune, as asked")
    if workers > 1:
        return ExecutorChoice(True, f"trials run on Ray Tune: each has {workers} workers")
    if is_attached:
        return ExecutorChoice(True, "trials run on Ray Tune, over the cluster")
    if cores > 1 and seconds > FEW_SECONDS:
        return ExecutorChoice(
            True, f"trials run on Ray Tune: one core would take about {seconds:.0f} s for them"
        )
    return ExecutorChoice(False, "")


def unit_resources(
    asked: ResourcesSpec, cluster: ClusterResources, concurrent: int | None
) -> UnitResources:
    """What a unit holds on a cluster, so that units never hold more than there is.

    The ranks of a trial are started together or not at all, and there are never more trials than
    fit with all of their ranks: so none waits for another that waits for it.

    Args:
        asked: The `resources` section.
        cluster: What there is.
        concurrent: How many units there are at most; None for as many as fit. More of them than
            there are cores share these.

    Raises:
        ClusterError: If not even one fits.
    """
    workers = 1 if asked.workers == "auto" else asked.workers
    needed = float(workers * asked.cpus_per_worker)
    gpus_each = _gpus_each(asked, cluster, workers)
    if asked.cpus_per_worker > cluster.most_cpus:
        raise ClusterError(
            f"resources.cpus_per_worker: expected {asked.cpus_per_worker} cores on one node, found "
            f"{cluster.most_cpus:g} on the largest. Lower it, or add larger nodes"
        )
    if needed > cluster.cpus or workers * gpus_each > cluster.gpus:
        raise ClusterError(
            f"resources: expected {needed:g} CPUs and {workers * gpus_each:g} GPUs for one trial, "
            f"found a cluster with {cluster.cpus:g} and {cluster.gpus:g}. Lower "
            "`resources.workers` or `resources.cpus_per_worker`, or add nodes"
        )
    room = math.floor(cluster.cpus / needed)
    if gpus_each:
        room = min(room, math.floor(cluster.gpus / (workers * gpus_each)))
    if workers > 1:
        return UnitResources(0.0, 0.0, min(concurrent or room, room))
    if concurrent is None or concurrent <= room:
        return UnitResources(needed, float(gpus_each), concurrent or room)
    share = room / concurrent
    # Ray counts ten-thousandths.
    return UnitResources(
        math.floor(needed * share * 1e4) / 1e4,
        math.floor(gpus_each * share * 1e4) / 1e4,
        concurrent,
    )


def _gpus_each(asked: ResourcesSpec, cluster: ClusterResources, workers: int) -> int:
    if asked.gpus_per_worker != "auto":
        return asked.gpus_per_worker
    if asked.device == "cpu":
        return 0
    return int(cluster.gpus >= workers or asked.device == "cuda")
