"""Units of work: what is trained in one go, and what came of it, as published on storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from batchtrain.spec.base import fingerprint_of
from batchtrain.tuning.trials import TrialState

__all__ = ["Member", "MemberOutcome", "Outcome", "Unit"]

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A trial in a unit.

    Attributes:
        number: Of the trial.
        values: What its spec has in place of the search's.
        source: The key of the unit in whose states the one lies that it goes on from; empty for
            a start, and for a run of its own, which has its checkpoints.
        parent: The number of the trial whose state that is.
    """

    number: int
    values: Mapping[str, Any]
    source: str = ""
    parent: int = -1


@dataclass(frozen=True)
class Unit:
    """Some trials, from the end of one epoch to the end of another.

    Attributes:
        members: The trials.
        first_epoch: The epochs that are over when it begins.
        last_epoch: Those that are over when it ends, for members that nothing ends before.
        full_epochs: Those of a whole training.
        is_pack: Whether one program trains all members; else they are runs of their own, one after
            the other.
    """

    members: tuple[Member, ...]
    first_epoch: int
    last_epoch: int
    full_epochs: int
    is_pack: bool

    @cached_property
    def key(self) -> str:
        """Its name on storage: what it is to do, so that another plan never finds its outcome."""
        digest = fingerprint_of({"format": FORMAT, **asdict(self)})[:12]
        return f"{self.members[0].number:06d}-{self.last_epoch:07d}-{digest}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of its trials."""
        return tuple(member.number for member in self.members)

    @property
    def title(self) -> str:
        """What a person reads of it."""
        if self.is_pack:
            return f"pack of {len(self.members)} from trial {self.members[0].number}"
        if len(self.members) == 1:
            return f"trial {self.members[0].number}"
        return f"trials {self.members[0].number} to {self.members[-1].number}"


@dataclass(frozen=True)
class MemberOutcome:
    """What came of one trial in a unit.

    Attributes:
        number: Of the trial.
        state: `paused`, `finished` or `failed`.
        epochs: Those that are over.
        best_epoch: The one whose weights are the model.
        scores: Each goal's metric after `best_epoch`.
        rows: Rows trained since its beginning; what a parent trained counts there.
        ended_by: What ended it before its last epoch; empty where nothing did.
        error: Why it failed.
        latest: Each goal's metric after the last epoch that is over.
    """

    number: int
    state: TrialState
    epochs: int = 0
    best_epoch: int = 0
    scores: Mapping[str, float | None] = field(default_factory=dict)
    rows: int = 0
    ended_by: str = ""
    error: str = ""
    latest: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a unit.

    Attributes:
        members: One for each of its trials, in their order.
        histories: The epochs of each trial by its number, as in any run's history.
    """

    members: tuple[MemberOutcome, ...]
    histories: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The published form; it holds no time and no host."""
        histories = {str(number): list(found) for number, found in self.histories.items()}
        return {
            "format": FORMAT,
            "members": [asdict(each) for each in self.members],
            "histories": histories,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError if it is no such."""
        if document["format"] != FORMAT:
            raise ValueError(f"expected the format {FORMAT}, found {document['format']!r}")
        return cls(
            tuple(MemberOutcome(**each) for each in document["members"]),
            {int(number): found for number, found in document["histories"].items()},
        )
