"""One MLflow run for a run of ours, however often it was cut; and no training waits for it.

The tests of what is logged run against a client of few lines, which is always there, and against
MLflow's own file store where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from batchtrain.errors import SpecError
from batchtrain.pipeline import run_spec
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.training import mlflow_log
from batchtrain.training.sending import Sender
from tests.support.builders import layout_for, mixed_table, run, spec_for, stop_training, storage_of
from tests.unit.training.test_tensorboard_log import cut_after

IS_INSTALLED = importlib.util.find_spec("mlflow") is not None


@dataclass(frozen=True)
class Entity:
    """A metric, a parameter or a tag."""

    key: str
    value: Any
    timestamp: int = 0
    step: int = 0


class FakeError(Exception):
    """An error of MLflow."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


@dataclass
class FakeRun:
    """What was logged of a run."""

    experiment: str
    metrics: list[Entity] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"


@dataclass
class FakeServer:
    """All runs; `before` is called with the name of each request, and may refuse it."""

    runs: dict[str, FakeRun] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda request: None


class FakeClient:
    """The part of MLflow's client that is used."""

    server = FakeServer()

    def __init__(self, *, tracking_uri: str, registry_uri: str) -> None:
        self.server.before("connect")
        assert tracking_uri == registry_uri

    def get_experiment_by_name(self, name: str) -> Any:
        known = name in self.server.experiments
        return SimpleNamespace(experiment_id=name) if known else None

    def create_experiment(self, name: str) -> str:
        self.server.experiments.append(name)
        return name

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> Any:
        self.server.before("create_run")
        run_id = f"run-{len(self.server.begun)}"
        self.server.begun.append(run_id)
        self.server.runs[run_id] = FakeRun(experiment, tags=dict(tags))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.server.runs:
            raise FakeError(run_id)
        return SimpleNamespace(data=SimpleNamespace(tags=dict(self.server.runs[run_id].tags)))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.server.runs[run_id].status = status

    set_terminated = update_run

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Entity] = (),
        params: Sequence[Entity] = (),
        tags: Sequence[Entity] = (),
    ) -> None:
        self.server.before("log_batch")
        assert len(metrics) + len(params) + len(tags) <= 1000
        assert len(params) <= 100
        found = self.server.runs[run_id]
        found.metrics += metrics
        for param in params:
            assert found.params.setdefault(param.key, param.value) == param.value
        found.tags |= {tag.key: tag.value for tag in tags}


@dataclass
class Logged:
    """What MLflow holds of one run of ours."""

    metrics: Counter[tuple[str, int, float]]
    params: dict[str, str]
    status: str


class Store:
    """MLflow behind a spec: where it is, and what it holds."""

    def __init__(self, folder: Path, *, is_fake: bool) -> None:
        self.folder = folder
        self._is_fake = is_fake

    @property
    def runs(self) -> list[Logged]:
        return self._faked() if self._is_fake else self._real()

    def _faked(self) -> list[Logged]:
        return [
            Logged(
                Counter((each.key, each.step, each.value) for each in each_run.metrics),
                each_run.params,
                each_run.status,
            )
            for each_run in FakeClient.server.runs.values()
        ]

    def _real(self) -> list[Logged]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=(self.folder / "mlruns").resolve().as_uri())
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = []
        for one in client.search_runs(experiments):
            metrics: Counter[tuple[str, int, float]] = Counter()
            for name in one.data.metrics:
                history = client.get_metric_history(one.info.run_id, name)
                metrics.update((name, each.step, each.value) for each in history)
            found.append(Logged(metrics, dict(one.data.params), one.info.status))
        return found

    def spec(self, **sections: Any) -> LoadedSpec:
        self.folder.mkdir(exist_ok=True)
        tracking = {
            "tensorboard": False,
            "log_every_steps": 1,
            "mlflow": {"uri": "mlruns", "experiment": "unit tests"},
        }
        return spec_for(self.folder, mixed_table(60), **{"tracking": tracking, **sections})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """MLflow's client, replaced by one that keeps everything in this process."""
    FakeClient.server = FakeServer()
    module, tracking = ModuleType("mlflow"), ModuleType("mlflow.tracking")
    entities, exceptions = ModuleType("mlflow.entities"), ModuleType("mlflow.exceptions")
    module.__spec__ = importlib.util.spec_from_loader("mlflow", None)
    vars(tracking)["MlflowClient"] = FakeClient
    vars(entities).update(Metric=Entity, Param=Entity, RunTag=Entity)
    vars(exceptions)["MlflowException"] = FakeError
    for each in (module, tracking, entities, exceptions):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return FakeClient.server


