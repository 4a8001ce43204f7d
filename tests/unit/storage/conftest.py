"""A storage whose calls fail as a script says, and a clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from batchtrain.errors import StorageUnavailableError
from batchtrain.storage import RetryingStorage, Storage
from tests.support.builders import MemoryStorage

Outcome = Literal["works", "fails", "loses"]
"""Works; fails before it does anything; does it, and its reply is lost."""


@dataclass
class Clock:
    """Seconds since it was made; pauses are kept in their order."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.pauses.append(seconds)
        self.now += seconds


class Memory(MemoryStorage):
    """One that refuses a second create of the very same bytes too, as a retry sends them."""

    def create(self, key: str, data: bytes) -> bool:
        """See `Storage.create`."""
        if key in self.files:
            return False
        self.files[key] = data
        return True


@dataclass
class Unreliable:
    """Another storage behind a bad connection.

    Attributes:
        inner: That storage.
        outcomes: Verb to what becomes of its calls, one after the other; later ones work.
        clock: Passes `latency` seconds at each call.
        calls: The verbs that were called.
    """

    inner: Storage
    outcomes: dict[str, list[Outcome]]
    clock: Clock = field(default_factory=Clock)
    latency: float = 0.0
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, verb: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(verb)
            self.clock.now += self.latency
            script = self.outcomes.get(verb, [])
            outcome = script.pop(0) if script else "works"
            done = getattr(self.inner, verb)(*arguments) if outcome != "fails" else None
            if outcome != "works":
                raise StorageUnavailableError(f"{verb}: the connection was reset")
            return done

        return call


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def unreliable(
    clock: Clock,
) -> Callable[..., tuple[RetryingStorage, Unreliable]]:
    """A retrying storage around one in memory, whose calls end as given by verb."""

    def make(*, latency: float = 0.0, **outcomes: list[Outcome]) -> Any:
        inner = Unreliable(Memory(), outcomes, clock, latency)
        return RetryingStorage(inner, sleep=clock.sleep, clock=clock), inner

    return make
