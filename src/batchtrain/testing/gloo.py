"""Ranks in plain processes of this machine, joined by torch's gloo."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # it is not in __all__

from batchtrain.errors import RankFailedError, RankLostError, RankStuckError
from batchtrain.points import passed
from batchtrain.testing.processes import (
    DEFAULT_LIMITS,
    CollateralError,
    Limits,
    Report,
    run_processes,
)
from batchtrain.training.collateral import tells_of_another
from batchtrain.training.ranks import GlooRanks

__all__ = ["gloo_target", "join_gloo", "run_gloo"]

JOIN_SECONDS = 60.0
"""How long the ranks wait for each other at the start."""

JOIN_ATTEMPTS = 2

JOINED = {"gloo": "joined"}


def run_gloo(
    f: Callable[[GlooRanks, Report], Any],
    size: int,
    *,
    on_message: Callable[[int, Any], None] = lambda _rank, _value: None,
    limits: Limits = DEFAULT_LIMITS,
    stacks: Path | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    join: Callable[[Path, int, int, float], None] | None = None,
) -> list[Any]:
    """Call `f(ranks, report)` in `size` processes that form a gloo group; see `run_processes`.

    Where the ranks cannot join, they are started once more before that is an error. Nothing of
    `f` has run by then.

    Args:
        f: A function of a module, or a partial of one.
        size: The number of ranks.
        on_message: See `run_processes`.
        limits: See `run_processes`. A collective gives up after twice the `stuck_seconds`, when
            the parent has long found out which rank it waits for.
        stacks: See `run_processes`.
        stop_requested: See `run_processes`.
        join: What joins the group; `join_gloo` where None.
    """
    joined: set[int] = set()

    def hear(rank: int, value: Any) -> None:
        if value == JOINED:
            joined.add(rank)
        else:
            on_message(rank, value)

    def run_once() -> list[Any]:
        with tempfile.TemporaryDirectory(prefix="batchtrain-gloo-") as folder:
            target = partial(
                gloo_target,
                f=f,
                size=size,
                store=Path(folder) / "store",
                timeout_seconds=2 * limits.stuck_seconds,
                join=join or join_gloo,
            )
            return run_processes(
                target,
                size,
                on_message=hear,
                limits=limits,
                stacks=stacks,
                stop_requested=stop_requested,
            )

    for _ in range(JOIN_ATTEMPTS - 1):
        try:
            return run_once()
        except (RankFailedError, RankLostError, RankStuckError) as error:
            if joined or stop_requested():
                raise
            on_message(0, {"note": f"the ranks could not join and are started again: {error}"})
    return run_once()


def gloo_target(
    rank: int,
    report: Report,
    *,
    f: Callable[[GlooRanks, Report], Any],
    size: int,
    store: Path,
    timeout_seconds: float,
    join: Callable[[Path, int, int, float], None],
) -> Any:
    """Join the group, call `f`, and leave the group when all ranks are done.

    Raises:
        CollateralError: If another rank is gone.
    """
    try:
        join(store, rank, size, timeout_seconds)
        report.at_end(_leave_gloo)
        report(JOINED)
        passed("gloo.joined")
        return f(GlooRanks(), report)
    except Exception as error:
        if tells_of_another(error):
            raise CollateralError(f"{type(error).__name__}: {error}") from error
        raise


def join_gloo(
    store: Path, rank: int, size: int, timeout_seconds: float, *, join_seconds: float = JOIN_SECONDS
) -> None:
    """Join the group of all ranks; they meet in a file.

    Args:
        store: A file that does not exist before the first rank comes.
        rank: Which one this is.
        size: Of how many.
        timeout_seconds: When a collective gives up.
        join_seconds: How long to wait for the other ranks to come.
    """
    # The ranks of one machine need no network, whatever its host name resolves to.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    file_store = FileStore(str(store), size)
    file_store.set(f"here/{rank}", "")
    passed("gloo.here")
    # Asked for apart from the collectives, which may have to wait much longer.
    file_store.wait([f"here/{each}" for each in range(size)], timedelta(seconds=join_seconds))
    dist.init_process_group(
        "gloo",
        store=file_store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def _leave_gloo() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
