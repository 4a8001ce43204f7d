"""What crosses from a task to the driver: tables, or the error that took their place, as bytes.

No object is pickled: tables travel as Arrow IPC streams, errors as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator

import pyarrow as pa

from batchtrain import errors
from batchtrain.engines.engine import Tables
from batchtrain.errors import BatchtrainError, ClusterError, Problem, SpecError
from batchtrain.failures import Failure, RankTracebackError

__all__ = ["PARCEL", "opened_in_order", "packed"]

PARCEL = pa.schema(
    [
        ("number", pa.int64()),  # the place of the result among all results
        # An Arrow IPC stream for each table: who keeps one table does not hold the others too.
        ("tables", pa.list_(pa.large_binary())),
        ("failure", pa.large_binary()),  # JSON of what was raised; then there are no tables
    ]
)


def packed(first: int, results: Iterator[Tables]) -> Iterator[pa.Table]:
    """Pack results, numbered from `first` on; an error is the last parcel, and is not raised."""
    number = first
    try:
        for tables in results:
            yield _parcel(number, [_to_bytes(table) for table in tables], None)
            number += 1
    except Exception as error:  # noqa: BLE001 - every error is raised where its turn comes
        yield _parcel(number, None, json.dumps(Failure.of(error).to_json()).encode())


def opened_in_order(parcels: Iterable[pa.Table], count: int) -> Generator[Tables, None, None]:
    """Open parcels that must come in the order of their numbers, each exactly once.

    Args:
        parcels: Any number of them in each table.
        count: How many there must be.

    Raises:
        BatchtrainError: What a task raised, in its place.
        ClusterError: If a parcel is missing, doubled or out of order, or a task failed by an
            error that is none of ours.
    """
    expected = 0
    for table in parcels:
        for place in range(table.num_rows):
            number = table["number"][place].as_py()
            if number != expected:
                raise _lost(f"result {expected}", f"result {number}")
            failure = table["failure"][place].as_py()
            if failure is not None:
                raise _error(Failure.from_json(json.loads(failure)))
            yield tuple(map(_from_bytes, table["tables"][place].as_py()))
            expected += 1
    if expected != count:
        raise _lost(f"{count} results", f"{expected}")


def _parcel(number: int, tables: list[bytes] | None, failure: bytes | None) -> pa.Table:
    return pa.table([[number], [tables], [failure]], schema=PARCEL)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
        return reader.read_all()


def _error(failure: Failure) -> BatchtrainError:
    """The error that the caller would have met in this process, where it is one of ours."""
    error: BatchtrainError
    if failure.own == SpecError.__name__:
        error = SpecError([Problem(**problem) for problem in failure.problems])
    elif failure.own:
        error = getattr(errors, failure.own)(failure.text)
    else:
        error = ClusterError(
            f"expected a task to do its work, found {failure.type_name}: {failure.text}. Correct "
            f"what its traceback shows and run the same command again\n{failure.trace.rstrip()}"
        )
    error.__cause__ = RankTracebackError(failure.trace)
    return error


def _lost(expected: str, found: str) -> ClusterError:
    return ClusterError(
        f"expected {expected} from Ray Data, found {found}: it lost, doubled or mixed blocks. "
        "Nothing was published; run the same command again, or use `engine: embedded`"
    )
