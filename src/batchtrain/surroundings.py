"""Where a run takes place: in this process or on Ray, decided once for all its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchtrain.artifacts.prepared import PreparedData
from batchtrain.engines.choice import EngineChoice, choose_engine
from batchtrain.engines.embedded import EmbeddedEngine
from batchtrain.engines.engine import Engine
from batchtrain.engines.session import ClusterResources, RaySession, holds_no_core
from batchtrain.progress import Progress
from batchtrain.spec.load import LoadedSpec
from batchtrain.spec.run import CANONICAL_GROUPS, ResourcesSpec
from batchtrain.storage import Storage
from batchtrain.tables import Source
from batchtrain.training.launcher import Launcher, LauncherAround

__all__ = ["ChosenLauncher", "chosen_engine", "ray_session"]


def ray_session(resources: ResourcesSpec, storage: Storage, address: str | None) -> RaySession:
    """The connection to Ray for a run, which is made when it is first needed.

    Args:
        resources: What the run asks for.
        storage: Where it writes; each node of a cluster is asked to write and read there first.
        address: The cluster to join; see `RaySession`.
    """
    workers = 1 if resources.workers == "auto" else resources.workers

    def check() -> None:
        from batchtrain.engines.nodes import check_storage_on_nodes

        check_storage_on_nodes(storage)

    return RaySession(address, cpus=workers * resources.cpus_per_worker, joined=check)


def chosen_engine(
    loaded: LoadedSpec, source: Source, session: RaySession, progress: Progress
) -> Engine:
    """The engine for an input; Ray is not started before it is used.

    Args:
        loaded: The spec.
        source: Its input.
        session: The connection to Ray.
        progress: Hears why it is Ray, where that was not asked for.
    """
    spec = loaded.spec
    choice: EngineChoice = choose_engine(
        spec.engine,
        input_bytes=sum(file.size for file in source.files),
        workers=spec.resources.workers,
    )
    if choice.name == "embedded":
        return EmbeddedEngine()
    if spec.engine == "auto":
        progress.note(choice.why)
    # Imported here, since most runs need no Ray.
    from batchtrain.engines.ray import RayEngine

    return RayEngine(session)


class ChosenLauncher:
    """Launches in this process, or on Ray, whichever suits; asked when there is something to train.

    With one worker and no cluster it is this process. On a cluster it is Ray where that has GPUs,
    or where the batch feeds several workers.
    """

    def __init__(
        self,
        loaded: LoadedSpec,
        prepared: PreparedData,
        session: RaySession,
        progress: Progress,
        *,
        engine: Engine,
    ) -> None:
        """Choose nothing yet.

        Args:
            loaded: The spec.
            prepared: The rows.
            session: The connection to Ray.
            progress: Hears how many workers there are and why.
            engine: What the rows were prepared with.
        """
        self._loaded = loaded
        self._prepared = prepared
        self._session = session
        self._progress = progress
        self._engine = engine
        self._launcher: Launcher | None = None

    @property
    def restarts(self) -> bool:
        """See `Launcher`."""
        return self._launcher is not None and self._launcher.restarts

    def choose_machine(self, resources: ResourcesSpec) -> Any:
        """See `Launcher`."""
        if self._launcher is None:
            self._launcher = self._chosen(resources)
        return self._launcher.choose_machine(resources)

    def __call__(self, task: Any, progress: Progress, stop_requested: Callable[[], bool]) -> Any:
        """See `Launcher`."""
        if self._launcher is None:
            self._launcher = self._chosen(task.spec.resources)
        return self._launcher(task, progress, stop_requested)

    def _chosen(self, resources: ResourcesSpec) -> Launcher:
        # Late, since a run that reuses its model needs neither torch nor Ray.
        from batchtrain.training.plan import global_batch_rows
        from batchtrain.training.train import OneProcess

        if not self._may_be_ray(resources):
            return OneProcess()
        from batchtrain.training.placement import Placement, place_workers
        from batchtrain.training.ray_launcher import RayLauncher

        num_rows = self._prepared.num_rows("train")
        batch_rows = global_batch_rows(self._loaded.spec.training, num_rows=num_rows)
        canonical = self._loaded.spec.determinism == "canonical"
        said: list[str] = []

        def place(cluster: ClusterResources) -> Placement:
            placement = place_workers(
                resources,
                cpus=cluster.cpus,
                gpus=cluster.gpus,
                most_cpus=cluster.most_cpus,
                batch_rows=batch_rows,
                num_rows=num_rows,
                most=CANONICAL_GROUPS if canonical else None,
            )
            if placement.why not in said:
                said.append(placement.why)
                self._progress.note(placement.why)
            return placement

        if resources.workers == "auto" and self._engine.name == "embedded":
            placement = place(self._session.resources())
            if placement.workers == 1 and not placement.gpus_per_worker:
                here = OneProcess()
                return _HoldingCores(here, self._session) if holds_no_core() else here
        return RayLauncher(self._session, place)

    def _may_be_ray(self, resources: ResourcesSpec) -> bool:
        if self._loaded.spec.engine == "embedded":
            return False
        several = resources.workers != "auto" and resources.workers > 1
        attached = resources.workers == "auto" and self._session.is_attached
        return self._engine.name == "ray" or several or attached


class _HoldingCores(LauncherAround):
    """A launcher for the own process of a job that was given no core, as it might have had ranks.

    What it works with it holds as they would, so that the cluster knows.
    """

    def __init__(self, inner: Launcher, session: RaySession) -> None:
        super().__init__(inner)
        self._session = session

    def __call__(self, task: Any, progress: Progress, stop_requested: Callable[[], bool]) -> Any:
        """See `Launcher`."""
        count = task.spec.resources.cpus_per_worker

        def waiting() -> None:
            progress.note(f"waiting for {count} free core{'' if count == 1 else 's'}")

        with self._session.holding_cores(count, stop_requested, waiting):
            return self.inner(task, progress, stop_requested)
