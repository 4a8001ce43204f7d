"""Which checkpoints a run has, and which of them a new attempt goes on from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from batchtrain.artifacts import Artifact, RunLayout, open_artifact
from batchtrain.artifacts.artifact import MANIFEST
from batchtrain.artifacts.claims import Claim, on_chain
from batchtrain.artifacts.trained import CHECKPOINT
from batchtrain.errors import ArtifactDamagedError, ArtifactError, StorageError
from batchtrain.progress import Progress

__all__ = [
    "CheckpointName",
    "FoundCheckpoint",
    "newest_checkpoint",
    "published_checkpoints",
    "superfluous",
]

NAME = re.compile(r"(?P<step>\d{12})-(?P<claim>\d{6})")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """What tells the checkpoints of a run apart; they sort by step, never by time.

    Attributes:
        step: Global steps taken, those too that were undone since.
        claim: The claim whose owner wrote it.
    """

    step: int
    claim: int

    @classmethod
    def of_key(cls, key: str) -> CheckpointName | None:
        """The name in the key of a checkpoint's folder; None where there is none."""
        found = NAME.fullmatch(key.rpartition("/")[2])
        return cls(int(found["step"]), int(found["claim"])) if found else None

    def key(self, layout: RunLayout) -> str:
        """The checkpoint's folder."""
        return layout.checkpoint(self.step, self.claim)


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that verifies."""

    name: CheckpointName
    artifact: Artifact


def newest_checkpoint(
    layout: RunLayout, claims: Sequence[Claim], progress: Progress
) -> FoundCheckpoint | None:
    """The checkpoint with the most steps that verifies, or None where none was ever published.

    Those of a writer that was taken over, published after it was, are looked at where no other
    is whole: each is as exact as any, and all are better than none.

    Raises:
        ArtifactDamagedError: If there are checkpoints and none can be used: beginning anew in
            silence would throw away work that somebody may want to save.
    """
    published = _known(layout)
    line = published_checkpoints(layout, claims)
    others = sorted(name for name in published - set(line) if name.claim <= len(claims))
    for name in (*reversed(line), *reversed(others)):
        try:
            found = open_artifact(layout.storage, name.key(layout), CHECKPOINT)
            found.verify()
        except ArtifactError as error:
            progress.note(f"a damaged checkpoint is passed over: {error}")
        except StorageError as error:
            url = layout.storage.url(name.key(layout))
            kind = type(error)
            raise kind(
                f"{error}. The newest checkpoint cannot be read; where that stays so, delete {url} "
                "to go on from the one before it"
            ) from error
        else:
            if name in others:
                progress.note(f"going on from a writer that was taken over: {found.url}")
            return FoundCheckpoint(name, found)
    if line or others:
        raise ArtifactDamagedError(
            f"expected a whole checkpoint in {layout.storage.url(layout.checkpoints)}, found "
            f"{len(line) + len(others)} damaged ones. Restore one, or delete the run's folder "
            f"{layout.storage.url(layout.root)} to begin anew"
        )
    if published:
        raise ArtifactDamagedError(
            f"expected the claims under which the {len(published)} checkpoints in "
            f"{layout.storage.url(layout.checkpoints)} were written, found {len(claims)} in "
            f"{layout.storage.url(layout.owner)}. Restore that folder, or delete the run's folder "
            f"{layout.storage.url(layout.root)} to begin anew"
        )
    return None


def published_checkpoints(layout: RunLayout, claims: Sequence[Claim]) -> list[CheckpointName]:
    """The checkpoints on the line of the newest claim, in the order of their steps."""
    named = [
        CheckpointName(claim.continues.step, claim.continues.epoch)
        for claim in claims
        if claim.continues is not None
    ]
    # What a claim goes on from may be superseded and deleted; it counts where nothing else does.
    found = sorted(name for name in _known(layout) if on_chain(claims, name.claim, name.step))
    return found or sorted(name for name in named if on_chain(claims, name.claim, name.step))


def superfluous(
    names: Iterable[CheckpointName], *, keep: int, protected: Iterable[CheckpointName]
) -> list[CheckpointName]:
    """Which checkpoints retention deletes: all but the newest `keep` and the protected ones.

    Example:
        >>> names = [CheckpointName(step, 1) for step in (10, 20, 30, 40)]
        >>> [name.step for name in superfluous(names, keep=2, protected=names[:1])]
        [20]
    """
    return sorted(set(sorted(names)[:-keep]) - set(protected))


def _known(layout: RunLayout) -> set[CheckpointName]:
    """The checkpoints that a listing shows, and the latest one, since a listing may lag behind."""
    ending = f"/{MANIFEST}"
    keys = layout.storage.list(layout.checkpoints)
    listed = [
        CheckpointName.of_key(key.removesuffix(ending)) for key in keys if key.endswith(ending)
    ]
    return {name for name in (*listed, _latest(layout)) if name is not None}


def _latest(layout: RunLayout) -> CheckpointName | None:
    """The checkpoint that the pointer names; a pointer is a hint, so anything else is None."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found = json.loads(layout.storage.read(layout.newest_checkpoint))
        return CheckpointName(int(found["step"]), int(found["claim"]))
    return None
