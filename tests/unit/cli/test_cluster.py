"""Which cluster the options of a command name, and what is said before anything goes there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchtrain.cli.app import app
from batchtrain.cli.cluster import Cluster
from batchtrain.errors import ClusterError
from batchtrain.submission import ray_jobs
from tests.support.jobs import FakeJobs

TOKEN = "0f" * 32
PROFILES = """\
version: 1
profiles:
  laptop: {backend: local}
  plain: {address: "http://head:8265"}
  tls: {address: "https://head"}
  here: {address: "http://127.0.0.1:8265"}
  none: {rate_per_hour: 1}
  k8s:
    backend: kuberay
    image: batchtrain:1
    kubernetes: {namespace: training}
"""


@pytest.fixture
def beside(tiny_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Profiles beside a spec, in a folder with a space; the current one is another."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("tiny.yaml", "tiny.csv"):
        tiny_spec.with_name(name).rename(folder / name)
    (folder / "batchtrain-profiles.yaml").write_text(PROFILES)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """The clusters that were connected to; jobs stay where they are."""
    found: list[Cluster] = []
    jobs = FakeJobs()

    def connect(cluster: Cluster) -> FakeJobs:
        found.append(cluster)
        return jobs

    monkeypatch.setattr(Cluster, "connect", connect)
    monkeypatch.setattr("batchtrain.cli.submitting.check", lambda *_, **__: None)
    return found


@pytest.fixture
def dashboards(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The dashboards that a client of Ray was made for."""
    found: list[str | None] = []
    monkeypatch.setattr(ray_jobs, "RayJobs", found.append)
    return found


def batchtrain(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def submit(folder: Path, *words: str) -> Result:
    # Absolute, as a cluster wants it, or where the profile `laptop` leaves it to the spec.
    storage = () if "laptop" in words or "local" in words else ("--set", "storage=/mnt/runs")
    return batchtrain("submit", str(folder / "tiny.yaml"), *words, *storage)


@pytest.mark.parametrize("way", ["detached", "Ctrl-C"])
@pytest.mark.parametrize(
    "words",
    [
        ("--profile", "laptop"),
        ("--backend", "local"),
        ("--backend", "local", "--address", "there"),
        ("--profile", "tls"),
        ("--profile", "k8s"),
        ("--address", "http://head:8265"),
    ],
    ids=" ".join,
)
def test_what_is_printed_leads_to_the_job_when_it_is_pasted(
    way: str,
    words: tuple[str, ...],
    beside: Path,
    asked: list[Cluster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "detached":
        done = submit(beside, *words, "--detach")
        lines = [line.strip() for line in done.stdout.splitlines()]
    else:

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("batchtrain.cli.submitting.follow", interrupt)
        done = submit(beside, *words)
        assert done.exit_code == 130
        lines = done.stderr.splitlines()[-1].split("end it: ")
    sent = asked.pop()
    [line] = [line for line in lines if line.startswith("batchtrain stop ")]
    monkeypatch.chdir("/")

    pasted = batchtrain(*shlex.split(line)[1:], "--json")

    assert pasted.exit_code == 0, pasted.output
    there = asked.pop()
    assert (there.backend, there.address) == (sent.backend, sent.address)
    assert there.profile.kubernetes == sent.profile.kubernetes
    if sent.backend == "local":
        assert sent.address == str(beside / ("there" if "there" in words else "runs"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("plain", "http://head:8265 (profile plain of {file})"),
        ("none", "http://127.0.0.1:8265 (profile none of {file})"),
        ("k8s", "the namespace training with the image batchtrain:1 (profile k8s of {file})"),
        ("laptop", ""),
    ],
)
def test_where_a_profile_leads_is_said_before_anything_is_sent(
    name: str,
    place: str,
    beside: Path,
    dashboards: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def connect(_cluster: Cluster) -> None:
        raise ClusterError("nobody answers")

    monkeypatch.setattr(Cluster, "connect", connect)
    place = place.format(file=beside / "batchtrain-profiles.yaml")
    failed = "ClusterError: nobody answers\n"

    done = submit(beside, "--profile", name)

    assert done.stderr == (f"submitting to {place}\n" if place else "") + failed
    monkeypatch.chdir(beside)
    for command in (("list",), ("status", "x"), ("logs", "x"), ("stop", "x")):
        done = batchtrain(*command, "--profile", name)
        assert done.stderr == (f"asking {place}\n" if place else "") + failed
    assert submit(beside, "--profile", name, "--json").stderr == failed


def test_an_address_that_the_user_has_typed_is_not_repeated(
    beside: Path, asked: list[Cluster]
) -> None:
    done = submit(beside, "--profile", "plain", "--address", "http://other:8265", "--detach")
    assert (done.exit_code, done.stderr) == (0, "")
    assert asked[0].address == "http://other:8265"


def test_a_profile_that_came_with_a_spec_sends_no_token_over_plain_http(
    beside: Path, dashboards: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    file = beside / "batchtrain-profiles.yaml"

    monkeypatch.chdir(beside)
    for done in (submit(beside, "--profile", "plain"), batchtrain("list", "--profile", "plain")):
        assert done.exit_code == 1
        assert f"found http://head:8265 in {file}, so that others could read" in done.stderr
        assert f"`--address http://head:8265` or `--profiles {file}`" in done.stderr
        assert TOKEN not in done.output

    assert dashboards == []


def connected(name: str, folder: Path, *, address: str | None = None, file: Any = None) -> None:
    Cluster.of(address, name, file, None, folder=folder).connect()


def test_a_token_goes_where_the_user_says(
    beside: Path, dashboards: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = beside / "batchtrain-profiles.yaml"
    connected("plain", beside)  # There is no token.
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    connected("tls", beside)
    connected("here", beside)
    connected("none", beside)
    connected("plain", beside, address="http://typed:8265")
    connected("plain", beside, file=file)
    monkeypatch.setenv("BATCHTRAIN_PROFILES", str(file))
    connected("plain", beside)
    assert dashboards == [
        "http://head:8265",
        "https://head",
        "http://127.0.0.1:8265",
        None,
        "http://typed:8265",
        "http://head:8265",
        "http://head:8265",
    ]
