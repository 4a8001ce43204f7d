"""A request as a RayJob: pure functions from a request, a profile and files to YAML.

The fields are those of KubeRay 1.6 (`ray.io/v1`). One RayJob is one cluster with a fixed number of
pods: a training wants all of its workers at once and none of them comes later, so there is nothing
to scale; a cluster that scales is `cluster/kuberay/base/raycluster.yaml`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchtrain.errors import ClusterError, Problem, SpecError
from batchtrain.submission.profile import KubernetesSettings, Profile
from batchtrain.submission.request import JobRequest, ShippedFile
from batchtrain.submission.submitter_shell import shell_problems

__all__ = [
    "ID_ANNOTATION",
    "MANAGED_BY",
    "MAX_CONFIG_MAP_BYTES",
    "RAY_VERSION",
    "STOPPED_ANNOTATION",
    "Manifest",
    "manifest_of",
    "rayjob_name",
]

RAY_VERSION = "2.60.0"
"""Of the image and of this package; a test holds all places together."""

MANAGED_BY = "app.kubernetes.io/managed-by"
ID_ANNOTATION = "batchtrain/submission-id"
STOPPED_ANNOTATION = "batchtrain/stopped"

MAX_CONFIG_MAP_BYTES = 1024 * 1024 - 4096
"""Kubernetes takes 1 MiB of values (core/v1 ConfigMap); the rest is for names."""

MAX_NAME = 47
"""Of a RayJob: KubeRay appends to it for the names of pods and services, which have 63."""

USER_ID = 1000
"""Of the image's user."""

FILES_FOLDER = "/etc/batchtrain/job"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
JOB_START_TIMEOUT_S = 7 * 24 * 3600
"""A job may wait a week for its turn before Ray gives it up; if unsaid, 15 minutes."""


@dataclass(frozen=True)
class Manifest:
    """What a cluster is given.

    Attributes:
        name: Of the RayJob.
        config_map: Holds the working directory.
        rayjob: Refers to it.
    """

    name: str
    config_map: Mapping[str, Any]
    rayjob: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Both as YAML, for `kubectl create -f -`."""
        return "---\n".join(yaml_text(each) for each in (self.config_map, self.rayjob))


class _Dumper(yaml.SafeDumper):
    """Quotes besides what Go's reader, but not ours, takes for a number or a boolean."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(0[bBoOxX][0-9a-fA-F_]+|(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?)$"
    ),
    list("-+.0123456789"),
)


def yaml_text(document: Mapping[str, Any]) -> str:
    """The same document as the same bytes, and its keys in the order in which they were given."""
    # Through JSON, so that a value that occurs twice is written twice and not as an alias.
    text: str = yaml.dump(
        json.loads(json.dumps(document)),
        Dumper=_Dumper,
        sort_keys=False,
        width=100,
        allow_unicode=True,
    )
    return text


def rayjob_name(submission_id: str) -> str:
    """The name of the RayJob for a submission id, always the same.

    It is the id itself where that is a DNS label of KubeRay's length that begins with a letter
    (RFC 1035), else a shortened one with a hash, so that no two ids share a name.
    """
    if len(submission_id) <= MAX_NAME and re.fullmatch(
        r"[a-z]([a-z0-9-]*[a-z0-9])?", submission_id
    ):
        return submission_id
    suffix = hashlib.sha256(submission_id.encode()).hexdigest()[:12]
    stem = re.sub(r"[^a-z0-9]+", "-", submission_id.lower()).strip("-")
    return f"j-{stem[: MAX_NAME - len(suffix) - 3].strip('-')}-{suffix}"


