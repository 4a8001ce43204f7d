"""The connection to Ray: made late, quietly, once, and ended by whoever began it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import ray
import ray._private.worker as ray_worker
from ray.exceptions import AuthenticationError, RaySystemError, RpcError

from batchtrain.engines import session
from batchtrain.engines.session import RaySession, inside_ray_job
from batchtrain.errors import ClusterError


@dataclass
class NoRay:
    """What stands for Ray: it remembers what it was asked, and fails on demand."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    shutdowns: int = 0
    error: BaseException | None = None
    is_connected: bool = False

    def init(self, **options: Any) -> None:
        """See `ray.init`; it takes SIGTERM for itself, as Ray does."""
        self.starts.append(options)
        self.environ = dict(os.environ)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ray_takes_it)
        if self.error is not None:
            raise self.error
        self.is_connected = True

    def shutdown(self) -> None:
        """See `ray.shutdown`."""
        self.shutdowns += 1
        self.is_connected = False


def ray_takes_it(*_: object) -> None:
    raise AssertionError("SIGTERM went to Ray")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoRay]:
    found = NoRay()
    monkeypatch.setattr(ray, "init", found.init)
    monkeypatch.setattr(ray, "shutdown", found.shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: found.is_connected)
    # These two are what connecting changes for good.
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with patch.dict(os.environ):
        yield found
    signal.signal(signal.SIGTERM, on_sigterm)


def test_without_a_cluster_a_ray_of_its_own_is_started_and_ended(no_ray: NoRay) -> None:
    joined: list[bool] = []
    with RaySession(cpus=64, joined=lambda: joined.append(True)) as connection:
        assert no_ray.starts == []
        connection.connect()
        connection.connect()
        assert no_ray.shutdowns == 0
    (options,) = no_ray.starts
    assert options["address"] == "local"
    assert options["num_cpus"] == max(64, os.cpu_count() or 1)
    assert options["include_dashboard"] is False
    assert options["log_to_driver"] is False
    # There is no other machine that could see other folders.
    assert joined == []
    connection.close()
    assert no_ray.shutdowns == 1


def test_what_is_never_needed_is_never_started(no_ray: NoRay) -> None:
    with RaySession("auto"):
        pass
    assert (no_ray.starts, no_ray.shutdowns) == ([], 0)


def test_a_ray_of_ones_own_has_a_core_for_each_worker_and_no_fewer_than_there_are(
    no_ray: NoRay,
) -> None:
    with RaySession(cpus=0) as connection:
        connection.connect()
    assert no_ray.starts[0]["num_cpus"] == (os.cpu_count() or 1)


def test_a_cluster_is_joined_as_it_is_and_its_storage_asked_once(no_ray: NoRay) -> None:
    joined: list[bool] = []
    connection = RaySession("10.0.0.1:6379", cpus=8, joined=lambda: joined.append(True))
    connection.connect()
    connection.connect()
    (options,) = no_ray.starts
    assert options["address"] == "10.0.0.1:6379"
    assert "num_cpus" not in options
    assert joined == [True]
    connection.close()
    assert no_ray.shutdowns == 1


def test_a_process_that_is_connected_stays_connected(no_ray: NoRay) -> None:
    no_ray.is_connected = True
    joined: list[bool] = []
    with RaySession(joined=lambda: joined.append(True)) as connection:
        connection.connect()
        connection.connect()
    assert (no_ray.starts, no_ray.shutdowns, joined) == ([], 0, [True])


def test_a_storage_that_the_nodes_do_not_see_is_asked_again_and_the_connection_ended(
    no_ray: NoRay,
) -> None:
    asked: list[int] = []

    def refuse() -> None:
        asked.append(len(asked))
        if len(asked) < 3:
            raise ClusterError("storage: expected that every node reads it")

    with RaySession("auto", joined=refuse) as connection:
        for _ in range(2):
            with pytest.raises(ClusterError, match="every node"):
                connection.connect()
        connection.connect()
        connection.connect()
    assert asked == [0, 1, 2]
    assert len(no_ray.starts) == 1
    assert no_ray.shutdowns == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("\n\nCould not find any running Ray instance.\nMore."),
        RuntimeError("Could not find any running Ray instance."),
        ValueError("Could not find any running Ray instance."),
        PermissionError(13, "Could not find any running Ray instance."),
        TimeoutError("Could not find any running Ray instance."),
        AuthenticationError("Could not find any running Ray instance."),
        RaySystemError("Could not find any running Ray instance."),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_sentence(no_ray: NoRay, error: Exception) -> None:
    no_ray.error = error
    with RaySession("nowhere:1") as connection:
        with pytest.raises(ClusterError) as caught:
            connection.connect()
        text = str(caught.value)
        assert text.startswith("expected a Ray cluster at 'nowhere:1', found none that answers: ")
        assert "Could not find any running Ray instance." in text
        assert "More." not in text
        assert len(text.splitlines()) == 1
    # There is nothing of ours to end.
    assert no_ray.shutdowns == 0


