"""How many ranks a training has, and on what: a decision from the spec and what the cluster has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchtrain.errors import ClusterError
from batchtrain.spec.run import ResourcesSpec

__all__ = ["FEED_ROWS_CPU", "FEED_ROWS_GPU", "Placement", "place_workers"]

FEED_ROWS_CPU = 4096
"""The rows of a batch that feed one rank on CPUs: two ranks with half of 1024 rows each were half
as fast as one, since an exchange of gradients takes longer than the step; with half of 8192 they
were 1.3 times as fast (two cores, gloo, a 128-64 MLP)."""

FEED_ROWS_GPU = 1024
"""The same on GPUs, whose exchange is faster; an estimate."""


@dataclass(frozen=True)
class Placement:
    """The ranks of one attempt.

    Attributes:
        workers: W.
        cpus_per_worker: The cores that each holds.
        gpus_per_worker: The GPUs that each holds, 0 or 1.
        why: One sentence, for the terminal.
    """

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    why: str

    @property
    def backend(self) -> str:
        """What torch.distributed exchanges gradients with; JSON always travels by gloo."""
        return "cpu:gloo,cuda:nccl" if self.gpus_per_worker else "gloo"

    def waiting(self, free: Mapping[str, float]) -> str:
        """What is said while the ranks are not all there."""
        asked = f"{self.workers} workers with {self.cpus_per_worker} CPUs"
        asked += f" and {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        has = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
        return f"waiting for {asked} each; the cluster has {has} free"


def place_workers(
    asked: ResourcesSpec,
    *,
    cpus: float,
    gpus: float,
    most_cpus: float | None = None,
    batch_rows: int,
    num_rows: int,
    most: int | None = None,
) -> Placement:
    """Decide on the ranks.

    Args:
        asked: The `resources` section.
        cpus: All CPU cores of the cluster.
        gpus: All its GPUs.
        most_cpus: The cores of the node that has the most; all of `cpus` where left out.
        batch_rows: B, the rows of a global batch.
        num_rows: N, the rows of the training split.
        most: More ranks than this are of no use.

    Raises:
        ClusterError: If the cluster does not have what is asked for.

    Example:
        >>> place_workers(ResourcesSpec(), cpus=8, gpus=0, batch_rows=256, num_rows=10_000).why
        '1 worker: 256 rows a batch feed no more on CPUs'
    """
    gpus_each = _gpus_each(asked, gpus)
    if most_cpus is not None and asked.cpus_per_worker > most_cpus:
        raise ClusterError(
            f"resources.cpus_per_worker: expected {asked.cpus_per_worker} cores on one node, found "
            f"{most_cpus:g} on the largest. Lower it, or add larger nodes"
        )
    room = int(cpus) // asked.cpus_per_worker
    if gpus_each:
        room = min(room, int(gpus))
    if asked.workers != "auto":
        _require(asked, asked.workers, gpus_each, cpus, gpus)
        return Placement(
            asked.workers, asked.cpus_per_worker, gpus_each, f"{_count(asked.workers)}, as asked"
        )
    if room < 1:
        _require(asked, 1, gpus_each, cpus, gpus)
    feed = FEED_ROWS_GPU if gpus_each else FEED_ROWS_CPU
    fed = max(1, min(batch_rows, num_rows) // feed)
    workers = min(room, fed, most or room)
    device = "GPUs" if gpus_each else "CPUs"
    if workers == fed:
        why = (
            f"{_count(workers)}: {min(batch_rows, num_rows)} rows a batch feed no more on {device}"
        )
    elif workers < room:
        why = f"{_count(workers)}: the most that `determinism: canonical` divides a batch among"
    else:
        why = f"{_count(workers)}: the cluster has no room for more"
    return Placement(workers, asked.cpus_per_worker, gpus_each, why)


def _gpus_each(asked: ResourcesSpec, gpus: float) -> int:
    if asked.gpus_per_worker != "auto":
        return asked.gpus_per_worker
    if asked.device == "cpu":
        return 0
    wanted = 1 if asked.workers == "auto" else asked.workers
    return int(gpus >= wanted or asked.device == "cuda")


def _require(asked: ResourcesSpec, workers: int, gpus_each: int, cpus: float, gpus: float) -> None:
    """Say at once what the cluster can never give, instead of waiting for it."""
    for name, needed, has in (
        ("CPUs", workers * asked.cpus_per_worker, cpus),
        ("GPUs", workers * gpus_each, gpus),
    ):
        if needed > has:
            raise ClusterError(
                f"resources: expected {needed} {name} for {_count(workers)}, found a cluster with "
                f"{has:g}. Lower `resources.workers` or `resources.cpus_per_worker`, or add nodes"
            )


def _count(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"
