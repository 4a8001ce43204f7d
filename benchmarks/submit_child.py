"""`batchtrain submit` as its command line runs it, which notes what its parts took.

Usage: `python -m benchmarks.submit_child FILE submit SPEC ...`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from batchtrain.cli import submitting
from batchtrain.cli.app import app

__all__ = ["CHECKS", "CONNECT", "PROBE", "SEND", "main"]

CONNECT, CHECKS, PROBE, SEND = "Ray's client", "checks", "probe of the storage", "upload"

WATCHED = {
    CONNECT: (submitting.Cluster, "connect"),
    # The probe is among the checks, and is sent as the job is: the inner ones are taken off.
    CHECKS: (submitting, "all_findings"),
    PROBE: (submitting, "ask_probe"),
    SEND: (submitting, "_sent"),
}
"""What is timed, each from its call to its return."""


def main() -> None:
    """Run the command and write what its parts took, in seconds without what is within them."""
    taken = dict.fromkeys(WATCHED, 0.0)
    with ExitStack() as stack:
        for name, (owner, attribute) in WATCHED.items():
            wrapped = _timed(getattr(owner, attribute), name, taken)
            stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        try:
            app(args=sys.argv[2:], prog_name="batchtrain")
        finally:
            Path(sys.argv[1]).write_text(json.dumps(taken), encoding="utf-8")


_within: list[str] = []


def _timed(call: Callable[..., Any], name: str, taken: dict[str, float]) -> Callable[..., Any]:
    def timed(*words: Any, **options: Any) -> Any:
        if name == SEND and _within:
            # Of the probe.
            return call(*words, **options)
        _within.append(name)
        began = time.perf_counter()
        try:
            return call(*words, **options)
        finally:
            seconds = time.perf_counter() - began
            _within.pop()
            taken[name] += seconds
            if _within:
                taken[_within[-1]] -= seconds

    return timed


if __name__ == "__main__":
    main()
