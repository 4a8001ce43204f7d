"""Launches the ranks of a training as workers of Ray Train.

Each attempt has its own name towards Ray, writes nothing through Ray, and is never restarted by
Ray: what to go on from is decided from our own checkpoints, by whoever called.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from batchtrain.engines.session import ClusterResources, RaySession, hush_ray_data
from batchtrain.errors import ClusterError, InterruptedRunError
from batchtrain.progress import Progress
from batchtrain.spec.run import ResourcesSpec
from batchtrain.training.launched import last_state
from batchtrain.training.machine import MachineChoices, choose_machine
from batchtrain.training.placement import Placement
from batchtrain.training.rank import TrainTask
from batchtrain.training.ray_attempt import RayAttempt
from batchtrain.training.ray_loss import GO_ON
from batchtrain.training.ray_rank import Listeners
from batchtrain.training.state import TrainState
from batchtrain.training.supervision import DEFAULT_LIMITS, GroupLimits

__all__ = ["RayLauncher"]

REJOIN_POLL_SECONDS = 1.0


class RayLauncher:
    """Runs each rank in a worker of `TorchTrainer`; a loss of any of them ends all.

    Attributes:
        restarts: Always true: ranks that are lost are started again, within `retries`.
    """

    restarts = True

    def __init__(
        self,
        session: RaySession,
        place: Callable[[ClusterResources], Placement],
        *,
        limits: GroupLimits = DEFAULT_LIMITS,
        listeners: Listeners | None = None,
    ) -> None:
        """Launch nothing yet.

        Args:
            session: Connects when it is first needed.
            place: Decides from what the cluster has how many ranks there are, and on what.
            limits: When a rank counts as lost or stuck.
            listeners: For tests, which end a rank at a point.
        """
        self._session = session
        self._place = place
        self._limits = limits
        self._listeners = listeners
        self._placement: Placement | None = None
        # Of the last start; none before the first.
        self._progress: Progress | None = None
        self._stop_requested: Callable[[], bool] = lambda: False

    def choose_machine(self, resources: ResourcesSpec) -> MachineChoices:
        """See `Launcher.choose_machine`; asks a machine of the kind that the ranks get."""
        self._placement = placement = self._placed()
        if not placement.gpus_per_worker:
            # A GPU that is there and that no rank holds is used by those who ask for it by name.
            device = "cuda" if resources.device == "cuda" else "cpu"
            chosen = resources.model_copy(update={"device": device})
            return choose_machine(chosen, workers=placement.workers)
        asked: Any = ray.remote(choose_machine)
        ask = asked.options(num_cpus=0, num_gpus=placement.gpus_per_worker)
        found: MachineChoices = ray.get(ask.remote(resources, workers=placement.workers))
        return found

    def __call__(
        self, task: TrainTask, progress: Progress, stop_requested: Callable[[], bool]
    ) -> TrainState:
        """See `batchtrain.training.launcher.Launcher`.

        Raises:
            RankFailedError: If a rank raises an error that is not ours; ours come out as they are.
            RankLostError: If a rank, or its node, is gone.
            RankMemoryError: If a rank was ended because memory ran out.
            RankStuckError: If a rank makes no progress.
            LauncherLostError: If Ray Train's controller is gone.
            ClusterError: If Ray cannot start the ranks.
        """
        placement = self._placement or self._placed()
        self._placement = None
        self._progress, self._stop_requested = progress, stop_requested
        hush_ray_data()
        attempt = RayAttempt(placement, task, progress, self._limits, self._listeners)
        attempt.run(stop_requested)
        return last_state(task)

    def _placed(self) -> Placement:
        """The ranks that the cluster has room for; waits for a node that was lost.

        Raises:
            ClusterError: If it never had the room, or does not get it back in time.
        """
        began, has_noted = time.monotonic(), False
        while True:
            try:
                return self._place(self._session.resources())
            except ClusterError as error:
                is_first = self._progress is None
                if is_first or time.monotonic() - began > self._limits.rejoin_seconds:
                    raise
                if not has_noted and self._progress is not None:
                    has_noted = True
                    self._progress.note(f"waiting for a node to come back: {error}")
            if self._stop_requested():
                raise InterruptedRunError(f"stopped while it waited for a node. {GO_ON}")
            time.sleep(REJOIN_POLL_SECONDS)
