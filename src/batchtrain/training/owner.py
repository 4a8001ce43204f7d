"""The claim on a run, from before its first step until its model is published."""

from __future__ import annotations

from collections.abc import Sequence

from batchtrain.artifacts import RunLayout
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.claims import Claim, Continues
from batchtrain.artifacts.ownership import Ownership, claim_run
from batchtrain.errors import OwnershipError
from batchtrain.progress import Progress
from batchtrain.training.lineage import FoundCheckpoint, newest_checkpoint

__all__ = ["RunOwner"]

MAX_CLAIMS = 3


class RunOwner:
    """Claims a run when there is something to train, and holds the claim until it is closed.

    Attributes:
        checkpoint: What the claim goes on from; None before the claim, and for a start.
    """

    def __init__(self, layout: RunLayout, progress: Progress, *, take_over: bool) -> None:
        self._layout = layout
        self._progress = progress
        self._take_over = take_over
        self._ownership: Ownership | None = None
        self.checkpoint: FoundCheckpoint | None = None

    def claim(self) -> Ownership:
        """Claim the run, to go on from its newest checkpoint.

        Raises:
            RunOwnedError: If another process that seems alive is writing it.
            ArtifactDamagedError: If it has checkpoints and none is whole.
        """
        for _ in range(MAX_CLAIMS):
            ownership = claim_run(
                self._layout.storage,
                self._layout.root,
                continues=self._continues,
                take_over=self._take_over,
            )
            self._ownership = ownership
            # Until the claim was made, the owner before may have deleted what it goes on from.
            if self.checkpoint is None or self._is_there(self.checkpoint):
                return ownership
            ownership.release()
        raise OwnershipError(
            f"expected the checkpoints in {self._layout.storage.url(self._layout.checkpoints)} to "
            f"stay once the run was claimed, found the chosen one gone {MAX_CLAIMS} times. "
            "Let no one clean this storage while a run writes to it"
        )

    def claim_again(self) -> Ownership:
        """Claim the run anew after its ranks were lost: none of theirs can write any more.

        Raises:
            OwnershipError: If another process took the run meanwhile.
        """
        self.check()
        self.close()
        # That is meant for the owner that somebody saw, not for one that came meanwhile.
        self._take_over = False
        return self.claim()

    @property
    def ownership(self) -> Ownership:
        """The claim that is held.

        Raises:
            OwnershipError: If there is none.
        """
        if self._ownership is None:
            raise OwnershipError(f"expected a claim on {self._layout.root}, found none. Claim it")
        return self._ownership

    def check(self) -> None:
        """Raise `FencedError` if another process has taken the run over."""
        if self._ownership is not None:
            self._ownership.check()

    def close(self) -> None:
        """Let the next one claim the run at once."""
        if self._ownership is not None:
            if self._ownership.heartbeat_error is not None:
                self._progress.note(
                    "the last heartbeat of this run could not be written, so that another process "
                    f"may have taken it for dead: {self._ownership.heartbeat_error}"
                )
            self._ownership.release()

    def _is_there(self, found: FoundCheckpoint) -> bool:
        key = f"{found.name.key(self._layout)}/{MANIFEST}"
        return self._layout.storage.size(key) is not None

    def _continues(self, claims: Sequence[Claim]) -> Continues | None:
        self.checkpoint = newest_checkpoint(self._layout, claims, self._progress)
        if self.checkpoint is None:
            return None
        name = self.checkpoint.name
        return Continues(epoch=name.claim, step=name.step)
