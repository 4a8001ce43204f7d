"""Jobs on Kubernetes: what is rendered, and what is said to kubectl and heard from it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import ClusterError, SpecError
from batchtrain.submission.kuberay import KubeRayBackend, status_of
from batchtrain.submission.kuberay_manifest import Manifest, manifest_of, rayjob_name
from batchtrain.submission.profile import KubernetesSettings, Profile
from batchtrain.submission.request import JobRequest, JobResources, ShippedFile
from tests.support.fake_kubectl import FakeKubectl
from tests.support.golden import check_golden
from tests.support.schemas import kuberay_faults

PROFILE = Profile(
    backend="kuberay",
    image="registry.example.com/batchtrain:0.1.0-cpu",
    storage="s3://bucket/runs",
)
FULL = Profile(
    backend="kuberay",
    image="registry.example.com/batchtrain@sha256:" + "0" * 64,
    storage="/mnt/shared/runs",
    kubernetes=KubernetesSettings(
        namespace="team-a",
        service_account="trainer",
        claim="runs",
        secret="hub",  # noqa: S106  # the name of one
        queue="night",
        context="gke_a",
        nodes=4,
        cpus_per_node=8,
        gpus_per_node=2,
        memory_per_node="64Gi",
        retries=1,
        deadline_hours=12,
        keep_minutes=0,
    ),
)
ID = "drug200-0123456789ab"
SHARED = {"run": "drug200", "storage": "/mnt/shared/runs"}


def a_request(**changes: Any) -> JobRequest:
    request = JobRequest(
        submission_id=ID,
        entrypoint="python -m batchtrain.cli.entry " + "a" * 64,
        arguments={"command": "run"},
        files=(ShippedFile("spec.yaml", 8, hashlib.sha256(b"name: a\n").hexdigest()),),
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}},
        resources=JobResources(cpus=1.0),
        metadata={"run": "drug200", "storage": "s3://bucket/runs"},
    )
    return replace(request, **changes)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    (folder / "data").mkdir(parents=True)
    (folder / "spec.yaml").write_text("name: a\n")
    (folder / "data" / "rows.csv").write_text("x,y\n1,2\n")
    return folder


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    fake = FakeKubectl(tmp_path / "kubernetes")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    return fake


def shown(manifest: Manifest) -> str:
    """The text without the bytes of the files, which depend on the version of zlib."""
    return re.sub(r"(job\.zip: )\S[^\n]*(\n    \S[^\n]*)*", r"\1(base64)", manifest.text)


# ----------------------------------------------------------------------------------------------
# Rendering


@pytest.mark.parametrize(
    ("name", "profile", "request_"),
    [
        ("kuberay-small.yaml", PROFILE, a_request()),
        (
            "kuberay-full.yaml",
            FULL,
            a_request(
                resources=JobResources(cpus=0.5, gpus=1.0),
                metadata=SHARED,
            ),
        ),
    ],
)
def test_a_rendered_job_is_the_golden_one_and_one_that_kuberay_takes(
    staged: Path, name: str, profile: Profile, request_: JobRequest
) -> None:
    manifest = manifest_of(request_, profile, staged)

    check_golden(name, shown(manifest))
    config_map, rayjob = yaml.safe_load_all(manifest.text)
    assert kuberay_faults(rayjob) == []
    assert (config_map, rayjob) == (manifest.config_map, manifest.rayjob)


def test_the_files_travel_as_they_are_and_the_same_files_are_the_same_bytes(staged: Path) -> None:
    manifest = manifest_of(a_request(), PROFILE, staged)
    os.utime(staged / "spec.yaml", (0, 0))
    (staged / "spec.yaml").chmod(0o600)

    assert manifest_of(a_request(), PROFILE, staged).text == manifest.text
    archive = zipfile.ZipFile(
        io.BytesIO(base64.b64decode(manifest.config_map["binaryData"]["job.zip"]))
    )
    # One folder at the top, which Ray takes off.
    assert {name: archive.read(name) for name in archive.namelist()} == {
        "job/data/rows.csv": b"x,y\n1,2\n",
        "job/spec.yaml": b"name: a\n",
    }


def test_pods_ask_for_what_they_may_have_and_the_head_has_no_work(staged: Path) -> None:
    cluster = manifest_of(a_request(metadata=SHARED), FULL, staged).rayjob["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]

    assert head["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 4
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": "storage", "mountPath": "/mnt/shared/runs"} in container["volumeMounts"]


@pytest.mark.parametrize("image", [None, "", "repo/image", "host:5000/image", "repo/image:latest"])
def test_an_image_that_may_become_another_is_refused(staged: Path, image: str | None) -> None:
    profile = PROFILE.model_copy(update={"image": image})
    with pytest.raises(SpecError, match="a tag of its own or a digest"):
        manifest_of(a_request(), profile, staged)


def test_a_claim_needs_a_folder_and_a_folder_a_claim(staged: Path) -> None:
    with pytest.raises(SpecError, match="where the claim runs is mounted, found s3://bucket/runs"):
        manifest_of(
            a_request(),
            PROFILE.model_copy(update={"kubernetes": KubernetesSettings(claim="runs")}),
            staged,
        )
    with pytest.raises(SpecError, match="the claim that is mounted at /mnt/runs, found none"):
        # As `--set storage=/mnt/runs` would have it.
        manifest_of(a_request(metadata={"storage": "/mnt/runs"}), PROFILE, staged)


def test_what_a_config_map_cannot_hold_is_refused_with_its_largest_files(staged: Path) -> None:
    (staged / "rows.bin").write_bytes(os.urandom(1024 * 1024))
    files = (*a_request().files, ShippedFile("rows.bin", 1024 * 1024, "0" * 64))

    with pytest.raises(ClusterError, match=r"the largest of them rows\.bin \(1,024 KiB\), spec"):
        manifest_of(a_request(files=files), PROFILE, staged)


LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, as KubeRay asks for


@given(st.text(alphabet="ab09.-", min_size=1, max_size=60).filter(lambda text: text[0] not in ".-"))
def test_every_id_has_a_name_that_kubernetes_takes(submission_id: str) -> None:
    name = rayjob_name(submission_id)
    assert LABEL.fullmatch(name)
    assert len(name) <= 47
    assert rayjob_name(submission_id) == name
    # An id that is a name already stays one, so that it is found by those who read.
    assert rayjob_name(name) == name


def test_two_ids_share_no_name() -> None:
    ids = ["a" * 60, "a" * 61, "1a", "1-a", "a.b", "a-b", "a--b", "j-a", "a-"]
    assert len({rayjob_name(each) for each in ids}) == len(ids)


# ----------------------------------------------------------------------------------------------
# What is said to kubectl


def test_submitting_twice_is_one_job(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(PROFILE)

    first, started = backend.submit(a_request(), staged)
    again, started_again = backend.submit(a_request(), staged)

    assert (started, started_again) == (True, False)
    assert first == again
    assert (first.submission_id, first.state) == (ID, "pending")
    (rayjob,) = kubectl.objects("rayjob")
    (config_map,) = kubectl.objects("configmap")
    assert rayjob["spec"]["jobId"] == ID
    # The files go when the job is deleted.
    (owner,) = config_map["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("RayJob", rayjob["metadata"]["name"])


def test_a_lost_reply_is_found_out_by_asking(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(PROFILE)
    kubectl.answer("create", code=1, stderr="Unable to connect to the server: EOF\n")
    with pytest.raises(ClusterError, match="kubectl create failed: Unable to connect"):
        backend.submit(a_request(), staged)
    (kubectl.bin.parent / "answer.create").unlink()

    assert backend.submit(a_request(), staged)[1] is True
    assert backend.submit(a_request(), staged)[1] is False


def test_namespace_and_context_go_with_every_call(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(FULL)
    backend.submit(a_request(metadata=SHARED), staged)
    backend.jobs()
    assert len(kubectl.calls) >= 4
    for words in kubectl.calls:
        assert words[:4] == ["--context", "gke_a", "--namespace", "team-a"]


def test_without_kubectl_the_manifest_is_written(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{ID}.yaml").write_text("an earlier one, that all may read")
    backend = KubeRayBackend(PROFILE)

    with pytest.raises(ClusterError, match=f"`kubectl create -f {ID}.yaml` starts the job"):
        backend.submit(a_request(), staged)

    expected = backend.manifest(a_request(), staged).text
    assert (tmp_path / f"{ID}.yaml").read_text() == expected
    # It has the values of forwarded variables.
    assert (tmp_path / f"{ID}.yaml").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ClusterError, match="expected kubectl on the PATH"):
        backend.status(ID)


def test_a_job_that_is_not_there(kubectl: FakeKubectl) -> None:
    for ask in (KubeRayBackend(PROFILE).status, KubeRayBackend(PROFILE).log):
        with pytest.raises(ClusterError, match=f"expected a job {ID} in the namespace default"):
            ask(ID)


def test_the_log_is_empty_before_there_is_a_pod(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(PROFILE)
    backend.submit(a_request(), staged)
    assert backend.log(ID) == ""
    kubectl.answer("logs", stdout="prepare   built\n")
    assert backend.log(ID) == "prepare   built\n"
    assert kubectl.calls[-1][-3:] == ["logs", f"job/{ID}", "--tail=-1"]


def test_a_job_that_runs_is_stopped_by_ray_so_that_it_writes_a_checkpoint(
    kubectl: FakeKubectl, staged: Path
) -> None:
    backend = KubeRayBackend(PROFILE, poll_s=0)
    backend.submit(a_request(), staged)
    kubectl.set_status(ID, jobDeploymentStatus="Running", jobStatus="RUNNING", rayClusterName="c")
    # What KubeRay hears of it a little later.
    ended = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
    kubectl.answer("exec", then={ID: ended})

    assert backend.stop(ID).state == "stopped"

    (words,) = [words for words in kubectl.calls if "exec" in words]
    assert words[-9:] == ["exec", "pod/head-pod", "-c", "ray-head", "--", "ray", "job", "stop", ID]
    assert "suspend" not in kubectl.objects("rayjob")[0]["spec"]


@pytest.mark.parametrize("deployment", ["Initializing", "Running"])
def test_a_job_that_cannot_hear_loses_its_pods(
    kubectl: FakeKubectl, staged: Path, deployment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = KubeRayBackend(PROFILE, poll_s=0)
    backend.submit(a_request(), staged)
    kubectl.set_status(ID, jobDeploymentStatus=deployment, rayClusterName="c")
    kubectl.answer("exec", code=1, stderr="pods is forbidden")
    monkeypatch.setattr("batchtrain.submission.kuberay.STOP_POLLS", 1)

    # It takes its time, and the answer says that it is not over.
    assert not backend.stop(ID).is_over

    assert kubectl.objects("rayjob")[0]["spec"]["suspend"] is True
    kubectl.set_status(ID, jobDeploymentStatus="Suspended")
    assert backend.status(ID).state == "stopped"


def test_a_job_that_is_over_stays_as_it_is(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(PROFILE)
    backend.submit(a_request(), staged)
    kubectl.set_status(ID, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    assert backend.stop(ID).state == "succeeded"
    assert not [words for words in kubectl.calls if "patch" in words and "rayjob" in words[3]]


def test_all_jobs_the_newest_first(kubectl: FakeKubectl, staged: Path) -> None:
    backend = KubeRayBackend(PROFILE)
    for name in ("a-1", "b-2"):
        backend.submit(a_request(submission_id=name), staged)
    assert [job.submission_id for job in backend.jobs()] == ["b-2", "a-1"]


# ----------------------------------------------------------------------------------------------
# What is heard


def rayjob_with(annotations: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    metadata = {"name": "a", "creationTimestamp": "2026-01-02T03:04:05Z"}
    return {"metadata": {**metadata, "annotations": annotations or {}}, "status": status}


STOPPED = {"batchtrain/stopped": "true"}


@pytest.mark.parametrize(
    ("annotations", "deployment", "job", "state"),
    [
        ({}, "", "", "pending"),
        ({}, "Initializing", "", "pending"),
        ({}, "Retrying", "FAILED", "pending"),
        ({}, "Suspended", "", "pending"),  # in a queue
        (STOPPED, "Suspended", "", "stopped"),
        (STOPPED, "Suspending", "RUNNING", "running"),
        ({}, "Running", "PENDING", "pending"),
        ({}, "Running", "RUNNING", "running"),
        ({}, "Complete", "SUCCEEDED", "succeeded"),
        ({}, "Complete", "STOPPED", "stopped"),
        ({}, "Failed", "FAILED", "failed"),
        ({}, "Failed", "RUNNING", "failed"),  # its deadline
        ({}, "ValidationFailed", "", "failed"),
        ({}, "AWordOfALaterVersion", "", "unknown"),
    ],
)
def test_the_state_of_a_job(
    annotations: dict[str, str], deployment: str, job: str, state: str
) -> None:
    found = status_of(rayjob_with(annotations, jobDeploymentStatus=deployment, jobStatus=job))
    assert found.state == state


def test_the_exit_code_is_that_of_the_run_and_the_message_is_one_plain_line() -> None:
    found = status_of(
        rayjob_with(
            jobDeploymentStatus="Failed",
            jobStatus="FAILED",
            reason="AppFailed",
            message="Job entrypoint command failed with exit code 2, logs:\n\x1b[31mspec.yaml:3",
            startTime="2026-01-02T03:04:05Z",
            endTime="2026-01-02T03:05:05Z",
        )
    )
    assert found.exit_code == 2
    assert found.message.startswith("AppFailed Job entrypoint command failed with exit code 2,")
    assert "\x1b" not in found.message
    assert "\n" not in found.message
    assert found.started is not None
    assert found.ended is not None
    assert found.ended - found.started == 60
