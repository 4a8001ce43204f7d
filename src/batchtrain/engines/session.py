"""The one place that starts Ray or joins a cluster, quietly, and only when somebody needs it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from batchtrain.errors import ClusterError, InterruptedRunError

__all__ = [
    "CORES_VARIABLE",
    "ClusterResources",
    "RaySession",
    "holds_no_core",
    "hush_ray_data",
    "inside_ray_job",
]

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's job supervisor sets it for the entry point of a submitted job, and nobody else does."""

ADDRESS_VARIABLE = "RAY_ADDRESS"

CORES_VARIABLE = "BATCHTRAIN_JOB_CPUS"
"""The cores that a submitted job holds by itself, for its own process to know."""

CORE_WAIT_S = 1.0
"""So often somebody who waits for a core looks whether to stop."""

SETTINGS = {
    # A run ends up to two of these intervals after its last step, and a lost worker is noticed
    # within one. Ray's default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A worker that is stopped cannot end itself. Ours are found to be silent within 12 s.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Else a worker leaves the folder that relative paths of a custom model start from.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Planning a small dataset takes 0.1 s instead of 1.7 s.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # We number and print what a person should see ourselves.
    "RAY_DEDUP_LOGS": "0",
    # A task that runs out of memory would be tried for ever.
    "RAY_task_oom_retries": "3",
    # An error of a task that nobody asks for any more is no news.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Its warning says what a future version will do with GPUs that no task asks for.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables that Ray reads when it starts; a user's own values stand."""

LOUD = ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve")
"""Loggers whose news stay in Ray's own files."""


@dataclass(frozen=True)
class ClusterResources:
    """What a cluster has in all, used or free.

    Attributes:
        cpus: CPU cores, as Ray counts them.
        gpus: GPUs.
        nodes: The nodes that are alive.
        most_cpus: The cores of the node that has the most.
    """

    cpus: float
    gpus: float
    nodes: int
    most_cpus: float


def inside_ray_job() -> bool:
    """Whether this process is the entry point of a job that was submitted to a cluster."""
    return JOB_VARIABLE in os.environ


def holds_no_core() -> bool:
    """Whether this process is a submitted job that was given no core for its own work."""
    return inside_ray_job() and os.environ.get(CORES_VARIABLE) == "0"


class RaySession:
    """A connection to Ray that is made when it is first needed, and ended by whoever began it.

    A process that is connected already, such as a notebook, stays connected.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int = 0,
        joined: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            address: A cluster to join, such as `auto`. Left out, the one that this process was
                started in, as a submitted job is; else a Ray of its own is started here.
            cpus: The cores that the run asks for; a Ray that is started here counts as many at
                least, so that several workers may share a core.
            joined: Called once, when a cluster was joined.
        """
        self._joined = joined
        self._address = address
        self._cpus = cpus
        self._connected_here = False
        self._is_checked = False

    @property
    def is_attached(self) -> bool:
        """Whether there is a cluster to join, as far as can be told without connecting."""
        return (
            self._address is not None or inside_ray_job() or bool(os.environ.get(ADDRESS_VARIABLE))
        )

    def connect(self) -> None:
        """Make sure that this process is connected.

        Raises:
            ClusterError: If the cluster cannot be reached.
        """
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            self._after_joining()
            return
        address = self._address or ("auto" if self.is_attached else "local")
        if address.startswith("ray://"):
            raise ClusterError(
                f"expected the address of a cluster's head, such as auto or 10.0.0.1:6379, found "
                f"{address!r}: Ray's client keeps the driver outside of the cluster, where it "
                "cannot watch the ranks. Submit a job instead: see docs/clusters.md"
            )
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            cpus = max(self._cpus, os.cpu_count() or 1)
            options |= {"num_cpus": cpus, "include_dashboard": False}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"expected a Ray cluster at {address!r}, found none that answers: "
                f"{_first_line(error)}. Start one with `ray start --head`, or correct the address; "
                "with token authentication, set RAY_AUTH_MODE=token here too"
            ) from error
        except SystemExit as error:
            raise InterruptedRunError(
                "stopped while Ray was started. Run the same command again to go on"
            ) from error
        finally:
            # Ray takes the signal for itself; whoever had it is to be told again.
            if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
        self._connected_here = True
        if address == "local":
            # There is no other node that could see other folders.
            self._is_checked = True
        self._after_joining()

    def _after_joining(self) -> None:
        _hush()
        if not self._is_checked:
            self._joined()
            self._is_checked = True

    def resources(self) -> ClusterResources:
        """What the cluster has; connects."""
        self.connect()
        import ray

        try:
            found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"expected the Ray cluster to say what it has, found: {_first_line(error)}. Look "
                "at its head, and run the same command again"
            ) from error
        of_nodes = [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]
        return ClusterResources(
            cpus=found.get("CPU", 0.0),
            gpus=found.get("GPU", 0.0),
            nodes=len(of_nodes),
            most_cpus=max(of_nodes, default=0.0),
        )

    @contextmanager
    def holding_cores(
        self, count: int, stop_requested: Callable[[], bool], waiting: Callable[[], None]
    ) -> Iterator[None]:
        """Hold cores of one node for the work of this process; waits until there are some.

        Args:
            count: How many.
            stop_requested: Whether to wait no more.
            waiting: Called once, where there are none at the moment.

        Raises:
            InterruptedRunError: If a stop was requested while it waited.
        """
        self.connect()
        from ray.util import placement_group, remove_placement_group

        group, has_told = placement_group([{"CPU": count}]), False
        try:
            while not group.wait(CORE_WAIT_S):
                if not has_told:
                    waiting()
                    has_told = True
                if stop_requested():
                    raise InterruptedRunError(
                        "stopped while it waited for a core. Run the same command again to go on"
                    )
            yield
        finally:
            remove_placement_group(group)

    def close(self) -> None:
        """End what `connect` began; a Ray that was started here ends with it."""
        if not self._connected_here:
            return
        import ray

        self._connected_here = False
        ray.shutdown()

    def __enter__(self) -> Self:
        """Nothing to do; leaving closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def hush_ray_data() -> None:
    """Keep Ray Data's bars and news off the terminal, in this process; it imports `ray.data`."""
    with warnings.catch_warnings():
        # Building its own default settings, it warns of some of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.data import DataContext

        context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    # Importing it has set its loggers up anew.
    _hush()


def _hush() -> None:
    """Keep Ray's news off the terminal; its own files have them all."""
    import ray._private.worker as ray_worker

    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    # What raylets report of dead workers is printed by a thread that heeds no setting. The run
    # says itself what it lost, and Ray's files have the report.
    if hasattr(ray_worker, "print_to_stdstream"):
        ray_worker.print_to_stdstream = _to_log


def _to_log(data: Mapping[str, Any], *_: object, **__: object) -> None:
    logging.getLogger("ray.raylet").debug("%s", data.get("lines"))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
