"""The claims on a run: who may write it, and which checkpoints are on the line of the newest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.artifacts.process_identity import ProcessIdentity
from batchtrain.errors import ArtifactDamagedError, FencedError
from batchtrain.spec.base import fingerprint_of
from batchtrain.storage import Storage

__all__ = [
    "NOT_WHAT_WAS_WRITTEN",
    "Claim",
    "Continues",
    "check_fence",
    "claim_key",
    "on_chain",
    "read_claim",
    "read_claims",
    "who",
]

NOT_WHAT_WAS_WRITTEN = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What reading a file of JSON raises where it holds something else."""


@dataclass(frozen=True)
class Continues:
    """The checkpoint that a claim goes on from.

    Attributes:
        epoch: The claim under which it was written, from 1.
        step: Its global step, from 0.
    """

    epoch: int
    step: int

    def __post_init__(self) -> None:
        if self.epoch < 1 or self.step < 0:
            raise ValueError(f"expected a claim from 1 and a step from 0, found {self}")


@dataclass(frozen=True)
class Claim:
    """That one process may write a run from now on, and the processes before it no longer.

    Attributes:
        epoch: The number of the claim, 1, 2, 3 and so on; not an epoch of the training.
        token: Unique to the attempt.
        process: Who claimed.
        continues: Where it goes on from; None for the beginning.
        at: When it was made, in seconds since 1970; counts as the first heartbeat.
    """

    epoch: int
    token: str
    process: ProcessIdentity
    continues: Continues | None
    at: float = 0.0

    def __post_init__(self) -> None:
        # So every line of claims ends, whoever wrote them.
        if self.epoch < 1 or (self.continues is not None and self.continues.epoch >= self.epoch):
            raise ValueError(f"expected a claim to continue an earlier one, found {self}")
        if not math.isfinite(self.at):
            raise ValueError(f"expected a point in time, found {self.at}")

    def to_bytes(self) -> bytes:
        """The bytes of `<epoch>.json`, with a hash of all the rest of it."""
        document = asdict(self)
        return canonical_json({**document, "sha256": fingerprint_of(document)})

    @classmethod
    def from_bytes(cls, data: bytes, *, epoch: int, where: str) -> Claim:
        """Read `<epoch>.json`.

        Raises:
            ArtifactDamagedError: If it is not the whole claim of that number.
        """
        try:
            document = json.loads(data)
            if document.pop("sha256") != fingerprint_of(document):
                raise ValueError("its own hash is another")
            process, continues = document.pop("process"), document.pop("continues")
            claim = cls(
                **document,
                process=ProcessIdentity(**process),
                continues=None if continues is None else Continues(**continues),
            )
            if claim.epoch != epoch:
                raise ValueError(f"it is claim {claim.epoch}")
        except NOT_WHAT_WAS_WRITTEN as error:
            raise ArtifactDamagedError(
                f"expected claim {epoch} of a run, found something else in {where} ({error!r}). "
                "Put the file back from a copy; without one, make sure that no process writes "
                "this run, delete the run's folder, and start it anew"
            ) from error
        return claim


def on_chain(claims: Sequence[Claim], epoch: int, step: int) -> bool:
    """Whether a checkpoint belongs to the line that the newest claim continues.

    All that the newest claim wrote belongs to it, then what its `continues` names and what that
    claim wrote before, and so on. What a writer wrote after another had taken over does not.

    Args:
        claims: All claims of the run, in order.
        epoch: The claim under which the checkpoint was written.
        step: The checkpoint's global step.
    """
    if epoch < 1:
        return False
    number, last_step = len(claims), math.inf
    while number > epoch:
        continues = claims[number - 1].continues
        if continues is None:
            return False
        number, last_step = continues.epoch, continues.step
    return number == epoch and step <= last_step


def read_claims(storage: Storage, folder: str) -> tuple[Claim, ...]:
    """All claims of a run in order; empty where nobody has claimed it.

    They are read by their names, since a store may list a new file late.

    Args:
        storage: Where the run lies.
        folder: The run's folder.

    Raises:
        ArtifactDamagedError: If a claim is torn or is not one.
    """
    claims: list[Claim] = []
    while (claim := read_claim(storage, folder, len(claims) + 1)) is not None:
        claims.append(claim)
    return tuple(claims)


def check_fence(storage: Storage, folder: str, epoch: int, token: str) -> None:
    """Return if the claim `epoch` is the one with `token`, and the newest of the run.

    Any process that writes for the owner calls this before each commit. A process that is
    stopped between this call and its commit may still write, which `on_chain` then leaves out.

    Raises:
        FencedError: If another process has taken the run over, or the claim is gone.
        ArtifactDamagedError: If the claim is torn.
    """
    own = read_claim(storage, folder, epoch)
    if own is None or own.token != token:
        found = "no such claim" if own is None else f"that of {who(own)}"
        raise _fenced(storage, folder, epoch, f"{found} under this number")
    if storage.size(claim_key(folder, epoch + 1)) is not None:
        raise _fenced(storage, folder, epoch, f"claim {epoch + 1} after it")


def read_claim(storage: Storage, folder: str, epoch: int) -> Claim | None:
    """One claim of a run; None where there is none of that number."""
    key = claim_key(folder, epoch)
    try:
        data = storage.read(key)
    except FileNotFoundError:
        return None
    return Claim.from_bytes(data, epoch=epoch, where=storage.url(key))


def _fenced(storage: Storage, folder: str, epoch: int, found: str) -> FencedError:
    return FencedError(
        f"expected claim {epoch} of this process to be the newest of {storage.url(folder)}, "
        f"found {found}. Another process has taken the run over, or its folder was deleted: end "
        "this process, what it writes does not count any more"
    )


def who(claim: Claim) -> str:
    """The process that holds a claim, as a message names it."""
    return f"process {claim.process.pid} on {claim.process.host!r}"


def claim_key(folder: str, epoch: int) -> str:
    """Where a claim lies."""
    return f"{folder}/owner/{epoch}.json"
