"""What starts the ranks of a training; it is named here without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from batchtrain.progress import Progress
from batchtrain.spec.run import ResourcesSpec

__all__ = ["Launcher", "LauncherAround"]


class Launcher(Protocol):
    """Runs all ranks of a training, each by `batchtrain.training.rank.train_rank`."""

    @property
    def restarts(self) -> bool:
        """Whether ranks that were lost are started again by themselves, within `retries`."""
        ...

    def choose_machine(self, resources: ResourcesSpec) -> Any:
        """The `MachineChoices` of the next start, the number of ranks among them.

        It may be another number than that of the last start, where a cluster has changed.
        """
        ...

    def __call__(self, task: Any, progress: Progress, stop_requested: Callable[[], bool]) -> Any:
        """Train, and give back the state in which the training ended.

        An error of one rank ends all of them and is raised. Task and state need torch, which a
        run that reuses its model does not load, so they are not typed here.

        Args:
            task: A `TrainTask`.
            progress: Hears of the training.
            stop_requested: Whether somebody asked for a stop.

        Returns:
            The `TrainState` after the last step.
        """
        ...


class LauncherAround:
    """A launcher that does something around another one; a subclass says what, in `__call__`.

    Attributes:
        inner: The other one.
    """

    def __init__(self, inner: Launcher) -> None:
        """Take the other one."""
        self.inner = inner

    @property
    def restarts(self) -> bool:
        """See `Launcher`."""
        return self.inner.restarts

    def choose_machine(self, resources: ResourcesSpec) -> Any:
        """See `Launcher`."""
        return self.inner.choose_machine(resources)
