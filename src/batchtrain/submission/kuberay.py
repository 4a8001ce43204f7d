"""Jobs on Kubernetes: each is a RayJob of KubeRay, started and asked for with `kubectl`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from batchtrain.errors import ClusterError
from batchtrain.submission.kuberay_manifest import (
    ID_ANNOTATION,
    MANAGED_BY,
    STOPPED_ANNOTATION,
    Manifest,
    manifest_of,
    rayjob_name,
    yaml_text,
)
from batchtrain.submission.profile import KubernetesSettings, Profile
from batchtrain.submission.request import JobRequest, JobState, JobStatus

__all__ = ["KubeRayBackend", "status_of"]

CALL_LIMIT_S = 60
STOP_LIMIT_S = 90
"""Ray waits up to a minute for a job that writes one more checkpoint."""

STOP_POLLS = 30
"""KubeRay looks after a job every few seconds."""

MAX_MESSAGE = 500


class KubeRayBackend:
    """Where each job is a RayJob; fulfils `request.Backend`."""

    def __init__(self, profile: Profile, *, poll_s: float = 1.0) -> None:
        self._profile = profile
        self._poll_s = poll_s
        self._kubernetes = profile.kubernetes or KubernetesSettings()

    def manifest(self, request: JobRequest, staged: Path) -> Manifest:
        """What `submit` would create."""
        return manifest_of(request, self._profile, staged)

    def submit(self, request: JobRequest, staged: Path) -> tuple[JobStatus, bool]:
        """Create the RayJob unless it is there.

        Kubernetes creates a name once: of two who submit the same job one wins, and a call whose
        reply was lost is found out by asking.

        Raises:
            ClusterError: If there is no kubectl; the manifest is then in the current folder, and
                the message says how to go on.
        """
        manifest = self.manifest(request, staged)
        if shutil.which("kubectl") is None:
            raise ClusterError(_written_instead(manifest))
        self._create(manifest.config_map)
        started = self._create(manifest.rayjob)
        found = self._get(manifest.name)
        if found is None:
            raise ClusterError(
                f"the RayJob {manifest.name} was created and is gone; somebody has deleted it"
            )
        if started:
            self._give_to(found, str(manifest.config_map["metadata"]["name"]))
        return status_of(found), started

    def status(self, submission_id: str) -> JobStatus:
        """One job; raises `ClusterError` where there is none of this name."""
        return status_of(self._rayjob(submission_id))

    def jobs(self) -> list[JobStatus]:
        """All jobs that batchtrain started in the namespace, the newest first."""
        done = self._call("get", "rayjobs", "-l", f"{MANAGED_BY}=batchtrain", "-o", "json")
        found = sorted(
            json.loads(done.stdout)["items"],
            key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["name"]),
            reverse=True,
        )
        return [status_of(each) for each in found]

    def log(self, submission_id: str) -> str:
        """What the job has written, as the pod that submitted it has heard it."""
        name = rayjob_name(submission_id)
        done = self._call("logs", f"job/{name}", "--tail=-1", may_fail=True)
        if done.returncode == 0:
            return done.stdout
        # No pod yet, or none any more; a job that does not exist is an error.
        self._rayjob(submission_id)
        return ""

    def stop(self, submission_id: str) -> JobStatus:
        """Ask the job to write a checkpoint and end, or delete its pods where it cannot hear."""
        found = self._rayjob(submission_id)
        if status_of(found).is_over:
            return status_of(found)
        annotations: dict[str, Any] = {"metadata": {"annotations": {STOPPED_ANNOTATION: "true"}}}
        self._patch(f"rayjob/{found['metadata']['name']}", annotations)
        if not self._stopped_by_ray(found):
            # KubeRay then deletes the cluster; the RayJob stays, to tell what became of it.
            self._patch(f"rayjob/{found['metadata']['name']}", {"spec": {"suspend": True}})
        return self._soon_over(submission_id)

    def _soon_over(self, submission_id: str) -> JobStatus:
        """A job once KubeRay has noticed its end, or as it is after half a minute."""
        for _ in range(STOP_POLLS):
            status = self.status(submission_id)
            if status.is_over:
                return status
            time.sleep(self._poll_s)
        return self.status(submission_id)

    def _stopped_by_ray(self, rayjob: Mapping[str, Any]) -> bool:
        status = rayjob.get("status", {})
        cluster = status.get("rayClusterName")
        if not cluster or status.get("jobDeploymentStatus") != "Running":
            return False
        selector = f"ray.io/cluster={cluster},ray.io/node-type=head"
        pods = self._call("get", "pods", "-l", selector, "-o", "name", may_fail=True).stdout.split()
        if not pods:
            return False
        words = ["exec", pods[0], "-c", "ray-head", "--", "ray", "job", "stop"]
        job_id = status.get("jobId") or rayjob["metadata"]["annotations"][ID_ANNOTATION]
        done = self._call(*words, job_id, may_fail=True, limit_s=STOP_LIMIT_S)
        return done.returncode == 0

    def _rayjob(self, submission_id: str) -> Mapping[str, Any]:
        found = self._get(rayjob_name(submission_id))
        if found is None:
            raise ClusterError(
                f"expected a job {submission_id} in the namespace {self._kubernetes.namespace}, "
                "found none. `batchtrain list` has those that are there"
            )
        return found

    def _get(self, name: str) -> Mapping[str, Any] | None:
        done = self._call("get", "rayjob", name, "--ignore-not-found", "-o", "json")
        found: Mapping[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        return found

    def _create(self, document: Mapping[str, Any]) -> bool:
        """Create one object; False where its name is there already."""
        done = self._call("create", "-f", "-", stdin=yaml_text(document), may_fail=True)
        if done.returncode != 0 and "AlreadyExists" not in done.stderr:
            raise ClusterError(_failed("create", done.stderr))
        return done.returncode == 0

    def _give_to(self, rayjob: Mapping[str, Any], config_map: str) -> None:
        """Let a ConfigMap be deleted with its RayJob."""
        owner = {
            "apiVersion": rayjob["apiVersion"],
            "kind": rayjob["kind"],
            "name": rayjob["metadata"]["name"],
            "uid": rayjob["metadata"]["uid"],
        }
        document = {"metadata": {"ownerReferences": [owner]}}
        self._patch(f"configmap/{config_map}", document, may_fail=True)

    def _patch(self, what: str, document: Mapping[str, Any], *, may_fail: bool = False) -> None:
        words = ["patch", what, "--type", "merge", "-p", json.dumps(document)]
        self._call(*words, may_fail=may_fail)

    def _call(
        self,
        *words: str,
        stdin: str | None = None,
        may_fail: bool = False,
        limit_s: int = CALL_LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise ClusterError(
                "expected kubectl on the PATH, to ask Kubernetes for jobs, found none. Install it"
            )
        context = (
            [] if self._kubernetes.context is None else ["--context", self._kubernetes.context]
        )
        command = [kubectl, *context, "--namespace", self._kubernetes.namespace, *words]
        try:
            done = subprocess.run(  # noqa: S603  # a list, and no shell
                command,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"kubectl {words[0]} did not end within {limit_s} s. Look whether the cluster "
                "answers: `kubectl get rayjobs`"
            ) from None
        if done.returncode != 0 and not may_fail:
            raise ClusterError(_failed(words[0], done.stderr))
        return done


def status_of(rayjob: Mapping[str, Any]) -> JobStatus:
    """What a RayJob says of itself."""
    metadata, status = rayjob["metadata"], rayjob.get("status", {})
    annotations = metadata.get("annotations", {})
    state = _state(rayjob, stop_asked=annotations.get(STOPPED_ANNOTATION) == "true")
    message = " ".join(
        str(part) for part in (status.get("reason"), status.get("message")) if part
    ) or str(status.get("jobDeploymentStatus", ""))
    return JobStatus(
        submission_id=annotations.get(ID_ANNOTATION, metadata["name"]),
        state=state,
        message=_one_line(message),
        exit_code=_exit_code(state, message),
        started=_seconds(status.get("startTime") or metadata.get("creationTimestamp")),
        ended=_seconds(status.get("endTime")),
        metadata=dict(rayjob.get("spec", {}).get("metadata", {})),
    )


def _state(rayjob: Mapping[str, Any], *, stop_asked: bool) -> JobState:
    """From KubeRay's word for the cluster and Ray's word for the job.

    A suspended job waits for its turn in a queue, unless it was us who suspended it.
    """
    status = rayjob.get("status", {})
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment == "Suspended":
        return "stopped" if stop_asked else "pending"
    if deployment in {"Complete", "Failed", "ValidationFailed"}:
        ends: dict[str, JobState] = {"SUCCEEDED": "succeeded", "STOPPED": "stopped"}
        return ends.get(job, "failed")
    if deployment == "Running":
        return "pending" if job in {"", "PENDING"} else "running"
    if deployment == "Suspending":
        return "running" if stop_asked else "pending"
    waiting = {"", "Initializing", "Waiting", "Retrying", "Scheduling"}
    return "pending" if deployment in waiting else "unknown"


def _exit_code(state: JobState, message: str) -> int | None:
    if state == "succeeded":
        return 0
    match = re.search(r"failed with exit code (\d{1,3})\b", message)
    return int(match[1]) if match and state == "failed" else None


def _seconds(moment: str | None) -> float | None:
    return None if not moment else datetime.fromisoformat(moment).timestamp()


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in line)[:MAX_MESSAGE]


def _failed(verb: str, stderr: str) -> str:
    lines: Sequence[str] = [line for line in stderr.splitlines() if line.strip()]
    return f"kubectl {verb} failed: {_one_line(lines[-1] if lines else 'without a word')}"


def _written_instead(manifest: Manifest) -> str:
    path = Path(f"{manifest.name}.yaml")
    # It has the values of forwarded variables: a new file, that nobody else may read.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(manifest.text.encode())
    return (
        f"expected kubectl on the PATH, found none. What it would create is in {path}: where there "
        f"is one, `kubectl create -f {path}` starts the job, and doing it twice is safe"
    )
