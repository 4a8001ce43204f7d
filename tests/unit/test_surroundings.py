"""Where a run takes place: in this process or on Ray, which is not even loaded where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.session import CORES_VARIABLE, JOB_VARIABLE, ClusterResources, RaySession
from batchtrain.errors import ClusterError
from batchtrain.pipeline import run_spec
from batchtrain.preparation.stage import open_input
from batchtrain.spec.load import LoadedSpec
from batchtrain.storage import FolderStorage
from batchtrain.surroundings import ChosenLauncher, chosen_engine, ray_session
from batchtrain.training.train import OneProcess
from tests.support.builders import mixed_table, prepared_for, spec_for
from tests.support.ranks import Told, compared

NO_CLUSTER = ClusterResources(2, 0, 1, 2)
CPUS = ClusterResources(16, 0, 4, 4)
GPUS = ClusterResources(16, 4, 4, 4)


@dataclass
class Cluster:
    """What stands for a connection to Ray."""

    has: ClusterResources = NO_CLUSTER
    is_attached: bool = False
    asked: int = 0
    held: int = 0

    @contextmanager
    def holding_cores(
        self, count: int, _stop_requested: Callable[[], bool], waiting: Callable[[], None]
    ) -> Iterator[None]:
        """See `RaySession.holding_cores`."""
        waiting()
        self.held += count
        yield
        self.held -= count

    def resources(self) -> ClusterResources:
        """See `RaySession.resources`."""
        self.asked += 1
        return self.has


@dataclass
class OnRay:
    """What stands for `RayLauncher`."""

    session: Cluster
    place: Callable[[ClusterResources], Any]
    restarts: bool = True
    started: list[Any] = field(default_factory=list)

    def choose_machine(self, _resources: Any) -> Any:
        """See `Launcher`."""
        return self.place(self.session.resources())

    def __call__(self, task: Any, _progress: Any, _stop_requested: Any) -> Any:
        """See `Launcher`."""
        self.started.append(task)
        return "state"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the launcher of Ray, which would be loaded."""
    launcher = SimpleNamespace(RayLauncher=OnRay)
    monkeypatch.setitem(sys.modules, "batchtrain.training.ray_launcher", launcher)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared_for(spec_for(tmp_path_factory.mktemp("prepared"), mixed_table(90)))


def launcher_for(
    loaded: LoadedSpec,
    prepared: PreparedData,
    cluster: Cluster,
    *,
    engine: Literal["embedded", "ray"],
    progress: Told | None = None,
) -> ChosenLauncher:
    session: Any = cluster
    used: Any = SimpleNamespace(name=engine)
    return ChosenLauncher(loaded, prepared, session, progress or Told(), engine=used)


def chosen(launcher: ChosenLauncher, loaded: LoadedSpec) -> Any:
    launcher.choose_machine(loaded.spec.resources)
    return launcher._launcher


@pytest.mark.parametrize(
    ("engine", "resources", "cluster", "on_ray", "asked"),
    [
        # engine, resources, cluster, whether it is Ray, whether the cluster had to be asked for it
        ("embedded", {}, Cluster(), False, False),
        ("embedded", {"workers": 1}, Cluster(), False, False),
        ("embedded", {"workers": 1}, Cluster(CPUS, is_attached=True), False, False),
        ("embedded", {}, Cluster(CPUS, is_attached=True), False, True),
        ("embedded", {}, Cluster(GPUS, is_attached=True), True, True),
        ("embedded", {"device": "cpu"}, Cluster(GPUS, is_attached=True), False, True),
        ("embedded", {"gpus_per_worker": 0}, Cluster(GPUS, is_attached=True), False, True),
        ("embedded", {"workers": 2}, Cluster(), True, True),
        ("ray", {}, Cluster(), True, True),
        ("ray", {"workers": 1}, Cluster(), True, True),
        ("ray", {}, Cluster(GPUS, is_attached=True), True, True),
    ],
)
def test_where_a_training_takes_place(
    tmp_path: Path,
    prepared: PreparedData,
    engine: Literal["embedded", "ray"],
    resources: dict[str, Any],
    cluster: Cluster,
    on_ray: bool,
    asked: bool,
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), resources=resources)
    cluster = Cluster(cluster.has, cluster.is_attached)
    launcher = launcher_for(loaded, prepared, cluster, engine=engine)
    found = chosen(launcher, loaded)
    assert isinstance(found, OnRay if on_ray else OneProcess)
    assert bool(cluster.asked) is asked
    assert launcher.restarts is on_ray


@pytest.mark.parametrize(
    ("is_job", "held", "holds"),
    [(True, "0", True), (True, "1", False), (True, None, False), (False, "0", False)],
)
def test_a_job_without_a_core_holds_one_while_it_trains_by_itself(
    tmp_path: Path,
    prepared: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    is_job: bool,
    held: str | None,
    holds: bool,
) -> None:
    for name, value in ((JOB_VARIABLE, "{}" if is_job else None), (CORES_VARIABLE, held)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    cluster, progress, seen = Cluster(CPUS, is_attached=True), Told(), []

    def train(_self: Any, _task: Any, _progress: Any, _stop_requested: Any) -> str:
        seen.append(cluster.held)
        return "state"

    monkeypatch.setattr(OneProcess, "__call__", train)
    loaded = spec_for(tmp_path, mixed_table(90), resources={"cpus_per_worker": 2})
    launcher = launcher_for(loaded, prepared, cluster, engine="embedded", progress=progress)
    task: Any = SimpleNamespace(spec=loaded.spec)

    assert launcher(task, progress, lambda: False) == "state"
    assert seen == [2 if holds else 0]
    assert cluster.held == 0
    assert ("waiting for 2 free cores" in progress.notes) is holds


def test_engine_embedded_keeps_the_training_here_whatever_there_is(
    tmp_path: Path, prepared: PreparedData
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), engine="embedded")
    cluster = Cluster(GPUS, is_attached=True)
    found = chosen(launcher_for(loaded, prepared, cluster, engine="embedded"), loaded)
    assert isinstance(found, OneProcess)
    assert cluster.asked == 0