def manifest_of(request: JobRequest, profile: Profile, staged: Path) -> Manifest:
    """Render a request.

    Args:
        request: What to start.
        profile: Where; with an image.
        staged: A folder with the files of the request in place.

    Raises:
        SpecError: If the profile lacks what Kubernetes needs, or a shell would obey a value.
        ClusterError: If the files are more than a ConfigMap holds.
    """
    kubernetes = profile.kubernetes or KubernetesSettings()
    # What `--set` says comes after the profile, and is in the request.
    storage = request.metadata.get("storage") or profile.storage or ""
    _check(profile, kubernetes, storage)
    problems = shell_problems(request.metadata, "metadata")
    problems += shell_problems(request.runtime_env.get("env_vars", {}), "env_vars")
    if problems:
        raise SpecError(problems)
    name = rayjob_name(request.submission_id)
    config_map = _config_map(name, request, kubernetes, staged)
    rayjob = _rayjob(name, config_map["metadata"]["name"], request, profile, kubernetes, storage)
    return Manifest(name, config_map, rayjob)


def _check(profile: Profile, kubernetes: KubernetesSettings, storage: str) -> None:
    problems = []
    image = profile.image or ""
    tag = image.rpartition("/")[2].partition(":")[2]
    if not (re.search(r"@sha256:[0-9a-f]{64}$", image) or (tag and tag != "latest")):
        found = f"found {image}" if image else "found none"
        problems.append(
            Problem(
                "profile",
                "image",
                f"expected an image with a tag of its own or a digest, {found}",
                "Name one such as registry/batchtrain:0.1.0-cpu; docker/README.md builds it",
            )
        )
    if kubernetes.claim and not storage.startswith("/"):
        problems.append(
            Problem(
                "profile",
                "storage",
                f"expected the folder where the claim {kubernetes.claim} is mounted, found "
                f"{storage or 'none'}",
                "Set it to an absolute path such as /mnt/batchtrain/runs",
            )
        )
    if not kubernetes.claim and storage.startswith("/"):
        problems.append(
            Problem(
                "profile",
                "kubernetes.claim",
                f"expected the claim that is mounted at {storage}, found none",
                "Name a PersistentVolumeClaim that many nodes may write, or use a bucket",
            )
        )
    if problems:
        raise SpecError(problems)


def _config_map(
    name: str, request: JobRequest, kubernetes: KubernetesSettings, staged: Path
) -> dict[str, Any]:
    archive = _zip(staged)
    if len(archive) > MAX_CONFIG_MAP_BYTES:
        raise ClusterError(_too_large(len(archive), request.files))
    # By what is in it: another content of the same job is another object, and neither changes.
    listing = json.dumps([[file.name, file.sha256] for file in request.files])
    digest = hashlib.sha256((request.entrypoint + listing).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{name}-{digest}", request, kubernetes),
        "immutable": True,
        "binaryData": {"job.zip": base64.b64encode(archive).decode("ascii")},
    }


