"""Work for engines, light to import in a task, and an engine that does everything in disorder."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from batchtrain.engines.engine import Block, Tables
from batchtrain.engines.ray import RayEngine, Work
from batchtrain.engines.session import RaySession

__all__ = ["ScrambledEngine", "dies_at", "fails_at", "table_and_marks"]


def table_and_marks(block: Block) -> Tables:
    """The block, and what stands beside it."""
    beside = {"first": [block.first_row], "marks": [block.marks.tobytes()]}
    return block.table, pa.table(beside)


def fails_at(row: int, block: Block) -> Tables:
    """An error that is none of ours, in the block of one row."""
    if row in block.row_id:
        raise ZeroDivisionError("by a test")
    return (block.table,)


def dies_at(row: int, times: int, folder: Path, block: Block) -> Tables:
    """Kill the process that works on the block of one row, so many times in all."""
    if row in block.row_id:
        died = len(list(folder.glob("died-*")))
        if died < times:
            (folder / f"died-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return (block.table,)


@dataclass(frozen=True)
class _NoSession:
    """Stands for a connection to a cluster of so many cores."""

    cpus: int

    def resources(self) -> _NoSession:
        """See `RaySession.resources`: an engine asks for the cores only."""
        return self


class ScrambledEngine(RayEngine):
    """The engine of Ray without Ray: tasks run here, in any order, and some of them twice."""

    def __init__(self, block_rows: int, cores: int = 3, seed: int = 0) -> None:
        """Scramble by a seed; the more cores, the shorter the tasks."""
        super().__init__(cast("RaySession", _NoSession(cores)), block_rows=block_rows)
        self._seed = seed

    def _parcels(self, inputs: Sequence[pa.Table], work: Work) -> Generator[pa.Table, None, None]:
        order = np.random.default_rng(self._seed).permutation(len(inputs)).tolist()
        parcels = {place: list(work(inputs[place])) for place in [*order, *order[::3]]}
        for place in range(len(inputs)):
            # Ray puts small blocks together as it likes.
            yield from [pa.concat_tables(parcels[place])] if parcels[place] else []