@pytest.fixture(
    params=[
        "fake",
        pytest.param(
            "file store",
            marks=pytest.mark.skipif(
                not IS_INSTALLED, reason="needs mlflow: pip install 'batchtrain[mlflow]'"
            ),
        ),
    ]
)
def is_fake(request: pytest.FixtureRequest) -> bool:
    if request.param == "fake":
        request.getfixturevalue("fake")
    return bool(request.param == "fake")


class Notes(Progress):
    """Remembers what a person should know of MLflow; of the model there is more to say."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        if "MLflow" in text:
            self.texts.append(text)


def test_a_run_is_there_with_its_numbers_its_hyper_parameters_and_its_end(
    tmp_path: Path, is_fake: bool
) -> None:
    store = Store(tmp_path, is_fake=is_fake)
    result = run(store.spec(), last="evaluate")
    (logged,) = store.runs
    assert result.trained is not None
    assert result.report is not None
    history = result.trained.history()
    expected = {("learning_rate", record["epoch"], record["lr"]) for record in history}
    expected |= {("Accuracy/valid", e["epoch"], 100 * e["valid_accuracy"]) for e in history}
    expected |= {("loss/validation", e["epoch"], e["valid_loss"]) for e in history}
    expected |= {("loss/training", e["epoch"], e["train_loss"]) for e in history[1:]}
    best = result.trained.content["best_epoch"]
    expected |= {
        (f"final/{split}/{name}", best, value)
        for split, metrics in result.report.metrics.items()
        for name, value in metrics.items()
        if value is not None
    }
    assert set(logged.metrics.values()) == {1}
    assert expected <= set(logged.metrics)
    steps = {step for name, step, _value in set(logged.metrics) - expected if name == "Loss/train"}
    assert steps == set(range(result.trained.content["steps"]))
    assert len(set(logged.metrics) - expected) == len(steps)
    assert logged.params["training.batch_size"] == "16"
    assert logged.params["model.kind"] == "mlp"
    assert logged.status == "FINISHED"


def test_a_run_that_was_cut_goes_on_in_the_same_mlflow_run_with_every_number_once(
    tmp_path: Path, is_fake: bool
) -> None:
    training = {"epochs": 6, "batch_size": 16, "checkpoint": {"every_steps": 4}}
    whole = Store(tmp_path / "whole", is_fake=is_fake)
    run(whole.spec(training=training), last="train")
    (expected,) = whole.runs
    if is_fake:
        FakeClient.server = FakeServer()
    store = Store(tmp_path / "broken", is_fake=is_fake)
    loaded = store.spec(training=training)
    stop_training(loaded, 3)
    assert store.runs[0].status == "KILLED"
    cut_after(loaded, 7)
    assert store.runs[0].status == "FAILED"
    run_spec(loaded, last="train", take_over=True)
    (logged,) = store.runs
    assert logged.metrics == expected.metrics
    assert set(logged.metrics.values()) == {1}
    assert logged.params == expected.params
    assert logged.status == "FINISHED"


def test_a_run_that_reuses_everything_asks_mlflow_nothing(tmp_path: Path, fake: FakeServer) -> None:
    loaded = Store(tmp_path, is_fake=True).spec()
    run(loaded, last="evaluate")

    def refuse(request: str) -> None:
        pytest.fail(f"asked for {request}")

    fake.before = refuse
    notes = Notes()
    stages = run_spec(loaded, progress=notes, last="evaluate").stages
    assert {stage.status for stage in stages} == {"reused"}
    assert notes.texts == []


def test_a_run_that_mlflow_has_lost_begins_another(tmp_path: Path, fake: FakeServer) -> None:
    loaded = Store(tmp_path, is_fake=True).spec()
    stop_training(loaded, 4)
    fake.runs.clear()
    run(loaded, last="train")
    assert list(fake.runs) == ["run-1"]
    epochs = [each.step for each in fake.runs["run-1"].metrics if each.key == "learning_rate"]
    assert epochs == [0, 1, 2, 3]


@pytest.mark.parametrize("request_", ["connect", "create_run", "log_batch"])
def test_r26_an_mlflow_that_refuses_costs_a_note_and_no_training(
    tmp_path: Path, fake: FakeServer, request_: str
) -> None:
    def refuse(name: str) -> None:
        if name == request_:
            raise FakeError("the server is on fire")

    fake.before = refuse
    notes = Notes()
    untracked = Store(tmp_path / "a", is_fake=True).spec(tracking={"tensorboard": False})
    plain = run(untracked, last="train")
    done = run_spec(Store(tmp_path / "b", is_fake=True).spec(), progress=notes, last="evaluate")
    assert done.trained is not None
    assert plain.trained is not None
    assert done.trained.content["state_sha256"] == plain.trained.content["state_sha256"]
    # One of the training, one of the final metrics.
    assert len(notes.texts) == 2
    assert all("on fire" in text for text in notes.texts)


def test_r26_an_mlflow_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_log, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(mlflow_log, "FLUSH_SECONDS", 0.01)
    answer = threading.Event()
    fake.before = lambda request: (answer.wait() and None) or None
    notes = Notes()
    loaded = Store(tmp_path, is_fake=True).spec(
        training={"epochs": 3, "batch_size": 16, "checkpoint": {"every_steps": 2}}
    )
    assert run_spec(loaded, progress=notes, last="train").trained is not None
    answer.set()
    (note,) = notes.texts
    assert "has not answered" in note


def test_what_is_unsent_has_a_limit() -> None:
    answer = threading.Event()
    sender = Sender(most_waiting=10)
    sender.put(lambda: (answer.wait() and None) or None, numbers=11)
    with pytest.raises(TimeoutError, match="has not taken the last 11 numbers"):
        sender.put(lambda: None)
    answer.set()
    sender.close(10)


def test_a_training_that_goes_back_logs_its_steps_anew(tmp_path: Path, fake: FakeServer) -> None:
    loaded = Store(tmp_path, is_fake=True).spec()
    assert loaded.spec.tracking.mlflow is not None
    log = mlflow_log.open_mlflow(loaded, layout_for(loaded), loaded.spec.tracking.mlflow)
    log.steps(0, [3.0, 2.0, 9.0])
    log.steps(1, [1.0, 0.5])
    log.close("finished")
    (found,) = fake.runs.values()
    newest = {each.step: each.value for each in found.metrics}
    assert newest == {0: 3.0, 1: 1.0, 2: 0.5}


def test_without_the_package_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Store(tmp_path, is_fake=True).spec()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError) as caught:
        run(loaded)
    (problem,) = caught.value.problems
    assert problem.key == "tracking.mlflow"
    assert "spec.yaml" in problem.where
    assert "pip install 'batchtrain[mlflow]'" in problem.hint
    assert not (tmp_path / "runs").exists()


def test_the_run_remembers_which_mlflow_run_it_is_and_no_other_place_takes_it(
    tmp_path: Path, fake: FakeServer
) -> None:
    loaded = Store(tmp_path, is_fake=True).spec()
    stop_training(loaded, 2)
    key = f"{layout_for(loaded).root}/mlflow.json"
    record = json.loads(storage_of(loaded).read(key))
    assert (record["run_id"], record["experiment"]) == ("run-0", "unit tests")
    elsewhere = Store(tmp_path, is_fake=True).spec(
        tracking={"tensorboard": False, "mlflow": {"uri": "https://mlflow.example.org"}}
    )
    run(elsewhere, last="train")
    assert [found.experiment for found in fake.runs.values()] == ["unit tests", "small"]
