"""The engine of large work: Ray Data over any number of nodes, in the order of the rows.

Ray Data deals the work to tasks and brings their results back. It sees parcels of bytes only: it
reads no file of ours, types no column, and where it cuts its own blocks cannot show in a result.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from batchtrain.engines.engine import (
    BlockFunction,
    EngineName,
    Marks,
    Results,
    Tables,
    numbered,
)
from batchtrain.engines.parcels import opened_in_order, packed
from batchtrain.engines.session import RaySession, hush_ray_data
from batchtrain.errors import ClusterError
from batchtrain.tables import (
    BLOCK_ROWS,
    ColumnType,
    ReadUnit,
    Source,
    count_rows,
    num_files,
    plan_units,
    read_unit,
    require_unchanged,
)

__all__ = ["RETRIES", "RayEngine", "Work"]

UNIT_BLOCKS = 16
"""A task reads at most this many blocks, about a million rows, where files can be entered."""

WAVES = 4
"""Tasks for each core, at the least, where there is that much to do: they differ in length."""

PARCEL_BYTES = 8 << 20
"""Results travel together up to this size; a larger one travels alone."""

RETRIES = 5
"""How often a task whose worker or node was lost is done again; Ray Data would try forever."""

SETTLE_SECONDS = 0.5
"""How long a pass that is left early goes on before its tasks are cancelled. Ray aborts the whole
process ("Tried to complete task that was not pending") where it cancels a task while the task's
end is being entered, as after the task whose error ends the pass; short tasks are over by then."""

Item = TypeVar("Item")
Work = Callable[[pa.Table], Iterator[pa.Table]]


class RayEngine:
    """Maps functions in tasks of Ray Data; see `Engine`. It connects when it is first used."""

    def __init__(
        self, session: RaySession, *, num_cpus: float = 1, block_rows: int = BLOCK_ROWS
    ) -> None:
        """Connect to nothing yet.

        Args:
            session: The connection to Ray.
            num_cpus: The cores that a task asks for. While a training holds all cores of a
                cluster, no task can run.
            block_rows: R; other than the default only in tests.
        """
        self._session = session
        self._num_cpus = num_cpus
        self._block_rows = block_rows

    @property
    def name(self) -> EngineName:
        """Which engine this is."""
        return "ray"

    @property
    def block_rows(self) -> int:
        """R, the rows of a block."""
        return self._block_rows

    def map_items(self, items: Sequence[Item], function: Callable[[Item], Tables]) -> Results:
        """See `Engine.map_items`."""
        if not items:
            return
        size = max(1, len(items) // (WAVES * self._cores()))
        inputs = [
            pa.table({"place": pa.array(range(start, min(start + size, len(items))), pa.int64())})
            for start in range(0, len(items), size)
        ]
        yield from self._results(
            inputs, partial(_work_on_items, tuple(items), function), len(items)
        )

    def map_blocks(
        self,
        source: Source,
        columns: Mapping[str, ColumnType],
        function: BlockFunction,
        *,
        rows_of_files: Sequence[int] | None = None,
        marks: Marks | None = None,
        at_most: int = BLOCK_ROWS,
    ) -> Results:
        """See `Engine.map_blocks`."""
        if rows_of_files is None:
            rows_of_files = self._counted(source)
        block_rows = min(self._block_rows, at_most)
        count = -(-sum(rows_of_files) // block_rows)
        units = plan_units(
            rows_of_files,
            block_rows=block_rows,
            unit_blocks=min(max(1, count // (WAVES * self._cores())), UNIT_BLOCKS),
            enters_files=source.kind == "parquet",
        )
        inputs = [_unit_input(place, unit, marks) for place, unit in enumerate(units)]
        reading = _Reading(
            source=source,
            columns=dict(columns),
            units=tuple(units),
            block_rows=block_rows,
        )
        yield from self._results(inputs, partial(_work_on_units, reading, function), count)
        # A task on another machine may have read a copy, which does not change with the original.
        for file in source.files:
            require_unchanged(file)

    def _counted(self, source: Source) -> list[int]:
        """The rows of each file, up to the first that cannot be read to its end."""
        rows: list[int] = []
        with closing(self.map_items(range(num_files(source)), partial(_count, source))) as counts:
            for (found,) in counts:
                rows.append(found["rows"][0].as_py())
                if not found["whole"][0].as_py():
                    break
        return rows

    def _cores(self) -> int:
        return max(1, int(self._session.resources().cpus / max(self._num_cpus, 0.001)))

    def _results(self, inputs: Sequence[pa.Table], work: Work, count: int) -> Results:
        """Run the work on each input, and open what comes back."""
        # Left to the garbage collector, Ray Data would end its work when Ray is long gone.
        with closing(self._parcels(inputs, work)) as parcels:
            yield from opened_in_order(parcels, count)

    def _parcels(self, inputs: Sequence[pa.Table], work: Work) -> Generator[pa.Table, None, None]:
        """What the tasks packed, in the order of the inputs; this alone speaks with Ray."""
        self._session.connect()
        hush_ray_data()
        # What it would say of a failure, in a hundred lines, is the cause of the error below.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        import ray.data

        try:
            yield from self._batches(ray.data.from_arrow(list(inputs)), work)
        except GeneratorExit:
            time.sleep(SETTLE_SECONDS)
            raise
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise ClusterError(
                f"expected the cluster to do a task, found {_told(error)}. Look at its nodes, "
                "their memory and what is installed there, and run the same command again"
            ) from error

    def _batches(self, dataset: Any, work: Work) -> Iterator[pa.Table]:
        """Map a dataset whose blocks are one input each."""
        context = dataset.context
        context.execution_options.preserve_order = True
        context.target_max_block_size = PARCEL_BYTES
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to set it, and deprecates this one.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            mapped = dataset.map_batches(
                work,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=self._num_cpus,
                max_retries=RETRIES,
            )
        batches = mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        return iter(batches)


@dataclass(frozen=True)
class _Reading:
    """All that a task needs to read units.

    Attributes:
        source: What to read.
        columns: Name to type.
        units: All of them; a task is told which are its own.
        block_rows: R.
    """

    source: Source
    columns: dict[str, ColumnType]
    units: tuple[ReadUnit, ...]
    block_rows: int


def _unit_input(place: int, unit: ReadUnit, marks: Marks | None) -> pa.Table:
    own = None if marks is None else marks[unit.first_row : unit.stop_row].tobytes()
    return pa.table(
        {"place": pa.array([place], pa.int64()), "marks": pa.array([own], pa.large_binary())}
    )


def _work_on_units(
    reading: _Reading, function: BlockFunction, inputs: pa.Table
) -> Iterator[pa.Table]:
    """Read the units that the inputs name, and pack what the function makes of their blocks."""
    import numpy as np

    for place, marks in zip(inputs["place"].to_pylist(), inputs["marks"], strict=True):
        unit = reading.units[place]
        own = np.frombuffer(marks.as_py(), np.uint8) if marks.is_valid else None
        tables = read_unit(reading.source, reading.columns, unit, block_rows=reading.block_rows)
        blocks = numbered(tables, own, first_row=unit.first_row)
        yield from packed(unit.first_row // reading.block_rows, map(function, blocks))


def _work_on_items(
    items: Sequence[Any], function: Callable[[Any], Tables], inputs: pa.Table
) -> Iterator[pa.Table]:
    """Pack what the function makes of the items that the inputs name."""
    for place in inputs["place"].to_pylist():
        yield from packed(place, map(function, items[place : place + 1]))


def _count(source: Source, place: int) -> Tables:
    rows, whole = count_rows(source, place)
    return (pa.table({"rows": [rows], "whole": [whole]}),)


def _told(error: BaseException) -> str:
    """The one line of an error of Ray that tells most: the last, where it holds a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    has_traceback = any("Traceback" in line or "ray::" in line for line in lines)
    return f"{type(error).__name__}: {lines[-1] if has_traceback else lines[0]}"
