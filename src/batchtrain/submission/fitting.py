"""Whether a cluster can ever hold what a job asks for, and whether it can now: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from batchtrain.spec.run import RunSpec
from batchtrain.submission.facts import ClusterFacts, NodeFacts
from batchtrain.submission.findings import Finding, Severity
from batchtrain.submission.profile import Profile, StageName
from batchtrain.submission.request import JobResources

__all__ = [
    "STAGES",
    "amount_of",
    "entries_of",
    "held_by_job",
    "held_by_stage",
    "resource_findings",
    "trains_in_job",
]

GIB = 2**30
WAITING_GIB = 2.0
"""With a small table (drug200) a process with torch and Ray takes 0.55 GiB; rows take the rest."""

STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "export")
NEVER = "Lower it, or add larger nodes"
FEWER = "Lower `resources.workers`, or add nodes"
GROWS = "The cluster may grow: the job waits for nodes, for ever where none is so large"


@dataclass(frozen=True)
class _Worker:
    cpus: float
    gpus: float

    def fits(self, node: NodeFacts) -> int:
        """How many of them a node holds."""
        by_gpus = node.gpus // self.gpus if self.gpus else math.inf
        return int(min(node.cpus // self.cpus, by_gpus))

    def __str__(self) -> str:
        return amount_of(self.cpus, self.gpus)


def held_by_job(profile: Profile, command: str, spec: RunSpec) -> JobResources:
    """What the process of a job holds; its ranks and trials ask for their own.

    On a cluster that jobs share, one that waits for cores must hold none: where such jobs held all
    of them, none would ever get another one. It holds memory instead, of which each cluster has
    only so much, so that not all jobs of a long queue have a process at once.

    Args:
        profile: Where it runs.
        command: What it does.
        spec: What is run.
    """
    waits = profile.backend == "ray" and _waits_for_cores(command, spec)
    cpus, memory = profile.entrypoint_cpus, profile.entrypoint_memory_gib
    if cpus == "auto":
        cpus = 0.0 if waits else 1.0
    if memory == "auto":
        memory = WAITING_GIB if waits and not cpus else 0.0
    return JobResources(cpus, profile.entrypoint_gpus, round(memory * GIB))


def held_by_stage(profile: Profile, stage: StageName, spec: RunSpec) -> JobResources:
    """What the job of one stage holds, where each stage is a job of its own.

    Args:
        profile: Where it runs.
        stage: Which.
        spec: What is run.
    """
    said = profile.stages.get(stage)
    if said is None:
        return held_by_job(profile, stage, spec)
    return JobResources(said.cpus, said.gpus, round(said.memory_gib * GIB))


def _waits_for_cores(command: str, spec: RunSpec) -> bool:
    """Whether a job starts ranks, trials or tasks that need cores besides its own."""
    if spec.engine != "auto":
        return spec.engine == "ray"
    return command == "tune" or (command in {"run", "train"} and not trains_in_job(spec))


def entries_of(
    profile: Profile, command: str, spec: RunSpec, *, separate: bool = False
) -> dict[str, JobResources]:
    """What the jobs themselves hold, by the key of the profile that says so.

    Args:
        profile: Where they run.
        command: What the job does.
        spec: What is run.
        separate: Whether each stage is a job of its own.
    """
    if not separate:
        return {"entrypoint_cpus": held_by_job(profile, command, spec)}
    found: dict[str, JobResources] = {}
    order: tuple[StageName, ...] = ("train", *STAGES)
    for name in order:
        key = f"stages.{name}" if name in profile.stages else "entrypoint_cpus"
        found.setdefault(key, held_by_stage(profile, name, spec))
    return found


def trains_in_job(spec: RunSpec) -> bool:
    """Whether the job's own process trains, whatever the cluster has."""
    return spec.engine == "embedded" or (spec.engine == "auto" and spec.resources.workers == 1)


def resource_findings(
    spec: RunSpec, entries: Mapping[str, JobResources], facts: ClusterFacts
) -> Iterator[Finding]:
    """Hold what a job asks for against what a cluster has, free or not.

    Args:
        spec: With the resources of the profile.
        entries: What the jobs themselves hold; see `entries_of`.
        facts: Of the cluster.
    """
    nodes = facts.nodes
    severity: Severity = "warning" if facts.may_grow else "error"
    if nodes is None:
        yield Finding(
            "warning",
            "resources",
            "expected that the cluster says which nodes it has, found no answer. The job waits "
            "for ever where it asks for more than there is: look at its status",
        )
        return
    if not nodes and not facts.may_grow:
        message = "expected a cluster with nodes, found none that is alive. Look at its head"
        yield Finding("error", "resources", message)
        return
    for key, entry in entries.items():
        yield from _entry_findings(key, entry, nodes, facts, severity)
    entry = entries.get("stages.train") or entries["entrypoint_cpus"]
    if trains_in_job(spec):
        yield from _own_gpu(spec, entry)
    else:
        yield from _worker_findings(spec, entry, nodes, facts, severity)


def _entry_findings(
    key: str,
    entry: JobResources,
    nodes: Sequence[NodeFacts],
    facts: ClusterFacts,
    severity: Severity,
) -> Iterator[Finding]:
    if not any(_holds(node, entry) for node in nodes):
        wanted = amount_of(entry.cpus, entry.gpus, entry.memory_bytes)
        without = replace(entry, memory_bytes=0)
        if key == "entrypoint_cpus" and any(_holds(node, without) for node in nodes):
            key = "entrypoint_memory_gib"
        yield Finding(
            severity,
            key,
            f"expected a node with {wanted} for the job itself, found "
            f"{_largest(nodes, memory=bool(entry.memory_bytes))}. "
            f"{GROWS if facts.may_grow else NEVER}",
        )