def test_after_a_failure_the_same_process_may_try_again(no_ray: NoRay) -> None:
    no_ray.error = ConnectionError("none")
    connection = RaySession("auto")
    with pytest.raises(ClusterError):
        connection.connect()
    connection.close()
    no_ray.error = None
    connection.connect()
    connection.close()
    assert (len(no_ray.starts), no_ray.shutdowns) == (2, 1)


def test_an_error_of_the_run_ends_the_connection_too(no_ray: NoRay) -> None:
    def fail_within() -> None:
        with RaySession("auto") as connection:
            connection.connect()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert no_ray.shutdowns == 1


@pytest.mark.parametrize("error", [None, ConnectionError("none"), KeyboardInterrupt()])
def test_r20_sigterm_stays_with_whoever_had_it(no_ray: NoRay, error: BaseException | None) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    no_ray.error = error
    with RaySession("auto") as connection:
        if error is None:
            connection.connect()
        else:
            with pytest.raises((ClusterError, KeyboardInterrupt)):
                connection.connect()
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_r20_where_nobody_had_sigterm_ray_cleans_up(no_ray: NoRay) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    RaySession("auto").connect()
    assert signal.getsignal(signal.SIGTERM) is ray_takes_it


def test_outside_the_main_thread_no_signal_is_touched(no_ray: NoRay) -> None:
    def mine(*_: object) -> None:
        pass

    signal.signal(signal.SIGTERM, mine)
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            RaySession("auto").connect()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGTERM) is mine


def test_what_ray_reads_is_set_before_it_starts_and_a_users_own_value_stands(
    no_ray: NoRay,
) -> None:
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "7"
    RaySession().connect()
    assert no_ray.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    for name, value in session.SETTINGS.items():
        if name != "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S":
            assert no_ray.environ[name] == value


@pytest.mark.parametrize(
    ("address", "environ", "is_attached", "joined"),
    [
        (None, {}, False, "local"),
        ("auto", {}, True, "auto"),
        ("10.0.0.1:6379", {"RAY_ADDRESS": "10.0.0.2:6379"}, True, "10.0.0.1:6379"),
        (None, {"RAY_ADDRESS": "10.0.0.2:6379"}, True, "auto"),
        (None, {"RAY_ADDRESS": ""}, False, "local"),
        (None, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True, "auto"),
    ],
)
def test_which_cluster_is_joined(
    no_ray: NoRay,
    address: str | None,
    environ: dict[str, str],
    is_attached: bool,
    joined: str,
) -> None:
    os.environ.update(environ)
    connection = RaySession(address)
    assert connection.is_attached is is_attached
    assert inside_ray_job() is ("RAY_JOB_CONFIG_JSON_ENV_VAR" in environ)
    connection.connect()
    assert no_ray.starts[0]["address"] == joined


def test_what_a_cluster_has(no_ray: NoRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.5, "memory": 1e9})
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    found = RaySession("auto").resources()
    assert (found.cpus, found.gpus, found.nodes) == (6.5, 0.0, 2)
    assert len(no_ray.starts) == 1


def test_r18_a_head_that_is_gone_is_one_sentence(
    no_ray: NoRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise RpcError("failed to connect to all addresses", rpc_code=14)

    monkeypatch.setattr(ray, "cluster_resources", gone)
    with pytest.raises(ClusterError, match="failed to connect to all addresses"):
        RaySession("auto").resources()
    assert len(no_ray.starts) == 1


def test_making_a_session_loads_no_ray() -> None:
    code = (
        "import sys\n"
        "from batchtrain.engines.session import RaySession\n"
        "with RaySession('auto') as connection:\n"
        "    assert connection.is_attached\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
