"""`cluster/` and Compose: files that no test can run, held to schemas, rules and each other."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchtrain.spec.load import parse_spec
from batchtrain.submission.kuberay_manifest import JOB_START_TIMEOUT_S, RAY_VERSION
from batchtrain.submission.request import check_id
from batchtrain.version import __version__
from tests.support.golden import GOLDEN, check_golden
from tests.support.schemas import SCHEMAS, compact_crd, faults, kuberay_faults, strict

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
OVERLAYS = ("cpu", "gpu")
SCRIPTS = sorted([*(ROOT / "cluster").glob("*.sh"), *(ROOT / "docker").glob("*.sh")])
VIRTUAL_MACHINES = sorted((ROOT / "cluster" / "vm").glob("*.yaml"))
MANIFESTS = sorted(KUBERAY.rglob("*.yaml"))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
PLACES = [
    ROOT / "docker" / "compose.yaml",
    ROOT / "cluster" / "local.sh",
    KUBERAY / "base" / "raycluster.yaml",
    KUBERAY / "base" / "rayjob.yaml",
    ROOT / "docs" / "submission.md",
]
RAY = Path(str(find_spec("ray").origin)).parent / "autoscaler"  # type: ignore[union-attr]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of an overlay, as it is kept."""
    documents = yaml.safe_load_all((GOLDEN / f"kustomize-{overlay}.yaml").read_text())
    return [each for each in documents if each]


def of_kind(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [each for each in rendered(overlay) if each["kind"] == kind]
    return found


# ----------------------------------------------------------------------------------------------
# Schemas of others


@pytest.mark.parametrize("path", VIRTUAL_MACHINES, ids=lambda path: path.name)
def test_ray_up_takes_the_file(path: Path) -> None:
    schema = json.loads((RAY / "ray-schema.json").read_text())
    assert faults(schema, read(path)) == []


def test_compose_takes_the_file() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    assert faults(schema, COMPOSE) == []
    # ... and the schema is one that sees something.
    assert faults(schema, {**COMPOSE, "services": {"head": {"imagee": "x"}}}) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_takes_the_manifest(overlay: str, kind: str) -> None:
    assert kuberay_faults(of_kind(overlay, kind)) == []


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_a_key_that_kuberay_does_not_know_is_seen(kind: str) -> None:
    document = of_kind("cpu", kind)
    document["spec"]["shutdownAfterJobFinish"] = True
    assert [each for each in kuberay_faults(document) if "shutdownAfterJobFinish" in each]


def test_a_definition_is_made_smaller_and_stricter_without_losing_a_rule() -> None:
    limits = {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    }
    properties = {
        "description": {"type": "string", "description": "A property of this name."},
        "limits": limits,
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}},
        "default": {"type": "object", "properties": {}, "default": {"properties": {"a": 1}}},
    }
    schema = {"type": "object", "description": "Cut.", "properties": properties}
    definition = {
        "spec": {
            "names": {"kind": "Thing"},
            "versions": [
                {"name": "v1alpha1", "schema": {"openAPIV3Schema": {}}},
                {"name": "v1", "schema": {"openAPIV3Schema": schema}},
            ],
        }
    }

    made = compact_crd(yaml.safe_dump(definition), "a test")
    checked = strict(made["schema"])

    assert "description" not in made["schema"]
    good = {"description": "a", "limits": {"cpu": 1, "memory": "1Gi"}, "free": {"a": 1}}
    assert faults(checked, {**good, "default": {}}) == []
    assert faults(checked, {"limits": {"cpu": 1.5}}) != []
    assert faults(checked, {"limit": {}}) != []
    assert faults(checked, {"default": {"a": 1}}) != []
    assert checked["properties"]["default"]["default"] == {"properties": {"a": 1}}


# ----------------------------------------------------------------------------------------------
# The overlays, as kubectl renders them


