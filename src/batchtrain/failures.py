"""How a rank fails: told in JSON by its process, and turned back into an error by the parent."""

from __future__ import annotations

import os
import signal
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchtrain import errors
from batchtrain.errors import (
    BatchtrainError,
    InterruptedRunError,
    PausedRunError,
    Problem,
    RankFailedError,
    RankLostError,
    SpecError,
)

__all__ = ["CollateralError", "Failure", "RankTracebackError", "lost_error", "text_of"]

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
        frame: The line of the user's code that led to it; the line that raised where there is none.
        is_collateral: Whether it only says that another rank is gone.
        problems: Those of a `SpecError`.
    """

    own: str
    type_name: str
    text: str
    trace: str
    frame: str = ""
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
            text=text_of(error) or ("Ctrl-C" if isinstance(error, KeyboardInterrupt) else ""),
            trace="".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:],
            frame=_frame(error),
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
        return self.own in {InterruptedRunError.__name__, PausedRunError.__name__}

    def to_own_error(self, prefix: str = "") -> BatchtrainError:
        """The error of one of our classes, as it was raised; its cause holds the traceback.

        Args:
            prefix: Comes before what it said, and says who said it.
        """
        error: BatchtrainError
        if self.own == SpecError.__name__:
            error = SpecError([Problem(**problem) for problem in self.problems])
        else:
            error = OWN_CLASSES[self.own](f"{prefix}{self.text}")
        error.__cause__ = RankTracebackError(self.trace)
        return error

    def to_error(self, rank: int, size: int, *, log: str = "") -> BatchtrainError:
        """The error for the caller: of the same class where it is one of ours.

        Its cause holds the traceback of the rank. A `RankFailedError` has it in its text too, or
        in its place the line that raised, where there is a log that holds the rest.

        Args:
            rank: Which one.
            size: Of how many.
            log: Where the log of the rank is.
        """
        if self.own:
            return self.to_own_error(f"rank {rank}: ")
        if log:
            error = RankFailedError(
                f"expected rank {rank} of {size} to go on, found {self.type_name}: {self.text}\n"
                f"  at {self.frame}\n"
                f"The other ranks were ended. The whole traceback is in {log}. Correct it and run "
                "the same command again"
            )
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


def text_of(error: BaseException) -> str:
    """What an error says, shortened; also where asking it raises."""
    try:
        return str(error)[:TRACEBACK_CHARACTERS]
    except Exception as another:  # noqa: BLE001 - a class of the user's may do anything
        return f"(its text cannot be had: {type(another).__name__})"


def _frame(error: BaseException) -> str:
    """The innermost line outside of this package and of installed ones, else the innermost."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is link for link in chain):
        chain.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    frames = [frame for link in chain for frame in traceback.extract_tb(link.__traceback__)[::-1]]
    theirs = [frame for frame in frames if not _is_installed(frame.filename)]
    for frame in (theirs or frames)[:1]:
        return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    return "an unknown line"


def _is_installed(filename: str) -> bool:
    parts = Path(filename).parts
    is_ours = Path(filename).is_relative_to(Path(__file__).parent)
    is_standard = Path(filename).is_relative_to(Path(os.__file__).parent)
    packages = {"site-packages", "dist-packages"} & set(parts)
    return is_ours or is_standard or bool(packages) or filename.startswith("<")


def _is_own(base: type) -> bool:
    return OWN_CLASSES.get(base.__name__) is base


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