def _zip(staged: Path) -> bytes:
    """The files below a folder in one other folder, which Ray takes off again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in staged.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"job/{path.relative_to(staged).as_posix()}", ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def _too_large(size: int, files: Sequence[ShippedFile]) -> str:
    largest = sorted(files, key=lambda file: (-file.size, file.name))[:5]
    listed = ", ".join(f"{file.name} ({file.size / 1024:,.0f} KiB)" for file in largest)
    return (
        f"expected at most {MAX_CONFIG_MAP_BYTES / 1024:,.0f} KiB of files, compressed, which a "
        f"ConfigMap holds; found {size / 1024:,.0f} KiB, the largest of them {listed}. Put data "
        "where all pods see it, and the package into the image (`ship_package: false`)"
    )


def _metadata(name: str, request: JobRequest, kubernetes: KubernetesSettings) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": kubernetes.namespace,
        "labels": {MANAGED_BY: "batchtrain"},
        "annotations": {ID_ANNOTATION: request.submission_id},
    }


def _rayjob(
    name: str,
    config_map: str,
    request: JobRequest,
    profile: Profile,
    kubernetes: KubernetesSettings,
    storage: str,
) -> dict[str, Any]:
    metadata = _metadata(name, request, kubernetes)
    if kubernetes.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = kubernetes.queue
    # Every node has the files mounted; a URI with `file` is unpacked by each of them by itself.
    runtime_env = {**request.runtime_env, "working_dir": f"file://{FILES_FOLDER}/job.zip"}
    spec: dict[str, Any] = {
        "entrypoint": request.entrypoint,
        "jobId": request.submission_id,
        "metadata": dict(request.metadata),
        "runtimeEnvYAML": yaml_text(runtime_env),
        **_entrypoint_resources(request),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.keep_minutes * 60,
        "backoffLimit": kubernetes.retries,
    }
    if kubernetes.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = round(kubernetes.deadline_hours * 3600)
    spec["rayClusterSpec"] = _cluster(config_map, profile, kubernetes, storage)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _entrypoint_resources(request: JobRequest) -> dict[str, Any]:
    resources = request.resources
    found: dict[str, Any] = {}
    if resources.cpus:
        found["entrypointNumCpus"] = _number(resources.cpus)
    if resources.gpus:
        found["entrypointNumGpus"] = _number(resources.gpus)
    return found


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _cluster(
    config_map: str, profile: Profile, kubernetes: KubernetesSettings, storage: str
) -> dict[str, Any]:
    head = {"cpu": "2", "memory": "8Gi"}
    worker = {"cpu": str(kubernetes.cpus_per_node), "memory": kubernetes.memory_per_node}
    if kubernetes.gpus_per_node:
        worker[kubernetes.gpu_type] = str(kubernetes.gpus_per_node)
    pod = _Pods(config_map, profile.image or "", kubernetes, storage)
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No task of ours runs beside the head, whose end is the end of the cluster.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "disable-usage-stats": "true"},
            "template": pod.template("ray-head", head),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": kubernetes.nodes,
                "minReplicas": kubernetes.nodes,
                "maxReplicas": kubernetes.nodes,
                "rayStartParams": {},
                "template": pod.template("ray-worker", worker),
            }
        ],
    }


@dataclass(frozen=True)
class _Pods:
    """What all pods of a job have in common."""

    config_map: str
    image: str
    kubernetes: KubernetesSettings
    storage: str

    def template(self, container: str, resources: Mapping[str, str]) -> dict[str, Any]:
        """One pod that has what it asks for, and never more."""
        volumes: list[dict[str, Any]] = [
            {"name": "job", "configMap": {"name": self.config_map}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _shm(resources)}},
        ]
        mounts: list[dict[str, Any]] = [
            {"name": "job", "mountPath": FILES_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  # of the pod
        ]
        if self.kubernetes.claim:
            claim = {"claimName": self.kubernetes.claim}
            volumes.append({"name": "storage", "persistentVolumeClaim": claim})
            mounts.append({"name": "storage", "mountPath": self.storage})
        spec: dict[str, Any] = {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self._container(container, resources, mounts)],
            "volumes": volumes,
        }
        if self.kubernetes.service_account:
            spec["serviceAccountName"] = self.kubernetes.service_account
        return {"metadata": {"labels": {MANAGED_BY: "batchtrain"}}, "spec": spec}

    def _container(
        self, name: str, resources: Mapping[str, str], mounts: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": name,
            "image": self.image,
            "env": [{"name": "RAY_JOB_START_TIMEOUT_SECONDS", "value": str(JOB_START_TIMEOUT_S)}],
        }
        if self.kubernetes.secret:
            found["envFrom"] = [{"secretRef": {"name": self.kubernetes.secret}}]
        found["resources"] = {"requests": dict(resources), "limits": dict(resources)}
        found["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        found["volumeMounts"] = list(mounts)
        return found


def _shm(resources: Mapping[str, str]) -> str:
    """A third of a pod's memory and a little, as Ray's store of objects takes 30 % of it."""
    memory = resources["memory"]
    mebibytes = int(memory[:-2]) * {"Mi": 1, "Gi": 1024, "Ti": 1024 * 1024}[memory[-2:]]
    return f"{mebibytes * 35 // 100}Mi"
