"""Between two steps: whether the state is saved now, and whether the run goes on.

All ranks must answer alike, and asking each other costs a collective. So the ranks agree at some
steps only, and at each of them on the step of the next: often enough to answer within a fraction
of a second, seldom enough not to show. None of this changes a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from batchtrain.spec.training import CheckpointSpec
from batchtrain.training.loop import StepLosses
from batchtrain.training.ranks import Ranks
from batchtrain.training.state import Snapshot, TrainState

__all__ = ["Saver", "StateKeeper", "next_look"]

LOOK_SECONDS = 0.25
"""The ranks agree about this often, so that a stop or a save waits no longer than that."""
MOST_STEPS_BETWEEN_LOOKS = 256


class Saver(Protocol):
    """Publishes checkpoints; only rank 0 has one that does."""

    @property
    def is_idle(self) -> bool:
        """Whether the checkpoint before is published, so that the next would not wait for it."""
        ...

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Publish a snapshot, in the background unless told to wait.

        Raises what went wrong with the one before.
        """
        ...


class StateKeeper:
    """Saves every so many steps and seconds, and at a stop; the same on all ranks."""

    def __init__(
        self,
        rules: CheckpointSpec,
        ranks: Ranks,
        saver: Saver | None,
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        *,
        max_seconds: float | None = None,
        seconds_before: float = 0.0,
        pause_after: int | None = None,
    ) -> None:
        """Begin to count the seconds.

        Args:
            rules: When to save.
            ranks: Who has to agree.
            saver: Rank 0's; None on the others.
            stop_requested: Whether somebody asked this rank for a stop.
            clock: Seconds that never go back.
            max_seconds: When the time for the training is up; None where it has as much as it
                needs.
            seconds_before: Those that earlier attempts took, up to the checkpoint that this one
                goes on from.
            pause_after: The epoch at whose end the run stops as if asked to; None for none.
        """
        self._rules = rules
        self._ranks = ranks
        self._saver = saver
        self._stop_requested = stop_requested
        self._clock = clock
        self._saved_at = clock()
        self._max_seconds = max_seconds
        self._began_at = clock() - seconds_before
        self._pause_after = pause_after
        self._pace = _Pace(clock())
        self._look_at = 0

    def goes_on(self, state: TrainState, losses: StepLosses) -> bool:
        """See `batchtrain.training.loop.Keeper`."""
        pause_after = self._pause_after
        if pause_after is not None and state.epoch >= pause_after and not state.ended_by:
            # All ranks come here after the same step, so nobody has to be asked.
            self._save(state, losses, wait=True)
            return False
        # Not the step: after a roll-back that is one that was looked at already.
        place = state.place
        if place < self._look_at:
            return True
        orders = self._agree(place)
        self._look_at = int(orders["look_at"])
        if orders["over"] and not orders["stop"]:
            state.ended_by = state.ended_by or "max_time"
        elif orders["stop"] or orders["save"]:
            self._save(state, losses, wait=bool(orders["stop"]))
        return not orders["stop"]

    def _save(self, state: TrainState, losses: StepLosses, *, wait: bool) -> None:
        # A loss that is not finite is found before a state that came of it is saved.
        losses.flush()
        if self._saver is not None:
            if self._max_seconds is not None:
                state.seconds = self._clock() - self._began_at
            self._saver.save(state.snapshot(), wait=wait)
        self._saved_at = self._clock()

    def _agree(self, step: int) -> dict[str, int]:
        """What rank 0 orders; any rank may ask for a stop."""
        mine = {"stop": int(self._stop_requested()), "save": 0, "over": 0, "look_at": step + 1}
        if self._saver is not None:
            mine["save"] = int(self._is_due(step, self._saver))
            if self._max_seconds is not None:
                mine["over"] = int(self._clock() - self._began_at >= self._max_seconds)
        if self._ranks.size == 1:
            return mine
        now = self._clock()
        mine["look_at"] = next_look(step, self._pace.seconds_a_step(step, now), self._rules)
        everyone: list[dict[str, int]] = self._ranks.gather(mine)
        return {**everyone[0], "stop": max(each["stop"] for each in everyone)}

    def _is_due(self, step: int, saver: Saver) -> bool:
        if self._rules.every_steps is not None and step % self._rules.every_steps == 0:
            return True
        if self._rules.every_seconds is None or not saver.is_idle:
            return False
        return self._clock() - self._saved_at >= self._rules.every_seconds


@dataclass
class _Pace:
    """How long a step takes, from the time between two looks."""

    at: float
    step: int | None = None

    def seconds_a_step(self, step: int, now: float) -> float:
        """Seconds a step since the last call; a look's worth before there were any."""
        steps = step - self.step if self.step is not None else 0
        seconds = (now - self.at) / steps if steps > 0 else LOOK_SECONDS
        self.at, self.step = now, step
        return seconds


def next_look(step: int, seconds_a_step: float, rules: CheckpointSpec) -> int:
    """The step after which the ranks agree next: soon, and never past one that is to be saved.

    Example:
        >>> next_look(10, 0.01, CheckpointSpec(every_steps=None))
        35
        >>> next_look(10, 0.01, CheckpointSpec(every_steps=20))
        20
    """
    steps = int(LOOK_SECONDS / max(seconds_a_step, 1e-9))
    look_at = step + min(max(1, steps), MOST_STEPS_BETWEEN_LOOKS)
    if rules.every_steps is not None:
        look_at = min(look_at, step - step % rules.every_steps + rules.every_steps)
    return look_at
