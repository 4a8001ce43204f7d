"""What is found before a job is sent: each case with its sentence, on clusters that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.errors import ClusterError, SpecError
from batchtrain.spec.load import LoadedSpec, parse_spec
from batchtrain.spec.run import ResourcesSpec
from batchtrain.submission.checking import all_findings, dashboard_address
from batchtrain.submission.facts import ClusterFacts, NodeFacts
from batchtrain.submission.findings import Finding, refuse_errors
from batchtrain.submission.fitting import entries_of, resource_findings
from batchtrain.submission.preflight import Here, check_cluster, check_connection, check_request
from batchtrain.submission.profile import Profile
from batchtrain.submission.request import JobResources
from batchtrain.submission.token import Token

HERE = Here(python="3.11.7", ray="2.60.0")
SPEC = "version: 1\nname: tiny\ndata: {source: a.csv, target: y}\n"
SMALL = NodeFacts("10.0.0.1", 4.0, 0.0, 8 * 2.0**30, 4.0, 0.0)
GPUS = NodeFacts("10.0.0.2", 8.0, 2.0, 32 * 2.0**30, 8.0, 2.0)
BUSY = NodeFacts("10.0.0.3", 8.0, 2.0, 32 * 2.0**30, 1.0, 0.0)


def spec(text: str = "", *overrides: str) -> LoadedSpec:
    return parse_spec(f"{SPEC}storage: /mnt/runs\n{text}", "s.yaml", overrides)


def cluster(*nodes: NodeFacts, **changes: Any) -> ClusterFacts:
    return ClusterFacts(**{"ray": "2.60.0", "python": "3.11.7", "nodes": nodes, **changes})


@dataclass(frozen=True)
class Case:
    """A cluster that does not have what a spec asks for, and what is said of it."""

    says: str
    resources: str = ""
    facts: ClusterFacts = field(default_factory=lambda: cluster(SMALL))
    profile: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


ON_CLUSTER = {
    "another minor version of Ray": Case(
        "error: ray: expected Ray 2.60.0, as here, found 2.58.1 on the cluster. Use the same on "
        "both: one image for the cluster and for whoever submits",
        facts=cluster(SMALL, ray="2.58.1"),
    ),
    "another patch of Ray": Case(
        "warning: ray: expected Ray 2.60.0, as here, found 2.60.2 on the cluster. Use the same on "
        "both: one image for the cluster and for whoever submits",
        facts=cluster(SMALL, ray="2.60.2"),
    ),
    "another minor version of Python": Case(
        "error: python: expected Python 3.11.7, as here, found 3.12.7 on the cluster. Use the same "
        "on both: one image for the cluster and for whoever submits",
        facts=cluster(SMALL, python="3.12.7"),
    ),
    "an unknown version of Python": Case(
        "warning: python: expected that the cluster says its version of Python, found no answer. "
        "Look at what its nodes have: here it is 3.11.7",
        facts=cluster(SMALL, python=None),
    ),
    "unknown nodes": Case(
        "warning: resources: expected that the cluster says which nodes it has, found no answer. "
        "The job waits for ever where it asks for more than there is: look at its status",
        facts=cluster(nodes=None),
    ),
    "no node": Case(
        "error: resources: expected a cluster with nodes, found none that is alive. Look at its "
        "head",
        facts=cluster(),
    ),
    "an entry point that no node holds": Case(
        "error: entrypoint_cpus: expected a node with 6 CPUs and 1 GPU for the job itself, found "
        "at most 4 CPUs on one. Lower it, or add larger nodes",
        profile={"entrypoint_cpus": 6, "entrypoint_gpus": 1},
    ),
    "a worker that no node holds": Case(
        "error: resources.cpus_per_worker: expected a node with 6 CPUs for each worker, found at "
        "most 4 CPUs on one. Lower it, or add larger nodes",
        "{workers: 2, cpus_per_worker: 6}",
        cluster(SMALL, SMALL),
    ),
    "a worker that no node holds, left to auto": Case(
        "error: resources.cpus_per_worker: expected a node with 6 CPUs for each worker, found at "
        "most 4 CPUs on one. Lower it, or add larger nodes",
        "{cpus_per_worker: 6}",
        cluster(SMALL, SMALL),
    ),
    "GPUs where there are none": Case(
        "error: resources.gpus_per_worker: expected a node with 1 CPU and 1 GPU for each worker, "
        "found at most 4 CPUs on one. Lower it, or add larger nodes",
        "{workers: 2, gpus_per_worker: 1}",
    ),
    "a device where there is none, left to auto": Case(
        "error: resources.gpus_per_worker: expected a node with 1 CPU and 1 GPU for each worker, "
        "found at most 4 CPUs on one. Lower it, or add larger nodes",
        "{device: cuda}",
    ),
    "eight GPUs of two": Case(
        "error: resources.workers: expected room for 8 workers with 1 CPU and 1 GPU each, found "
        "room for 2 in a cluster with 8 CPUs and 2 GPUs on 1 node. Lower `resources.workers`, or "
        "add nodes",
        "{workers: 8, gpus_per_worker: 1}",
        cluster(GPUS),
    ),
    "the job itself takes the last core": Case(
        "error: resources.workers: expected room for 4 workers with 1 CPU each besides the 1 CPU "
        "of the job itself, found room for 3 in a cluster with 4 CPUs and 0 GPUs on 1 node. Lower "
        "`resources.workers`, or add nodes",
        "{workers: 4}",
        profile={"entrypoint_cpus": 1},
    ),
    "a process that no node has the memory for": Case(
        "error: entrypoint_memory_gib: expected a node with 16 GiB for the job itself, found at "
        "most 4 CPUs and 8.0 GiB on one. Lower it, or add larger nodes",
        profile={"entrypoint_memory_gib": 16},
    ),
    "room in all, and on no node": Case(
        "error: resources.workers: expected room for 3 workers with 3 CPUs each, found room for 2 "
        "in a cluster with 8 CPUs and 0 GPUs on 2 nodes. Lower `resources.workers`, or add nodes",
        "{workers: 3, cpus_per_worker: 3}",
        cluster(SMALL, SMALL),
    ),
    "too little that grows": Case(
        "warning: resources.workers: expected room for 6 workers with 1 CPU each, found room for "
        "4 in a cluster with 4 CPUs and 0 GPUs on 1 node. The cluster may grow: the job waits for "
        "nodes, for ever where none is so large",
        "{workers: 6}",
        cluster(SMALL, may_grow=True),
    ),
    "no node yet": Case(
        "warning: entrypoint_cpus: expected a node with 1 CPU for the job itself, found no node "
        "yet. The cluster may grow: the job waits for nodes, for ever where none is so large",
        "{workers: 1}",
        cluster(may_grow=True),
    ),
    "cores that others hold": Case(
        "warning: resources.workers: expected 2 workers with 1 CPU and 1 GPU each, found free room "
        "for 0. The job waits until others are done",
        "{workers: 2, gpus_per_worker: 1}",
        cluster(BUSY),
    ),
    "fewer GPUs than workers": Case(
        "warning: resources.gpus_per_worker: expected a GPU for each of 4 workers, found 2 in the "
        "cluster, so that all of them train on CPUs. Ask for 2 workers at most",
        "{workers: 4}",
        cluster(GPUS),
    ),
    "one worker with a GPU": Case(
        "warning: entrypoint_gpus: expected a GPU for the job itself, whose process trains where "
        "there is one worker, found 0. Set `entrypoint_gpus: 1` in the profile, or `engine: ray`",
        "{workers: 1, gpus_per_worker: 1}",
        cluster(GPUS),
    ),
}


@pytest.mark.parametrize("name", ON_CLUSTER)
def test_a_cluster_without_what_is_asked_for_is_told_in_a_sentence(name: str) -> None:
    case = ON_CLUSTER[name]
    loaded = spec(f"resources: {case.resources}\n" if case.resources else "")
    found = check_cluster(loaded, Profile(**case.profile), case.facts, here=HERE)
    assert [str(each) for each in found] == [case.says]


@pytest.mark.parametrize(
    ("resources", "facts", "profile"),
    [
        ("{}", cluster(SMALL), {}),
        ("{workers: 3}", cluster(SMALL), {}),
        ("{workers: 4}", cluster(SMALL), {}),
        ("{workers: 1}", cluster(NodeFacts("10.0.0.1", 1.0)), {}),
        ("{workers: 2, gpus_per_worker: 1}", cluster(GPUS), {}),
        ("{workers: 2}", cluster(GPUS), {}),
        ("{workers: 2, cpus_per_worker: 4}", cluster(SMALL, GPUS), {}),
        ("{workers: 2, cpus_per_worker: 4}", cluster(SMALL, SMALL), {}),
        ("{device: cuda}", cluster(GPUS), {}),
    ],
)
def test_what_a_cluster_has_is_nothing_to_talk_of(
    resources: str, facts: ClusterFacts, profile: Mapping[str, Any]
) -> None:
    loaded = spec(f"resources: {resources}\n")
    assert check_cluster(loaded, Profile(**profile), facts, here=HERE) == []


def test_each_stage_that_is_a_job_of_its_own_is_looked_at() -> None:
    profile = Profile.model_validate(
        {"stages": {"train": {"cpus": 2.0}, "prepare": {"cpus": 1.0, "memory_gib": 64.0}}}
    )
    loaded = spec("resources: {workers: 3}\n")
    assert check_cluster(loaded, profile, cluster(SMALL), here=HERE) == []
    found = check_cluster(loaded, profile, cluster(SMALL), here=HERE, separate=True)
    assert [(each.key, each.message.split(". ")[0]) for each in found] == [
        (
            "stages.prepare",
            (
                "expected a node with 1 CPU and 64 GiB for the job itself, found at most 4 CPUs "
                "and 8.0 GiB on one"
            ),
        ),
        (
            "resources.workers",
            (
                "expected room for 3 workers with 1 CPU each besides the 2 CPUs of the job itself, "
                "found room for 2 in a cluster with 4 CPUs and 0 GPUs on 1 node"
            ),
        ),
    ]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=4),
    workers=st.integers(2, 8),
    cpus=st.integers(1, 3),
    gpus=st.integers(0, 1),
    entry=st.integers(0, 3),
)
def test_what_is_let_pass_can_be_placed(
    sizes: list[tuple[int, int]], workers: int, cpus: int, gpus: int, entry: int
) -> None:
    """Held against trying every node for the job, and then placing worker by worker."""
    nodes = [NodeFacts(f"n{place}", float(c), float(g)) for place, (c, g) in enumerate(sizes)]
    asked = ResourcesSpec(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    model = spec().spec.model_copy(update={"resources": asked})
    entries = {"entrypoint_cpus": JobResources(float(entry))}
    found = list(resource_findings(model, entries, cluster(*nodes)))

    def can_be_placed() -> bool:
        for own, (own_cpus, _) in enumerate(sizes):
            if own_cpus < entry:
                continue
            left = [[c - entry * (own == place), g] for place, (c, g) in enumerate(sizes)]
            placed = 0
            for node in left:
                while node[0] >= cpus and node[1] >= gpus:
                    node[0], node[1], placed = node[0] - cpus, node[1] - gpus, placed + 1
            if placed >= workers:
                return True
        return False

    assert can_be_placed() == (not [each for each in found if each.severity == "error"])


# ----------------------------------------------------------------------------------------------
# Without a cluster.

KUBERAY: Mapping[str, Any] = {
    "backend": "kuberay",
    "image": "registry.example/team/batchtrain:1.0.0",
    "kubernetes": {"claim": "runs"},
}
DIGEST = "@sha256:" + "0f" * 32

BEFORE: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "a relative storage": (
        {},
        "./runs",
        [
            (
                "error: storage: expected a folder that all nodes share, or the address of an "
                "object store, since Ray deletes the working directory of a job, found the "
                "relative path './runs'. Set `storage` to a folder that all nodes share, or to an "
                "address: `--set storage=/mnt/shared/runs`, `--set storage=s3://bucket/runs`"
            )
        ],
    ),
    "a storage in Ray's own folder": (
        {},
        "/mnt/ray/session_2026-11-21_09-00-00_123456_77/runs",
        [
            (
                "error: storage: expected a folder that all nodes share, or the address of an "
                "object store, found '/mnt/ray/session_2026-11-21_09-00-00_123456_77/runs', which "
                "lies in a folder of Ray's own, deleted with the job. Set `storage` to a folder "
                "that all nodes share, or to an address: `--set storage=/mnt/shared/runs`, `--set "
                "storage=s3://bucket/runs`"
            )
        ],
    ),
    "a folder": (
        {},
        "/mnt/runs",
        [
            (
                "warning: storage: expected a folder that all nodes share, or the address of an "
                "object store, found '/mnt/runs', of which nothing is known here. It must be "
                "mounted on every node of the cluster; that is tried before the job starts"
            )
        ],
    ),
    "a bucket": (
        {},
        "s3://bucket/runs",
        [
            (
                "warning: storage: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
                "role, on every node of the cluster for a storage with s3://; what the nodes have "
                "is not known here, and tried before the job starts"
            )
        ],
    ),
    "anything here": ({"backend": "local"}, "./runs", []),
    "a bucket from here": (
        {"backend": "local"},
        "s3://bucket/runs",
        [
            (
                "warning: storage: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
                "role, in the environment here, found none of these. Export what is missing"
            )
        ],
    ),
    "a variable that is not there": (
        {"backend": "local", "forward": ("HF_HOME", "HTTPS_PROXY")},
        "./runs",
        [
            (
                "warning: forward: expected HF_HOME and HTTPS_PROXY in the environment here, found "
                "nothing. Export what the job is to get; else it goes without"
            )
        ],
    ),
    "pods with a volume": (dict(KUBERAY), "/mnt/runs", []),
    "pods without a volume": (
        {**KUBERAY, "kubernetes": {}},
        "/mnt/runs",
        [
            (
                "error: kubernetes.claim: expected the claim of a volume that every pod mounts at "
                "'/mnt/runs', found none. Name it in the profile, or set `storage` to the address "
                "of a bucket"
            )
        ],
    ),
    "pods without credentials": (
        {**KUBERAY, "kubernetes": {}},
        "s3://bucket/runs",
        [
            (
                "warning: kubernetes.secret: expected a Secret with AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a role of a service account, for a storage with s3://, "
                "found neither. Name one in the profile, unless the nodes have it"
            )
        ],
    ),
    "pods with credentials": ({**KUBERAY, "kubernetes": {"secret": "aws"}}, "s3://bucket/runs", []),
    "pods without an image": (
        {**KUBERAY, "image": None},
        "/mnt/runs",
        [
            (
                "error: image: expected the image that all pods run, found none. Name it in the "
                "profile, such as registry.example/team/batchtrain:1.0.0"
            )
        ],
    ),
    "an image without a tag": (
        {**KUBERAY, "image": "registry.example:5000/team/batchtrain"},
        "/mnt/runs",
        [
            (
                "error: image: expected an image with a tag of its own or a digest, found no tag, "
                "which means another image from one day to the next. Name a version, such as :1.0.0"
            )
        ],
    ),
    "an image that changes": (
        {**KUBERAY, "image": "batchtrain:latest"},
        "/mnt/runs",
        [
            (
                "error: image: expected an image with a tag of its own or a digest, found the tag "
                "latest, which means another image from one day to the next. Name a version, such "
                "as :1.0.0"
            )
        ],
    ),
    "an image with a digest": ({**KUBERAY, "image": f"batchtrain:latest{DIGEST}"}, "/mnt/runs", []),
    "an image of others": (
        {**KUBERAY, "image": "rayproject/ray:2.58.0-py312-cpu"},
        "/mnt/runs",
        [
            (
                "warning: image: expected Python 3.11.7, as here, found 3.12 in the image's tag. "
                "Use the same on both"
            ),
            (
                "warning: image: expected Ray 2.60.0, as here, found 2.58.0 in the image's tag. "
                "Use the same on both"
            ),
        ],
    ),
    "an image as here": ({**KUBERAY, "image": "rayproject/ray:2.60.0-py311-gpu"}, "/mnt/runs", []),
    "pods that are too small": (
        {**KUBERAY, "resources": {"workers": 9}, "kubernetes": {"claim": "runs", "nodes": 2}},
        "/mnt/runs",
        [
            (
                "error: resources.workers: expected room for 9 workers with 1 CPU each besides the "
                "1 CPU of the job itself, found room for 7 in a cluster with 8 CPUs and 0 GPUs on "
                "2 nodes. Lower `resources.workers`, or add nodes"
            )
        ],
    ),
}


def request_of(profile: Mapping[str, Any], storage: str) -> tuple[LoadedSpec, Profile]:
    made = Profile.model_validate(profile).named("there")
    workers = f"resources.workers={made.resources.workers}" if made.resources else "seed=42"
    return spec("", f"storage={storage}", workers), made


@pytest.mark.parametrize("name", BEFORE)
def test_what_needs_no_cluster_is_told_in_a_sentence(name: str) -> None:
    profile, storage, says = BEFORE[name]
    loaded, made = request_of(profile, storage)
    assert [str(each) for each in check_request(loaded, made, environ={}, here=HERE)] == says


def test_what_the_probe_will_find_out_is_not_said_before_it() -> None:
    for storage in ("/mnt/runs", "s3://bucket/runs"):
        loaded, profile = request_of({}, storage)
        assert check_request(loaded, profile, environ={}, here=HERE, will_probe=True) == []


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2"}, ""),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, ""),
        (
            {"AWS_ACCESS_KEY_ID": "hunter2"},
            (
                "error: storage: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role, "
                "in the environment here, found no AWS_SECRET_ACCESS_KEY. Export what is missing"
            ),
        ),
    ],
)
def test_variables_are_named_and_never_shown(environ: dict[str, str], says: str) -> None:
    loaded, profile = request_of({"backend": "local"}, "s3://bucket/runs")
    found = "".join(str(each) for each in check_request(loaded, profile, environ=environ))
    assert found == says
    assert "hunter2" not in found


CONNECTIONS: list[tuple[str, Token | None, list[str]]] = [
    ("http://127.0.0.1:8265", Token("t", "here"), []),
    ("http://localhost:8265", None, []),
    ("http://[::1]:8265", Token("t", "here"), []),
    ("https://ray.example", Token("t", "here"), []),
    (
        "http://head:8265",
        Token("t", "here"),
        [
            (
                "warning: address: expected https:// for an address beyond this machine, found "
                "http://head:8265, so that the token can be read on the way. Put TLS before the "
                "dashboard, or go through `ssh -L 8265:localhost:8265`"
            )
        ],
    ),
    (
        "http://head:8265",
        None,
        [
            (
                "warning: token: expected that the cluster at http://head:8265 asks for a token, "
                "found that it was asked without one. Whoever reaches a cluster without tokens "
                "runs what they like there: start it with RAY_AUTH_MODE=token"
            )
        ],
    ),
    (
        "http://127.0.0.1:8265",
        Token("t", "/home/me/.ray/auth_token", others_read=True),
        [
            (
                "warning: token: expected that only you may read /home/me/.ray/auth_token, found "
                "that others may too. Run `chmod 600 /home/me/.ray/auth_token`"
            )
        ],
    ),
]


@pytest.mark.parametrize(("address", "token", "says"), CONNECTIONS)
def test_the_way_to_a_cluster_is_looked_at(
    address: str, token: Token | None, says: list[str]
) -> None:
    assert [str(each) for each in check_connection(address, token)] == says


# ----------------------------------------------------------------------------------------------
# All of it.


def test_what_is_wrong_with_a_spec_is_found_before_a_cluster_is_asked() -> None:
    loaded, profile = request_of({"address": "http://127.0.0.1:1"}, "./runs")
    found = all_findings(loaded, profile, environ={}, probe=lambda: pytest.fail("was probed"))
    assert [each.key for each in found] == ["storage"]
    loaded, profile = request_of({"address": "http://127.0.0.1:1"}, "/mnt/runs")
    environ = {"RAY_AUTH_MODE": "disabled"}
    found = all_findings(loaded, profile, environ=environ, probe=lambda: pytest.fail("was probed"))
    assert [(each.key, each.severity) for each in found] == [("address", "error")]


def test_errors_end_a_submission_with_the_code_of_their_kind() -> None:
    refuse_errors([Finding("warning", "ray", "another patch")])
    with pytest.raises(ClusterError, match=r"^resources: too few\npython: another$") as caught:
        refuse_errors(
            [
                Finding("error", "resources", "too few"),
                Finding("warning", "ray", "another patch"),
                Finding("error", "python", "another"),
            ]
        )
    assert caught.value.exit_code == 1
    with pytest.raises(SpecError) as of_spec:
        refuse_errors([Finding("error", "storage", "relative", where="s.yaml:4:1")])
    assert of_spec.value.exit_code == 2
    assert str(of_spec.value.problems[0]) == "s.yaml:4:1  storage  relative"


def test_the_address_is_the_one_that_ray_would_take() -> None:
    other = {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "10.0.0.1:6379"}
    assert dashboard_address("http://b:2", other) == "http://b:2"
    assert dashboard_address(None, other) == "http://a:1"
    assert dashboard_address(None, {"RAY_ADDRESS": "http://c:3"}) == "http://c:3"
    assert dashboard_address(None, {"RAY_ADDRESS": "auto"}) == "http://127.0.0.1:8265"


def test_entries_are_named_by_the_keys_that_set_them() -> None:
    profile = Profile.model_validate({"entrypoint_cpus": 2, "stages": {"train": {"gpus": 1.0}}})
    assert entries_of(profile, "run", spec().spec) == {"entrypoint_cpus": JobResources(2.0)}
    separate = entries_of(profile, "run", spec().spec, separate=True)
    assert list(separate) == ["stages.train", "entrypoint_cpus"]
