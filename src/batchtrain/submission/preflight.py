"""What would keep a job from running, found before it is sent; pure functions of facts."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from batchtrain.engines.job_storage import in_ray_folder
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import is_address
from batchtrain.submission.facts import ClusterFacts, NodeFacts, is_loopback
from batchtrain.submission.findings import Finding
from batchtrain.submission.fitting import entries_of, resource_findings
from batchtrain.submission.profile import Profile
from batchtrain.submission.token import Token

__all__ = [
    "Here",
    "check_cluster",
    "check_connection",
    "check_request",
    "facts_of_kubernetes",
    "this_machine",
]

NEW_STORAGE = "Set `storage` to a folder that all nodes share, or to an address: "
EXAMPLES = "`--set storage=/mnt/shared/runs`, `--set storage=s3://bucket/runs`"

IMAGE = re.compile(r"(?P<name>.+?)(?::(?P<tag>[\w][\w.-]*))?(?P<digest>@sha256:[0-9a-f]{64})?")
PYTHON_OF_TAG = re.compile(r"(?:^|[-_.])py(\d)(\d{1,2})(?=$|[-_.])")
RAY_OF_TAG = re.compile(r"(\d+\.\d+\.\d+)(?=$|[-_])")
UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

CREDENTIALS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE",),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
        ("AWS_SKIP_SIGNATURE",),
    ),
    "gs": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("GOOGLE_SERVICE_ACCOUNT",),
        ("GOOGLE_SERVICE_ACCOUNT_KEY",),
        ("GOOGLE_SKIP_SIGNATURE",),
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_KEY"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_FEDERATED_TOKEN_FILE"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CLIENT_SECRET"),
    ),
}
"""Variables by which the client of an object store (object_store 0.12) gets in: each set does."""


@dataclass(frozen=True)
class Here:
    """This process.

    Attributes:
        python: Its version of Python.
        ray: The version of Ray that is installed; None where none is.
    """

    python: str
    ray: str | None


def this_machine() -> Here:
    """The versions of this process; Ray is not imported."""
    try:
        ray: str | None = metadata.version("ray")
    except metadata.PackageNotFoundError:
        ray = None
    return Here(platform.python_version(), ray)


def check_request(
    loaded: LoadedSpec,
    profile: Profile,
    *,
    environ: Mapping[str, str],
    here: Here | None = None,
    command: str = "run",
    separate: bool = False,
    will_probe: bool = False,
) -> list[Finding]:
    """All that can be found without a cluster.

    Args:
        loaded: The spec, with what the profile has put in.
        profile: Where it is to run.
        environ: The environment of whoever submits.
        here: The versions here; left out, those of this process.
        command: What the job does.
        separate: Whether each stage is a job of its own.
        will_probe: Whether the storage is tried on the cluster before the job starts, so that
            nothing need be said of what the trial finds out.
    """
    here = here or this_machine()
    findings = [
        *_storage_findings(loaded, profile, will_probe=will_probe),
        *_forward_findings(profile, environ),
        *_credential_findings(loaded, profile, environ, will_probe=will_probe),
    ]
    if profile.backend == "kuberay":
        findings += _image_findings(profile, here)
        entries = entries_of(profile, command, loaded.spec, separate=separate)
        findings += resource_findings(loaded.spec, entries, facts_of_kubernetes(profile))
    return findings


def check_connection(address: str, token: Token | None) -> list[Finding]:
    """What is to be said of the way to a cluster, its token and who else may see it.

    Args:
        address: Of its dashboard.
        token: What is shown there.
    """
    findings = []
    if token is not None and token.others_read:
        findings.append(
            Finding(
                "warning",
                "token",
                f"expected that only you may read {token.source}, found that others may too. "
                f"Run `chmod 600 {token.source}`",
            )
        )
    if is_loopback(address):
        return findings
    if token is None:
        findings.append(
            Finding(
                "warning",
                "token",
                f"expected that the cluster at {address} asks for a token, found that it was asked "
                "without one. Whoever reaches a cluster without tokens runs what they like there: "
                "start it with RAY_AUTH_MODE=token",
            )
        )
    elif address.startswith("http://"):
        findings.append(
            Finding(
                "warning",
                "address",
                f"expected https:// for an address beyond this machine, found {address}, so that "
                "the token can be read on the way. Put TLS before the dashboard, or go through "
                "`ssh -L 8265:localhost:8265`",
            )
        )
    return findings


def check_cluster(
    loaded: LoadedSpec,
    profile: Profile,
    facts: ClusterFacts,
    *,
    here: Here | None = None,
    command: str = "run",
    separate: bool = False,
) -> list[Finding]:
    """Hold a job against a cluster that runs.

    Args:
        loaded: The spec, with what the profile has put in.
        profile: Where it is to run.
        facts: Of the cluster.
        here: The versions here; left out, those of this process.
        command: What the job does.
        separate: Whether each stage is a job of its own.
    """
    here = here or this_machine()
    return [
        *_version_findings("ray", "Ray", facts.ray, here.ray),
        *_version_findings("python", "Python", facts.python, here.python),
        *resource_findings(
            loaded.spec, entries_of(profile, command, loaded.spec, separate=separate), facts
        ),
    ]


def facts_of_kubernetes(profile: Profile) -> ClusterFacts:
    """The cluster that a RayJob gets, at its largest."""
    asked = profile.kubernetes
    if asked is None:
        return ClusterFacts(None, None, None)
    memory = int(asked.memory_per_node[:-2]) * UNITS[asked.memory_per_node[-2:]]
    cpus, gpus = float(asked.cpus_per_node), float(asked.gpus_per_node)
    nodes = (NodeFacts("pod", cpus, gpus, float(memory), cpus, gpus) for _ in range(asked.nodes))
    return ClusterFacts(None, None, tuple(nodes))


def _version_findings(
    key: str, name: str, there: str | None, here: str | None
) -> Iterator[Finding]:
    if here is None or there == here:
        return
    if there is None:
        message = f"expected that the cluster says its version of {name}, found no answer. Look at "
        yield Finding("warning", key, f"{message}what its nodes have: here it is {here}")
        return
    same = there.split(".")[:2] == here.split(".")[:2]
    yield Finding(
        "warning" if same else "error",
        key,
        f"expected {name} {here}, as here, found {there} on the cluster. Use the same on both: one "
        "image for the cluster and for whoever submits",
    )


def _storage_findings(
    loaded: LoadedSpec, profile: Profile, *, will_probe: bool
) -> Iterator[Finding]:
    text, where = loaded.spec.storage, loaded.where("storage")
    if profile.backend == "local" or is_address(text):
        return
    wanted = "expected a folder that all nodes share, or the address of an object store"
    path = Path(text)
    if not path.is_absolute() and not text.startswith("~"):
        found = (
            f"since Ray deletes the working directory of a job, found the relative path {text!r}"
        )
        yield Finding("error", "storage", f"{wanted}, {found}. {NEW_STORAGE}{EXAMPLES}", where)
    elif in_ray_folder(path):
        found = f"found {text!r}, which lies in a folder of Ray's own, deleted with the job"
        yield Finding("error", "storage", f"{wanted}, {found}. {NEW_STORAGE}{EXAMPLES}", where)
    elif profile.backend == "kuberay":
        if profile.kubernetes is None or profile.kubernetes.claim is None:
            yield Finding(
                "error",
                "kubernetes.claim",
                f"expected the claim of a volume that every pod mounts at {text!r}, found none. "
                "Name it in the profile, or set `storage` to the address of a bucket",
                _place(profile),
            )
    elif not will_probe:
        yield Finding(
            "warning",
            "storage",
            f"{wanted}, found {text!r}, of which nothing is known here. It must be mounted on "
            "every node of the cluster; that is tried before the job starts",
        )


def _forward_findings(profile: Profile, environ: Mapping[str, str]) -> Iterator[Finding]:
    missing = [name for name in profile.forward if name not in environ]
    if missing:
        yield Finding(
            "warning",
            "forward",
            f"expected {' and '.join(missing)} in the environment here, found nothing. Export "
            "what the job is to get; else it goes without",
            _place(profile),
        )


def _credential_findings(
    loaded: LoadedSpec, profile: Profile, environ: Mapping[str, str], *, will_probe: bool
) -> Iterator[Finding]:
    scheme, is_object_store, _ = loaded.spec.storage.partition("://")
    if not is_object_store or scheme not in CREDENTIALS:
        return
    ways = CREDENTIALS[scheme]
    needed = f"{' and '.join(ways[0])}, or a role"
    if profile.backend == "local":
        yield from _credentials_here(ways, needed, environ)
    elif profile.backend == "kuberay":
        asked = profile.kubernetes
        if asked is None or (asked.secret is None and asked.service_account is None):
            yield Finding(
                "warning",
                "kubernetes.secret",
                f"expected a Secret with {needed} of a service account, for a storage with "
                f"{scheme}://, found neither. Name one in the profile, unless the nodes have it",
                _place(profile),
            )
    elif not will_probe:
        yield Finding(
            "warning",
            "storage",
            f"expected {needed}, on every node of the cluster for a storage with {scheme}://; "
            "what the nodes have is not known here, and tried before the job starts",
        )


def _credentials_here(
    ways: tuple[tuple[str, ...], ...], needed: str, environ: Mapping[str, str]
) -> Iterator[Finding]:
    if any(all(environ.get(name) for name in way) for way in ways):
        return
    halves = [way for way in ways if any(environ.get(name) for name in way)]
    missing = [name for name in (halves[0] if halves else ()) if not environ.get(name)]
    found = f"found no {' and '.join(missing)}" if halves else "found none of these"
    yield Finding(
        "error" if halves else "warning",
        "storage",
        f"expected {needed}, in the environment here, {found}. Export what is missing",
    )


def _image_findings(profile: Profile, here: Here) -> Iterator[Finding]:
    where = _place(profile)
    if profile.image is None:
        wanted = "expected the image that all pods run"
        example = "Name it in the profile, such as registry.example/team/batchtrain:1.0.0"
        yield Finding("error", "image", f"{wanted}, found none. {example}", where)
        return
    parts = IMAGE.fullmatch(profile.image)
    tag = parts["tag"] if parts else None
    if not (parts and parts["digest"]) and tag in {None, "latest"}:
        found = "the tag latest" if tag else "no tag"
        yield Finding(
            "error",
            "image",
            f"expected an image with a tag of its own or a digest, found {found}, which means "
            "another image from one day to the next. Name a version, such as :1.0.0",
            where,
        )
    python = PYTHON_OF_TAG.search(tag or "")
    if python and (found := f"{python[1]}.{python[2]}") != ".".join(here.python.split(".")[:2]):
        yield Finding(
            "warning",
            "image",
            f"expected Python {here.python}, as here, found {found} in the image's tag. Use the "
            "same on both",
            where,
        )
    ray = RAY_OF_TAG.match(tag or "")
    is_rays = parts is not None and parts["name"].rsplit("/", 1)[-1] in {"ray", "ray-ml"}
    if ray and is_rays and here.ray and ray[1] != here.ray:
        yield Finding(
            "warning",
            "image",
            f"expected Ray {here.ray}, as here, found {ray[1]} in the image's tag. Use the same "
            "on both",
            where,
        )


def _place(profile: Profile) -> str:
    return f"profile {profile.name}".rstrip()