def _worker_findings(
    spec: RunSpec,
    entry: JobResources,
    nodes: Sequence[NodeFacts],
    facts: ClusterFacts,
    severity: Severity,
) -> Iterator[Finding]:
    asked, advice = spec.resources, GROWS if facts.may_grow else FEWER
    count = 1 if asked.workers == "auto" else asked.workers
    gpus = _gpus_each(spec, nodes)
    worker = _Worker(asked.cpus_per_worker, gpus)
    if not any(worker.fits(node) for node in nodes):
        key = "resources.gpus_per_worker" if gpus else "resources.cpus_per_worker"
        yield Finding(
            severity,
            key,
            f"expected a node with {worker} for each worker, found {_largest(nodes)}. "
            f"{GROWS if facts.may_grow else NEVER}",
        )
        return
    # One worker that is left to `auto` may be the job itself.
    own = JobResources(0) if asked.workers == "auto" else entry
    room = _room(nodes, worker, own)
    besides = f" besides the {amount_of(own.cpus, own.gpus)} of the job itself" if own.cpus else ""
    if room < count:
        yield Finding(
            severity,
            "resources.workers",
            f"expected room for {_workers(count)} with {worker} each{besides}, found room for "
            f"{room} in a cluster with {_in_all(nodes)}. {advice}",
        )
        return
    yield from _without_gpus(spec, count, nodes, gpus)
    free = [_free(node) for node in nodes]
    if all(each is not None for each in free):
        room = _room([each for each in free if each is not None], worker, own)
        if room < count:
            yield Finding(
                "warning",
                "resources.workers",
                f"expected {_workers(count)} with {worker} each{besides}, found free room for "
                f"{max(room, 0)}. The job waits until others are done",
            )


def _own_gpu(spec: RunSpec, entry: JobResources) -> Iterator[Finding]:
    asked = spec.resources
    if (asked.device == "cuda" or asked.gpus_per_worker == 1) and not entry.gpus:
        yield Finding(
            "warning",
            "entrypoint_gpus",
            "expected a GPU for the job itself, whose process trains where there is one worker, "
            "found 0. Set `entrypoint_gpus: 1` in the profile, or `engine: ray`",
        )


def _without_gpus(
    spec: RunSpec, count: int, nodes: Sequence[NodeFacts], gpus: float
) -> Iterator[Finding]:
    found = sum(node.gpus for node in nodes)
    if found and not gpus and spec.resources.device == "auto" and count > found:
        yield Finding(
            "warning",
            "resources.gpus_per_worker",
            f"expected a GPU for each of {_workers(count)}, found {found:g} in the cluster, so "
            f"that all of them train on CPUs. Ask for {found:g} workers at most",
        )


def _gpus_each(spec: RunSpec, nodes: Sequence[NodeFacts]) -> float:
    """As `training.placement` decides it."""
    asked = spec.resources
    if asked.gpus_per_worker != "auto":
        return asked.gpus_per_worker
    if asked.device == "cpu":
        return 0
    wanted = 1 if asked.workers == "auto" else asked.workers
    enough = sum(node.gpus for node in nodes) >= wanted
    return float(asked.device == "cuda" or (enough and asked.workers != "auto"))


def _room(nodes: Sequence[NodeFacts], worker: _Worker, entry: JobResources) -> int:
    """How many workers fit at best, with the job itself on one of the nodes; -1 where it is not."""
    fit = [worker.fits(node) for node in nodes]
    best = -1
    for place, node in enumerate(nodes):
        if _holds(node, entry):
            left = replace(node, cpus=node.cpus - entry.cpus, gpus=node.gpus - entry.gpus)
            best = max(best, sum(fit) - fit[place] + worker.fits(left))
    return best


def _holds(node: NodeFacts, entry: JobResources) -> bool:
    has_memory = node.memory is None or node.memory >= entry.memory_bytes
    return node.cpus >= entry.cpus and node.gpus >= entry.gpus and has_memory


def _free(node: NodeFacts) -> NodeFacts | None:
    if node.free_cpus is None or node.free_gpus is None:
        return None
    return replace(node, cpus=node.free_cpus, gpus=node.free_gpus)


def _largest(nodes: Sequence[NodeFacts], *, memory: bool = False) -> str:
    if not nodes:
        return "no node yet"
    most = amount_of(max(node.cpus for node in nodes), max(node.gpus for node in nodes))
    if memory:
        most += f" and {max(node.memory or 0.0 for node in nodes) / GIB:.1f} GiB"
    return f"at most {most} on one"


def _in_all(nodes: Sequence[NodeFacts]) -> str:
    has = amount_of(
        sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), gpus_too=True
    )
    return f"{has} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def amount_of(cpus: float, gpus: float, memory_bytes: int = 0, *, gpus_too: bool = False) -> str:
    """Say how much of a machine: `2 CPUs and 1 GPU`; GPUs only where there are any, or asked."""
    parts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"] if cpus or not memory_bytes else []
    if gpus or gpus_too:
        parts.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    if memory_bytes:
        parts.append(f"{memory_bytes / GIB:g} GiB")
    return " and ".join(parts)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"