def test_a_batch_that_feeds_several_workers_gets_them(
    tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.training.placement.FEED_ROWS_CPU", 8)
    loaded = spec_for(tmp_path, mixed_table(90), training={"batch_size": 32})
    told = Told()
    cluster = Cluster(CPUS, is_attached=True)
    launcher = launcher_for(loaded, prepared, cluster, engine="embedded", progress=told)
    assert launcher.choose_machine(loaded.spec.resources).workers == 4
    assert launcher.restarts
    # It is said once, however often it is decided.
    assert launcher.choose_machine(loaded.spec.resources).workers == 4
    assert told.notes == ["4 workers: 32 rows a batch feed no more on CPUs"]


def test_no_more_workers_than_canonical_mode_divides_a_batch_among(
    tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.training.placement.FEED_ROWS_CPU", 1)
    loaded = spec_for(
        tmp_path, mixed_table(90), determinism="canonical", training={"batch_size": 32}
    )
    launcher = launcher_for(loaded, prepared, Cluster(CPUS, is_attached=True), engine="embedded")
    assert launcher.choose_machine(loaded.spec.resources).workers == 8


def test_a_cluster_that_has_changed_gives_another_number_of_workers(
    tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchtrain.training.placement.FEED_ROWS_CPU", 1)
    loaded = spec_for(tmp_path, mixed_table(90), training={"batch_size": 32})
    cluster, told = Cluster(CPUS), Told()
    launcher = launcher_for(loaded, prepared, cluster, engine="ray", progress=told)
    assert launcher.choose_machine(loaded.spec.resources).workers == 16
    cluster.has = ClusterResources(12, 0, 3, 4)
    assert launcher.choose_machine(loaded.spec.resources).workers == 12
    assert [note.partition(":")[0] for note in told.notes] == ["16 workers", "12 workers"]


def test_j15_more_than_the_cluster_has_is_refused_at_once(
    tmp_path: Path, prepared: PreparedData
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), resources={"workers": 17})
    launcher = launcher_for(loaded, prepared, Cluster(CPUS), engine="ray")
    with pytest.raises(ClusterError, match="17 CPUs for 17 workers, found a cluster with 16"):
        launcher.choose_machine(loaded.spec.resources)


def test_a_launcher_that_was_not_asked_for_a_machine_chooses_all_the_same(
    tmp_path: Path, prepared: PreparedData
) -> None:
    loaded = spec_for(tmp_path, mixed_table(90), resources={"workers": 2})
    launcher = launcher_for(loaded, prepared, Cluster(), engine="ray")
    assert not launcher.restarts
    task = SimpleNamespace(spec=loaded.spec)
    assert launcher(task, Told(), lambda: False) == "state"
    assert launcher._launcher is not None
    assert launcher._launcher.started == [task]


@pytest.mark.parametrize(
    ("resources", "cpus"),
    [({}, 1), ({"workers": 3}, 3), ({"workers": 3, "cpus_per_worker": 2}, 6)],
)
def test_a_ray_of_ones_own_gets_a_core_for_each_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    cpus: int,
) -> None:
    made: list[dict[str, Any]] = []

    def remember(address: str | None, **options: Any) -> RaySession:
        made.append({"address": address, **options})
        return RaySession(address)

    monkeypatch.setattr("batchtrain.surroundings.RaySession", remember)
    loaded = spec_for(tmp_path, mixed_table(60), resources=resources)
    ray_session(loaded.spec.resources, FolderStorage(tmp_path), "auto")
    assert (made[0]["address"], made[0]["cpus"]) == ("auto", cpus)


@pytest.mark.parametrize("engine", ["auto", "embedded"])
def test_a_small_input_is_read_here(tmp_path: Path, engine: str) -> None:
    loaded = spec_for(tmp_path, mixed_table(60), engine=engine)
    told = Told()
    found = chosen_engine(loaded, open_input(loaded), RaySession(), told)
    assert found.name == "embedded"
    assert told.notes == []


WHOLE_RUNS = """\
import os, sys
import batchtrain
for spec in sys.argv[1:]:
    result = batchtrain.run(spec)
    assert [stage["status"] for stage in result["stages"]] == ["built"] * 4, result
    loaded = sorted(name for name in sys.modules if name == "ray" or name.startswith("ray."))
    assert not loaded, (spec, loaded[:5])
assert "RAY_TRAIN_METRICS_ENABLED" not in os.environ
"""


def test_a_whole_small_run_loads_no_ray(tmp_path: Path) -> None:
    specs = []
    for number, more in enumerate([{}, {"resources": {"workers": 1}}, {"engine": "embedded"}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        loaded = spec_for(folder, mixed_table(60), training={"epochs": 1}, **more)
        specs.append(str(loaded.path))
    subprocess.run([sys.executable, "-c", WHOLE_RUNS, *specs], check=True)


def test_one_worker_and_auto_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name, resources in (("auto", {}), ("one", {"workers": 1})):
        (tmp_path / name).mkdir()
        loaded = spec_for(tmp_path / name, mixed_table(60), resources=resources)
        trained = run_spec(loaded, last="train").trained
        assert trained is not None
        found.append(compared(trained))
    assert found[0] == found[1]
