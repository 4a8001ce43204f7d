"""Results and errors that cross between processes as bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from batchtrain.engines.engine import Tables
from batchtrain.engines.parcels import PARCEL, opened_in_order, packed
from batchtrain.errors import ClusterError, DataError, Problem, SchemaMismatchError, SpecError

TABLES: list[Tables] = [
    (),
    (pa.table({}),),
    (pa.table({"a": pa.array([], pa.string())}), pa.table({"b": [1.5, None]})),
    (pa.table({"a": [["x"], None, []]}), pa.table({"a": [1]}), pa.table({"a": [True]})),
    (pa.table({"a": pa.chunked_array([[1], [2, 3]])}),),
]


def opened(parcels: list[pa.Table], count: int) -> list[Tables]:
    return list(opened_in_order(parcels, count))


def same(one: Tables, other: Tables) -> bool:
    return len(one) == len(other) and all(
        mine.equals(its) and mine.schema.equals(its.schema)
        for mine, its in zip(one, other, strict=True)
    )


def test_tables_come_out_as_they_went_in() -> None:
    parcels = list(packed(0, iter(TABLES)))
    found = opened(parcels, len(TABLES))
    assert all(same(one, other) for one, other in zip(found, TABLES, strict=True))
    together = [pa.concat_tables(parcels[:3]), PARCEL.empty_table(), pa.concat_tables(parcels[3:])]
    found = opened(together, len(TABLES))
    assert all(same(one, other) for one, other in zip(found, TABLES, strict=True))


@pytest.mark.parametrize(
    ("order", "count"), [([0, 2, 1], 3), ([1, 2], 2), ([0, 0, 1], 2), ([0, 1], 3), ([0, 1, 2], 2)]
)
def test_a_lost_or_doubled_or_misplaced_parcel_is_an_error(order: list[int], count: int) -> None:
    parcels = list(packed(0, iter(TABLES[:3])))
    with pytest.raises(ClusterError, match="lost, doubled or mixed"):
        opened([parcels[place] for place in order], count)


@pytest.mark.parametrize(
    "error",
    [
        DataError("a sentence"),
        SchemaMismatchError("another: \N{SNOWMAN} \ud800"),
        SpecError([Problem("f:1:2", "a.b", "m", "h"), Problem("", "", "n")]),
    ],
)
def test_an_error_of_ours_comes_out_as_itself_in_its_place(error: Exception) -> None:
    def results() -> Iterator[Tables]:
        yield TABLES[2]
        raise error

    parcels = list(packed(4, results()))
    assert [parcel["number"][0].as_py() for parcel in parcels] == [4, 5]
    before = list(packed(0, iter(TABLES[:4])))
    seen = opened_in_order([*before, *parcels], 9)
    assert len([next(seen) for _ in range(5)]) == 5
    with pytest.raises(type(error)) as caught:
        next(seen)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "problems", None) == getattr(error, "problems", None)
    assert "results" in str(caught.value.__cause__)


def test_any_other_error_is_named_with_its_traceback() -> None:
    def results() -> Iterator[Tables]:
        raise KeyError("of a bug")
        yield ()

    with pytest.raises(ClusterError, match=r"KeyError: 'of a bug'(?s:.)*in results"):
        opened(list(packed(0, results())), 1)