def inputs_hash() -> str:
    """Of all that is rendered, and of nothing else."""
    listing = [(str(path.relative_to(KUBERAY)), path.read_text()) for path in MANIFESTS]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_kept_of_an_overlay_was_rendered_from_these_files(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        first = (GOLDEN / f"kustomize-{overlay}.yaml").read_text().splitlines()[0]
        assert first == f"# {inputs_hash()}", "render it anew where there is a kubectl"
        return
    done = subprocess.run(
        [kubectl, "kustomize", KUBERAY / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=True,
    )
    check_golden(f"kustomize-{overlay}.yaml", f"# {inputs_hash()}\n{done.stdout}")


def pod_specs(overlay: str) -> list[dict[str, Any]]:
    """Of all pods of an overlay, however deep."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "containers" in node:
                yield node
            for each in node.values():
                yield from walk(each)
        elif isinstance(node, list):
            for each in node:
                yield from walk(each)

    return list(walk(rendered(overlay)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_asks_for_what_it_may_have_and_is_not_root(overlay: str) -> None:
    pods = pod_specs(overlay)
    assert len(pods) == 5
    for pod in pods:
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        # The image is one of this version and this kind, and is set in one place.
        assert container["image"] == f"registry.example.com/batchtrain:{__version__}-{overlay}"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_every_ray_node_has_shared_memory_a_token_and_the_head_no_work(
    overlay: str, kind: str
) -> None:
    spec = of_kind(overlay, kind)["spec"]
    cluster = spec["rayClusterSpec"] if kind == "RayJob" else spec
    (workers,) = cluster["workerGroupSpecs"]

    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (shm,) = [each["emptyDir"] for each in pod["volumes"] if each["name"] == "shm"]
        memory = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi"))
        assert shm["medium"] == "Memory"
        assert shm["sizeLimit"] == f"{memory * 1024 * 35 // 100}Mi"
    gpus = workers["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == {"cpu": None, "gpu": "1"}[overlay]


def test_a_job_takes_its_cluster_away_and_has_limits_and_a_cluster_that_stays_scales() -> None:
    job, cluster = of_kind("cpu", "RayJob")["spec"], of_kind("cpu", "RayCluster")["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["activeDeadlineSeconds"] > 0
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["backoffLimit"] > 0
    assert cluster["enableInTreeAutoscaling"] is True
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] < workers["maxReplicas"]


def test_the_night_does_not_overlap_and_has_the_token_from_the_clusters_secret() -> None:
    cron, cluster = of_kind("cpu", "CronJob"), of_kind("cpu", "RayCluster")
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    environ = {each["name"]: each for each in container["env"]}
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert environ["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": cluster["metadata"]["name"],
        "key": "auth_token",
    }
    address = f"http://{cluster['metadata']['name']}-head-svc:8265"
    assert environ["RAY_API_SERVER_ADDRESS"]["value"] == address


@pytest.mark.parametrize("submitted", [0, 1], ids=["first pod", "a pod after it"])
def test_all_pods_of_a_night_follow_one_job_and_end_as_it_does(
    submitted: int, tmp_path: Path
) -> None:
    job = of_kind("cpu", "CronJob")["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    source = container["env"][0]
    uid = "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert source == {"name": "JOB_UID", "valueFrom": {"fieldRef": {"fieldPath": uid}}}
    # Nothing but the end of its job ends the last pod of a night.
    assert "activeDeadlineSeconds" not in job
    assert job["podFailurePolicy"]["rules"][0]["action"] == "Ignore"
    for name, code in (("ray", submitted), ("batchtrain", 3)):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\nexit {code}'
        )
        (tmp_path / name).chmod(0o755)

    def pod(**environ: str) -> int:
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(
            container["command"], env={**path, **environ}, stderr=subprocess.DEVNULL
        ).returncode

    assert pod() != 0
    assert not (tmp_path / "calls").exists()
    assert pod(JOB_UID="3f-7") == 3
    night, run = "batchtrain-nightly-3f-7", "batchtrain run /etc/batchtrain/spec/spec.yaml"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"ray job submit --no-wait --submission-id {night} --entrypoint-num-cpus 1 -- {run}",
        f"batchtrain logs {night} --follow",
    ]
    assert check_id("batchtrain-nightly-0b5f3c1e-5d55-4f1e-9a52-3c3b3f0f7a11")


def test_the_spec_in_the_config_map_is_a_good_one() -> None:
    text = of_kind("cpu", "ConfigMap")["data"]["spec.yaml"]
    spec = parse_spec(text, "spec.yaml").spec
    (mount,) = {
        mount["mountPath"]
        for pod in pod_specs("cpu")
        for mount in pod["containers"][0].get("volumeMounts", ())
        if mount["name"] == "runs"
    }
    assert spec.storage == mount


# ----------------------------------------------------------------------------------------------
# Machines


def test_a_job_waits_for_its_turn_equally_long_everywhere() -> None:
    found = {
        path: set(re.findall(r"START_TIMEOUT_SECONDS\W+(?:value: )?\W*(\d+)", path.read_text()))
        for path in [*VIRTUAL_MACHINES, *PLACES, GOLDEN / "kuberay-full.yaml"]
    }
    assert set(map(frozenset, found.values())) == {frozenset([str(JOB_START_TIMEOUT_S)])}, found
    for overlay in OVERLAYS:
        nodes = [each["containers"][0] for each in pod_specs(overlay) if "volumes" in each]
        assert len(nodes) == 4
        for container in nodes:
            environ = {each["name"]: each["value"] for each in container["env"]}
            assert environ["RAY_JOB_START_TIMEOUT_SECONDS"] == str(JOB_START_TIMEOUT_S)


def test_machines_of_aws_have_a_disk_for_rays_image_and_rights_that_are_written_down() -> None:
    types = read(ROOT / "cluster" / "vm" / "aws.yaml")["available_node_types"]
    default = read(RAY / "aws" / "defaults.yaml")["available_node_types"]["ray.head.default"]
    for kind in types.values():
        size, least = (
            each["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
            for each in (kind, default)
        )
        assert size >= least

    head, worker = (
        types[name]["node_config"]["IamInstanceProfile"]["Name"] for name in ("head", "worker")
    )
    text = (ROOT / "cluster" / "README.md").read_text()
    (policy,) = map(json.loads, re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S))
    machines, role = policy["Statement"]
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} < set(
        machines["Action"]
    )
    assert (role["Action"], role["Resource"].rpartition(":role/")[2]) == ("iam:PassRole", worker)
    assert f"`{head}`" in text


# ----------------------------------------------------------------------------------------------
# One version everywhere


def constraint(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_ray_and_python_are_the_same_everywhere() -> None:
    ray_versions = {
        "constraints": constraint("ray"),
        "code": RAY_VERSION,
        "image": re.search(r'batchtrain\.ray="([\d.]+)"', DOCKERFILE)[1],  # type: ignore[index]
        **{
            f"{overlay} {kind}": spec["rayVersion"]
            for overlay in OVERLAYS
            for kind in ("RayCluster", "RayJob")
            for spec in [of_kind(overlay, kind)["spec"]]
            for spec in [spec.get("rayClusterSpec", spec)]
        },
    }
    assert set(ray_versions.values()) == {constraint("ray")}, ray_versions

    python = re.search(r"^ARG PYTHON_VERSION=(\d+\.\d+)\.(\d+)$", DOCKERFILE, re.MULTILINE)
    assert python is not None
    assert re.search(r'batchtrain\.python="([\d.]+)"', DOCKERFILE)[1] == python[1]  # type: ignore[index]
    # Before 3.11.13 the tarfile module could be talked into writing elsewhere (CVE-2025-4517).
    assert int(python[2]) >= 13
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].startswith(f">={python[1]},")
    (pin,) = [each for each in project["dependencies"] if each.startswith("ray[")]
    low, high = re.findall(r"[<>]=?([\d.]+)", pin)[0], re.findall(r"<([\d.]+)", pin)[0]
    assert version(low) <= version(constraint("ray")) < version(high)


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_every_image_of_ours_has_the_version_of_the_package() -> None:
    texts = {path: path.read_text() for path in [*MANIFESTS, *VIRTUAL_MACHINES]}
    texts[ROOT / "docker" / "compose.yaml"] = (ROOT / "docker" / "compose.yaml").read_text()
    found = {
        (str(path.relative_to(ROOT)), tag)
        for path, text in texts.items()
        for tag in re.findall(r"(?:batchtrain:|newTag: )(\d\S*?)-(?:cpu|gpu)\b", text)
    }
    assert len(found) >= 7
    assert {tag for _, tag in found} == {__version__}
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


# ----------------------------------------------------------------------------------------------
# Scripts, and what stands above each file


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_its_shell_can_read(script: Path) -> None:
    shell = script.read_text().splitlines()[0].rpartition("/")[2].removeprefix("env ")
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.stat().st_mode & 0o111
    assert re.search(r"^set -eu", script.read_text(), re.MULTILINE)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is not None:
        done = subprocess.run([shellcheck, script], capture_output=True, text=True)
        assert done.stdout == ""


@pytest.mark.parametrize(
    "path",
    [
        each
        for each in [*VIRTUAL_MACHINES, *MANIFESTS, ROOT / "docker" / "compose.yaml"]
        if each.parent.name != "gpu" and each != KUBERAY / "base" / "kustomization.yaml"
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_file_begins_with_what_it_needs_and_how_it_is_used(path: Path) -> None:
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    words = [line[2:].split("  ")[0] for line in head]
    assert [each for each in ("needs", "apply", "watch", "clean up") if each not in words] == []
    assert words.index("needs") < words.index("apply") < words.index("clean up")
