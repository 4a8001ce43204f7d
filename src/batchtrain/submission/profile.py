"""Profiles: what differs between clusters, kept out of specs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, field_validator, model_validator

from batchtrain.spec.base import Name, SpecModel
from batchtrain.spec.run import ResourcesSpec, storage_address_problem

__all__ = [
    "KubernetesSettings",
    "Origin",
    "Profile",
    "Profiles",
    "StageName",
    "StageResources",
    "address_problem",
]

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]
BackendName = Literal["ray", "kuberay", "local"]
StageName = Literal["prepare", "train", "evaluate", "export"]

OF_BACKENDS = {
    "address": ("ray", "local"),
    "image": ("kuberay",),
    "kubernetes": ("kuberay",),
    "entrypoint_memory_gib": ("ray",),
}
"""Keys that not every backend reads."""

IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")

FORM = "expected the address of a dashboard, such as http://head:8265"


def address_problem(text: str) -> str | None:
    """What is wrong with the address of a dashboard, as a sentence; None where nothing is.

    The sentence does not repeat the address, which may hold a secret.

    Example:
        >>> address_problem("http://head:8265")
        >>> address_problem("ray://head:10001")
        'expected the address of a dashboard, such as http://head:8265, found one of another kind'
    """
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return f"{FORM}, found one that has no such form"
    if "://" not in text or parts.scheme not in {"http", "https"}:
        return f"{FORM}, found one of another kind"
    if "@" in text:
        return f"{FORM}, found credentials in it"
    if parts.query or parts.fragment or "?" in text or "#" in text:
        return f"{FORM}, found a query in it"
    if not has_host or not text.isprintable() or any(char in text for char in " \\;"):
        return f"{FORM}, found one that has no such form"
    return None


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


class StageResources(SpecModel):
    """What the process of one stage holds, where each stage is a job of its own."""

    cpus: float = Field(default=1.0, ge=0, le=1024)
    gpus: float = Field(default=0.0, ge=0, le=64)
    memory_gib: float = Field(default=0.0, ge=0, le=65536)


@dataclass(frozen=True)
class Origin:
    """Where a profile was found.

    Attributes:
        file: The file, as an absolute path.
        is_own: Whether the user has named the file, or keeps it among their own; another lay in the
            current folder or beside the spec, and may have come with them from anybody.
        others: Files that have a profile of the same name, which was not taken.
    """

    file: Path
    is_own: bool = True
    others: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """The file, and that there are others."""
        others = " and ".join(str(path) for path in self.others)
        return f"{self.file}" + (f", not the one in {others}" if others else "")


class Profile(SpecModel):
    """One cluster."""

    backend: BackendName = "ray"
    address: str | None = Field(default=None, max_length=2048)
    """Of the dashboard, such as http://head:8265; for `ray`. For `local`: the storage of the jobs,
    where it is not that of the spec."""
    storage: str | None = Field(default=None, min_length=1, max_length=4096)
    """In place of the spec's: a folder that all nodes share, or the address of a bucket."""
    image: str | None = Field(default=None, max_length=1024)
    """The container image; for `kuberay`."""
    resources: ResourcesSpec | None = None
    """In place of the spec's."""
    entrypoint_cpus: Literal["auto"] | Annotated[float, Field(ge=0, le=1024)] = "auto"
    """Cores that the job itself holds. `auto` is 1 where the job itself trains; on a cluster that
    jobs share it is 0 where ranks, trials or Ray Data hold the cores, and the job waits for
    them."""
    entrypoint_memory_gib: Literal["auto"] | Annotated[float, Field(ge=0, le=65536)] = "auto"
    """Memory that the job itself holds, by which a cluster bounds how many run at once; for `ray`.
    `auto` is 2 where it holds no core, else 0."""
    entrypoint_gpus: float = Field(default=0.0, ge=0, le=64)
    stages: dict[StageName, StageResources] = Field(default_factory=dict)
    """What a stage holds instead, with `--stages separate`."""
    ship_package: Literal["auto"] | bool = "auto"
    """Whether batchtrain itself travels. `auto`: where it runs from a checkout; an image that has
    the same version needs none."""
    forward: tuple[EnvName, ...] = ()
    """Names of variables that the job gets from the environment of whoever submits; no secrets:
    who may see the job sees them."""
    rate_per_hour: float | None = Field(default=None, ge=0, le=1e6)
    """What an hour of the cluster costs, in a currency of yours."""
    kubernetes: KubernetesSettings | None = None

    _name: str = PrivateAttr(default="")
    _origin: Origin | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """What its file calls it; empty where it came from none."""
        return self._name

    @property
    def origin(self) -> Origin | None:
        """Where it was found; None where it came from no file."""
        return self._origin

    def named(self, name: str, origin: Origin | None = None) -> Profile:
        """The same, knowing its name and where it was found."""
        copy = self.model_copy()
        copy._name, copy._origin = name, origin
        return copy

    @field_validator("image")
    @classmethod
    def _image_is_a_name(cls, image: str | None) -> str | None:
        if image is not None and not IMAGE.fullmatch(image):
            raise ValueError(
                "expected the name of an image, such as registry.example/team/batchtrain:1.4, "
                "found one that has no such form"
            )
        return image

    @field_validator("storage")
    @classmethod
    def _storage_can_be_opened(cls, storage: str | None) -> str | None:
        problem = _storage_problem(storage)
        if problem:
            raise ValueError(problem)
        return storage

    @model_validator(mode="after")
    def _keys_suit_the_backend(self) -> Profile:
        problems = [
            f"`{key}` is read with `backend: {' or '.join(backends)}` only, found "
            f"`backend: {self.backend}`; remove one of the two"
            for key, backends in OF_BACKENDS.items()
            if getattr(self, key) not in {None, "auto"} and self.backend not in backends
        ]
        if not problems and self.address is not None:
            is_storage = self.backend == "local"
            problem = (_storage_problem if is_storage else address_problem)(self.address)
            problems += [f"`address`: {problem}"] if problem else []
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _storage_problem(text: str | None) -> str | None:
    is_address = text is not None and "://" in text
    return storage_address_problem(text) if text and is_address else None


class Profiles(SpecModel):
    """A file of profiles, `batchtrain-profiles.yaml`."""

    version: Literal[1]
    profiles: dict[Name, Profile] = Field(min_length=1, max_length=1000)
