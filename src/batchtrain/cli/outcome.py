"""How a command ends: its exit code, its error message, and its `--json` object."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

import typer

from batchtrain.errors import BatchtrainError, InterruptedRunError, SpecError

__all__ = ["command_outcome", "plain", "print_json"]

GO_ON = "Interrupted. What was published stays; run the same command again to go on from there."


@contextmanager
def command_outcome(*, as_json: bool = False) -> Iterator[None]:
    """Turn the errors of a command into a message and an exit code, never into a traceback.

    0 done, 1 the run failed, 2 the spec or the data is wrong, 130 interrupted. An error that is
    none of ours is a fault of batchtrain, and keeps its traceback.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _fail(InterruptedRunError(GO_ON), as_json=as_json)
    except BatchtrainError as error:
        _fail(error, as_json=as_json)
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        sys.stderr.close()
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one object on one line, the last of standard output."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False, default=str))


def plain(text: str) -> str:
    """Text from a user's file without characters that a terminal would obey."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(error: BatchtrainError, *, as_json: bool) -> NoReturn:
    kind = type(error).__name__
    if as_json:
        document: dict[str, Any] = {
            "error": kind,
            "exit_code": error.exit_code,
            "message": str(error),
        }
        if isinstance(error, SpecError):
            document["problems"] = [asdict(problem) for problem in error.problems]
        print_json(document)
    prefix = "" if isinstance(error, SpecError | InterruptedRunError) else f"{kind}: "
    print(plain(f"{prefix}{error}"), file=sys.stderr)
    raise typer.Exit(error.exit_code) from None
