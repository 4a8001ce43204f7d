"""Every error that batchtrain raises on purpose.

BatchtrainError                     exit code 1
 +-- SpecError                      2    the spec is wrong; lists every problem at once
 +-- DataError                      2    the rows are wrong
 |    +-- SchemaMismatchError       2    a table does not have the columns or types it must have
 |    +-- NoRowsError               2    a table without rows, where there must be some
 |    +-- UnsafeInputError          2    an input that is refused for safety (links, types, places)
 +-- StorageError                   1    storage cannot do what is asked
 |    +-- StorageUnavailableError   1    it may pass if tried again, and was tried again in vain
 +-- ArtifactError                  1    a published artifact cannot be used
 |    +-- ArtifactMissingError      1    no manifest at that place
 |    +-- ArtifactDamagedError      1    a file differs from its manifest
 +-- TrainingError                  1    the training itself failed
 |    +-- DivergedError             1    the loss is no longer a number
 |    +-- RankFailedError           1    one rank raised; the error names it
 |    +-- RankLostError             1    one rank's process ended without a word
 |    +-- RankStuckError            1    one rank makes no progress
 |    +-- RankMemoryError           1    one rank was ended because memory ran out
 |    +-- LauncherLostError         1    what starts and watches the ranks was lost
 +-- ClusterError                   1    a cluster cannot do what is asked
 +-- OwnershipError                 1    who may write a run
 |    +-- RunOwnedError             1    another process is writing this run
 |    +-- FencedError               1    another process has taken this run over
 +-- ModelRejectedError             1    a threshold of `evaluation.require` is missed
 +-- VerificationError              1    a bundle no longer gives its golden outputs
 +-- InterruptedRunError            130  Ctrl-C or SIGTERM
      +-- PausedRunError           130  a search paused it at the end of an epoch

A message has four parts: what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "ArtifactDamagedError",
    "ArtifactError",
    "ArtifactMissingError",
    "BatchtrainError",
    "ClusterError",
    "DataError",
    "DivergedError",
    "FencedError",
    "InterruptedRunError",
    "LauncherLostError",
    "ModelRejectedError",
    "NoRowsError",
    "OwnershipError",
    "PausedRunError",
    "Problem",
    "RankFailedError",
    "RankLostError",
    "RankMemoryError",
    "RankStuckError",
    "RunOwnedError",
    "SchemaMismatchError",
    "SpecError",
    "StorageError",
    "StorageUnavailableError",
    "TrainingError",
    "UnsafeInputError",
    "VerificationError",
]


class BatchtrainError(Exception):
    """The base of all errors of this package; `exit_code` is what the command line ends with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec.

    Attributes:
        where: `file:line:column`, or the `--set` argument that it comes from.
        key: The dotted path of the key, such as `training.optimizer.lr`; empty for the document.
        message: What was expected and what was found, as one sentence.
        hint: What to do, as one sentence; empty where the message says it already.
    """

    where: str
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """One line: place, key, sentence, advice."""
        parts = [self.where, self.key, self.message, self.hint]
        return "  ".join(part for part in parts if part)


class SpecError(BatchtrainError):
    """The spec cannot be run as it stands; `problems` holds all that is wrong with it."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [str(problem) for problem in self.problems]
        lines.append(f"{count} problem{'' if count == 1 else 's'}. Nothing was started.")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        """Rebuild from the problems, so that the error crosses process borders."""
        return type(self), (self.problems,)


class DataError(BatchtrainError):
    """The rows are not what the spec needs."""

    exit_code = 2


class SchemaMismatchError(DataError):
    """A table lacks a column, or a column holds values of another type."""


class NoRowsError(DataError):
    """A table has no rows."""


class UnsafeInputError(DataError):
    """An input or output that is refused because using it would not be safe."""


class StorageError(BatchtrainError):
    """Storage is missing, full, read-only, or does not keep its promises."""


class StorageUnavailableError(StorageError):
    """Storage failed in a way that may pass, such as a timeout; it was tried again in vain."""


class ArtifactError(BatchtrainError):
    """A published artifact cannot be used."""


class ArtifactMissingError(ArtifactError):
    """There is no published artifact at that place."""


class ArtifactDamagedError(ArtifactError):
    """A file of an artifact is missing or differs from what its manifest says."""


class TrainingError(BatchtrainError):
    """Training failed."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class RankFailedError(TrainingError):
    """One rank of a run raised an error; the message names the rank and holds its traceback."""


class RankLostError(TrainingError):
    """The process of one rank ended without a result and without an error of its own."""


class RankStuckError(TrainingError):
    """One rank made no progress within the limit; the message names it and where its stack is."""


class RankMemoryError(TrainingError):
    """One rank was ended because memory ran out; the message names it and what to lower."""


class LauncherLostError(TrainingError):
    """What starts and watches the ranks was lost, and the ranks with it."""


class ClusterError(BatchtrainError):
    """A cluster cannot be reached, or cannot do what is asked of it."""


class OwnershipError(BatchtrainError):
    """A run has one writer at a time."""


class RunOwnedError(OwnershipError):
    """Another process that seems alive is writing this run."""


class FencedError(OwnershipError):
    """Another process has taken this run over; what this one writes would not be read."""


class ModelRejectedError(BatchtrainError):
    """The model misses a threshold of `evaluation.require`; it is not exported."""


class VerificationError(BatchtrainError):
    """A bundle does not give the outputs that it recorded when it was exported."""


class InterruptedRunError(BatchtrainError):
    """The run was stopped by Ctrl-C or SIGTERM; the message says how to go on."""

    exit_code = 130


class PausedRunError(InterruptedRunError):
    """A training came to the epoch after which it was to be looked at; it can go on from there."""
