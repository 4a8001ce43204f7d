"""How a rank fails: told in JSON by its process, and turned back into an error by the parent."""

from __future__ import annotations

import signal
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from batchtrain import errors
from batchtrain.errors import (
    BatchtrainError,
    InterruptedRunError,
    Problem,
    RankFailedError,
    RankLostError,
    SpecError,
)

__all__ = ["CollateralError", "Failure", "RankTracebackError", "lost_error"]

TRACEBACK_CHARACTERS = 10_000

OWN_CLASSES = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}


class CollateralError(Exception):
    """This rank cannot go on because another one is gone; the other one is to blame."""


class RankTracebackError(Exception):
    """The traceback of a rank, as the cause of the error that the parent raises."""

    def __str__(self) -> str:
        """The text as it was, on lines of its own."""
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Failure:
    """What one rank raised.

    Attributes:
        own: The name of the class of `batchtrain.errors`; empty for any other error.
        type_name: The name of the class that was raised.
        text: What it said.
        trace: Its traceback.
        is_collateral: Whether it only says that another rank is gone.
        problems: Those of a `SpecError`.
    """

    own: str
    type_name: str
    text: str
    trace: str
    is_collateral: bool = False
    problems: tuple[dict[str, str], ...] = ()

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an error."""
        own = next((base.__name__ for base in type(error).__mro__ if _is_own(base)), "")
        if isinstance(error, KeyboardInterrupt):
            own = InterruptedRunError.__name__
        problems = error.problems if isinstance(error, SpecError) else ()
        return cls(
            own=own,
            type_name=type(error).__name__,
            text=str(error) or ("Ctrl-C" if isinstance(error, KeyboardInterrupt) else ""),
            trace="".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:],
            is_collateral=isinstance(error, CollateralError),
            problems=tuple(asdict(problem) for problem in problems),
        )

    def to_json(self) -> dict[str, Any]:
        """The failure as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Failure:
        """Read what `to_json` made."""
        return cls(**{**value, "problems": tuple(value["problems"])})

    @property
    def is_interruption(self) -> bool:
        """Whether the rank stopped because it was asked to."""
        return self.own == InterruptedRunError.__name__

    def to_error(self, rank: int, size: int) -> BatchtrainError:
        """The error for the caller: of the same class where it is one of ours.

        Its cause holds the traceback of the rank. A `RankFailedError` has it in its text too.
        """
        error: BatchtrainError
        if self.own == SpecError.__name__:
            error = SpecError([Problem(**problem) for problem in self.problems])
        elif self.own:
            error = OWN_CLASSES[self.own](f"rank {rank}: {self.text}")
        else:
            error = RankFailedError(
                f"expected rank {rank} of {size} to go on, found {self.type_name}: {self.text}. "
                "The other ranks were ended; correct what its traceback shows and run the same "
                f"command again\n{self.trace.rstrip()}"
            )
        error.__cause__ = RankTracebackError(self.trace)
        return error


def lost_error(rank: int, size: int, exit_code: int, doings: str) -> RankLostError:
    """The error for a rank whose process ended without a word.

    Args:
        rank: Which one.
        size: Of how many.
        exit_code: The exit code; minus the number of the signal where one killed it.
        doings: What it last did.
    """
    advice = ""
    if exit_code < 0:
        found = f"it was killed by {_signal_name(-exit_code)}"
        if exit_code == -signal.SIGKILL:
            advice = "The system kills so when memory runs out: look at its log. "
    else:
        found = f"its process ended with exit code {exit_code}"
    return RankLostError(
        f"expected rank {rank} of {size} to return or to raise, found that {found} {doings}. "
        f"The other ranks were ended. {advice}Run the same command again to go on from the "
        "newest checkpoint"
    )


def _is_own(base: type) -> bool:
    return OWN_CLASSES.get(base.__name__) is base


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
