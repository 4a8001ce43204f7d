"""The placement groups that hold the cores of ranks, and that a lost start leaves taken."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray
import ray.util
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

__all__ = ["current_group", "is_within_an_actor", "placement_groups", "remove_groups"]


def current_group() -> str:
    """The id in hex of the group that this process runs in; empty where it is in none."""
    group = ray.util.get_current_placement_group()
    return "" if group is None else str(group.id.hex())


def is_within_an_actor() -> bool:
    """Whether this process is an actor, such as that of a trial.

    Others of its job may start ranks of their own at the same time.
    """
    return ray.get_runtime_context().get_actor_id() is not None


def placement_groups() -> frozenset[str]:
    """The ids of this driver's placement groups that hold resources, in hex."""
    job = ray.get_runtime_context().get_job_id()
    with suppress(RayError):
        table: dict[str, Any] = ray.util.placement_group_table()
        return frozenset(
            name
            for name, entry in table.items()
            if name.endswith(job) and entry.get("state") != "REMOVED"
        )
    return frozenset()


def remove_groups(groups: Iterable[str]) -> None:
    """Free what they hold; of one that is gone already nothing is said."""
    for group in groups:
        with suppress(Exception):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
