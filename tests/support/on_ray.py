"""Trainings on Ray, and processes of Ray that tests end on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from batchtrain.artifacts.trained import TrainedModel
from batchtrain.engines.session import ClusterResources, RaySession
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.testing.faults import PointFaults
from batchtrain.training.placement import Placement
from batchtrain.training.ray_launcher import RayLauncher
from batchtrain.training.supervision import DEFAULT_LIMITS, GroupLimits

__all__ = ["actor_pids", "faults_of_claims", "on_ray", "train_on_ray"]


def on_ray(
    session: RaySession,
    workers: int,
    *,
    faults: Mapping[int, Mapping[int, str]] | None = None,
    limits: GroupLimits = DEFAULT_LIMITS,
) -> RayLauncher:
    """A launcher of so many ranks.

    Args:
        session: The connection.
        workers: W.
        faults: Claim to rank to what happens to it on purpose, as `PointFaults.parse` reads it.
        limits: When a rank counts as lost or stuck.
    """

    def place(_: ClusterResources) -> Placement:
        return Placement(workers, 1, 0, "as the test says")

    listeners = partial(faults_of_claims, dict(faults)) if faults else None
    return RayLauncher(session, place, limits=limits, listeners=listeners)


def faults_of_claims(
    faults: Mapping[int, Mapping[int, str]], rank: int, claim: int
) -> Callable[[str], None] | None:
    """What hears of the points of one rank in one attempt."""
    fault = faults.get(claim, {}).get(rank)
    return PointFaults.parse(fault) if fault else None


def train_on_ray(
    loaded: LoadedSpec,
    session: RaySession,
    workers: int,
    *,
    progress: Progress | None = None,
    **launching: Any,
) -> TrainedModel:
    """Train on so many workers of Ray."""
    target = getattr(loaded.spec.model, "target", "")
    result = run_spec(
        loaded,
        last="train",
        progress=progress,
        allow_code=[target.partition(":")[0]],
        launcher=on_ray(session, workers, **launching),
    )
    assert result.trained is not None
    return result.trained


def actor_pids(class_name: str) -> list[int]:
    """The processes of this session's living actors of a class, in the order of their pids."""
    import ray._private.state

    found: Mapping[str, Mapping[str, Any]] = ray._private.state.actors()
    return sorted(
        int(actor["Pid"])
        for actor in found.values()
        if actor["State"] == "ALIVE" and actor["ActorClassName"].split(".")[-1] == class_name
    )
