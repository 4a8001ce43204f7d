"""Become the only writer of a run, and stay it: a claim, and a heartbeat that keeps it alive."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Self

from batchtrain import points
from batchtrain.artifacts.claims import (
    NOT_WHAT_WAS_WRITTEN,
    Claim,
    Continues,
    check_fence,
    claim_key,
    read_claim,
    read_claims,
    who,
)
from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.process_identity import this_process
from batchtrain.errors import FencedError, RunOwnedError
from batchtrain.storage import Storage

__all__ = [
    "HEARTBEAT_LIMIT_SECONDS",
    "Ownership",
    "claim_run",
]

HEARTBEAT_LIMIT_SECONDS = 60.0
"""An owner that was silent for longer may be taken over."""

HEARTBEAT_SECONDS = 10.0
MAX_RACES = 10


def claim_run(
    storage: Storage,
    folder: str,
    *,
    continues: Callable[[Sequence[Claim]], Continues | None],
    take_over: bool = False,
    now: Callable[[], float] = time.time,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Ownership:
    """Become the only writer of a run; of any number of claimants at once exactly one does.

    An owner gives way when it has released the run, when it is a process of this machine that
    does not run any more, or when its last heartbeat is older than `HEARTBEAT_LIMIT_SECONDS`.

    Args:
        storage: Where the run lies.
        folder: The run's folder.
        continues: Gives the checkpoint to go on from, of those on the chain of the claims that
            it is given; called again only where a race was lost to a process that then died.
        take_over: Take the run even from an owner that seems alive.
        now: The time in seconds since 1970.
        heartbeat_seconds: Between two heartbeats.

    Raises:
        RunOwnedError: If another process that seems alive owns the run.
        ArtifactDamagedError: If a claim is torn.
    """
    for race in range(MAX_RACES):
        claims = read_claims(storage, folder)
        points.passed("owner.read")
        # Taking over is meant for the owner that somebody saw, not for the winner of a race.
        if claims and not (take_over and race == 0):
            _refuse_if_owned(storage, folder, claims[-1], now)
        goes_on_from = continues(claims)
        claim = Claim(len(claims) + 1, uuid.uuid4().hex, this_process(), goes_on_from, now())
        ownership = Ownership(storage, folder, (*claims, claim), now, heartbeat_seconds)
        if ownership._begin():
            return ownership
    raise RunOwnedError(
        f"expected to claim {storage.url(folder)}, found another claim first {MAX_RACES} times. "
        "Start the run in one place only, and try again"
    )


class Ownership:
    """The right to write one run, kept alive by a heartbeat; leaving the context releases it.

    Attributes:
        epoch: The number of the claim; whoever writes for the owner is handed it.
        token: What tells the claim from any other, handed along.
        claims: All claims of the run up to this one.
        heartbeat_error: Why the last heartbeat, or the release, could not be written; None where
            it was. A heartbeat is tried again, and the run goes on meanwhile.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        claims: tuple[Claim, ...],
        now: Callable[[], float],
        heartbeat_seconds: float,
    ) -> None:
        self.claims = claims
        self.epoch = claims[-1].epoch
        self.token = claims[-1].token
        self.heartbeat_error: Exception | None = None
        self._storage = storage
        self._folder = folder
        self._now = now
        self._heartbeat_seconds = heartbeat_seconds
        self._began = time.monotonic()
        self._fenced = False
        self._released = False
        self._stop = threading.Event()
        # A daemon, so that a process that forgets to release can still end.
        self._thread = threading.Thread(
            target=self._beat_until_stopped, name="batchtrain-heartbeat", daemon=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    @property
    def is_fenced(self) -> bool:
        """Whether a check or a heartbeat has found that another process took over."""
        return self._fenced

    def check(self) -> None:
        """Return if this is still the owner; called before each commit.

        Raises:
            FencedError: If another process has taken the run over.
        """
        try:
            check_fence(self._storage, self._folder, self.epoch, self.token)
        except FencedError:
            self._fenced = True
            raise

    def release(self) -> None:
        """Let the next claimant begin at once; what storage refuses is only remembered.

        Without it the next one still begins as soon as this process has ended, or on another
        machine after `HEARTBEAT_LIMIT_SECONDS`.
        """
        # A forked child has the object, but neither the right nor the thread.
        if os.getpid() != self.claims[-1].process.pid or self._released:
            return
        self._stop.set()
        # Else a last heartbeat could overwrite the release.
        if self._thread.is_alive():
            self._thread.join()
        self._beat(released=True)
        self._released = True
        points.passed("owner.released")

    def _begin(self) -> bool:
        """Make the claim and start the heartbeat; False if another claimant was first."""
        points.passed("owner.claiming")
        try:
            self._storage.create(claim_key(self._folder, self.epoch), self.claims[-1].to_bytes())
            # Who won is read back, not taken from the call: a reply can be lost on the way.
            written = read_claim(self._storage, self._folder, self.epoch)
            if written is None or written.token != self.token:
                return False
            points.passed("owner.claimed")
            self._thread.start()
        except BaseException:
            self.release()
            raise
        return True

    def _beat_until_stopped(self) -> None:
        while not self._fenced and not self._stop.wait(self._heartbeat_seconds):
            self._beat(released=False)

    def _beat(self, *, released: bool) -> None:
        try:
            # A claim that is not ours, or no longer the newest, gets no heartbeat from us.
            self.check()
            beat = {"token": self.token, "at": self._time(), "released": released}
            self._storage.write(_heartbeat_key(self._folder, self.epoch), canonical_json(beat))
        except Exception as error:  # noqa: BLE001  # nothing here may end a run that trains well
            self.heartbeat_error = error
        else:
            self.heartbeat_error = None

    def _time(self) -> float:
        """The time, which never falls behind the claim's by a clock that is set back."""
        return max(self._now(), self.claims[-1].at + time.monotonic() - self._began)


def _refuse_if_owned(storage: Storage, folder: str, owner: Claim, now: Callable[[], float]) -> None:
    """Raise `RunOwnedError` unless the owner has released the run or counts as dead."""
    heartbeat, is_released = _last_heartbeat(storage, folder, owner)
    if is_released or owner.process.is_known_dead():
        return
    # Below 0 where clocks differ or one was set back, which says nothing against the owner.
    age = now() - heartbeat
    if age > HEARTBEAT_LIMIT_SECONDS:
        return
    when = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s ahead of this clock"
    raise RunOwnedError(
        f"expected no other writer of {storage.url(folder)}, found {who(owner)} with its last "
        f"heartbeat {when}{_if_this_process(owner)}. Wait for it, end it, or pass --take-over "
        "(in Python take_over=True) if it cannot be reached: what it writes from then on does not "
        "count"
    )


def _last_heartbeat(storage: Storage, folder: str, claim: Claim) -> tuple[float, bool]:
    """When the owner was last heard of, and whether it has released the run."""
    try:
        beat = json.loads(storage.read(_heartbeat_key(folder, claim.epoch)))
        at = float(beat["at"])
        if beat["token"] == claim.token and math.isfinite(at):
            return at, beat.get("released") is True
    except (FileNotFoundError, *NOT_WHAT_WAS_WRITTEN):
        # None yet, or a torn one: the claim has its own time.
        pass
    return claim.at, False


def _if_this_process(owner: Claim) -> str:
    """What helps where a notebook's cell was cut off, or another thread is at work."""
    is_this = owner.process == this_process()
    return " (this very process, in another thread or in what was cut off)" if is_this else ""


def _heartbeat_key(folder: str, epoch: int) -> str:
    return f"{folder}/owner/{epoch}.heartbeat.json"
