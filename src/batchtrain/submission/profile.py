"""Profiles: what differs between clusters, kept out of specs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchtrain.spec.base import Name, SpecModel
from batchtrain.spec.run import ResourcesSpec

__all__ = ["KubernetesSettings", "Profile", "Profiles"]

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]
BackendName = Literal["ray", "kuberay", "local"]


class KubernetesSettings(SpecModel):
    """What a RayJob on Kubernetes needs besides."""

    namespace: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    service_account: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251})$")
    claim: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251})$")
    """The PersistentVolumeClaim that is mounted where `storage` lies, on every pod."""
    secret: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251})$")
    """The Secret whose keys become the environment of every pod, such as those of a bucket."""
    queue: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251})$")
    """The Kueue queue that the job waits in."""
    context: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,252}$")
    """Of kubectl; left out, the one that is current wherever somebody submits."""
    retries: int = Field(default=2, ge=0, le=100)
    """New clusters after one that was lost; what was published is reused."""
    deadline_hours: float | None = Field(default=None, gt=0, le=10_000)
    """After which the job is ended, waiting included."""
    keep_minutes: int = Field(default=5, ge=0, le=100_000)
    """How long the pods stay after the end of a job, for a look at them."""
    gpu_type: str = "nvidia.com/gpu"
    nodes: int = Field(default=2, ge=1, le=10_000)
    """Pods with workers; all of them come before the job begins."""
    cpus_per_node: int = Field(default=4, ge=1, le=1024)
    gpus_per_node: int = Field(default=0, ge=0, le=64)
    memory_per_node: str = Field(default="16Gi", pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")


class Profile(SpecModel):
    """One cluster."""

    backend: BackendName = "ray"
    address: str | None = Field(default=None, max_length=2048)
    """Of the dashboard, such as http://head:8265; for `ray`."""
    storage: str | None = Field(default=None, min_length=1, max_length=4096)
    """In place of the spec's: a folder that all nodes share, or the address of a bucket."""
    image: str | None = Field(default=None, max_length=1024)
    """The container image; for `kuberay`."""
    resources: ResourcesSpec | None = None
    """In place of the spec's."""
    entrypoint_cpus: float = Field(default=1.0, ge=0, le=1024)
    """Cores that the job itself holds; with 1 or more it waits where the cluster is full."""
    entrypoint_gpus: float = Field(default=0.0, ge=0, le=64)
    forward: tuple[EnvName, ...] = ()
    """Names of variables that the job gets from the environment of whoever submits; no secrets:
    who may see the job sees them."""
    rate_per_hour: float | None = Field(default=None, ge=0, le=1e6)
    """What an hour of the cluster costs, in a currency of yours."""
    kubernetes: KubernetesSettings | None = None


class Profiles(SpecModel):
    """A file of profiles, `batchtrain-profiles.yaml`."""

    version: Literal[1]
    profiles: dict[Name, Profile] = Field(min_length=1, max_length=1000)
