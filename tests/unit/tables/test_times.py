"""Times: one order for dates, stamps of any unit, and ISO text with and without a zone."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.errors import SchemaMismatchError
from batchtrain.tables import conform
from batchtrain.tables.times import parse_times


def micros(array: pa.Array) -> list[int | None]:
    table = conform(pa.table({"t": array}), {"t": "time"}, first_row=0, where="w")
    return table["t"].cast(pa.int64()).to_pylist()


@settings(max_examples=30)
@given(
    st.lists(
        st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))  # noqa: DTZ001
        | st.datetimes(
            dt.datetime(1, 1, 2),  # noqa: DTZ001
            dt.datetime(9999, 12, 30),  # noqa: DTZ001
            timezones=st.sampled_from(
                [dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))],
            ),
        ),
        min_size=1,
    ),
    st.sampled_from("T "),
)
def test_iso_text_is_read_as_python_reads_it(times: list[dt.datetime], between: str) -> None:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    cells = [time.isoformat(between) for time in times]
    found, bad = parse_times(pa.array(cells))
    assert not bad.any()
    aware = [time if time.tzinfo else time.replace(tzinfo=dt.UTC) for time in times]
    expected = [(time - epoch) // dt.timedelta(microseconds=1) for time in aware]
    assert found.cast(pa.int64()).to_pylist() == expected


def test_all_ways_to_write_a_time_agree() -> None:
    day = dt.date(2026, 11, 21)
    noon = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    assert micros(pa.array([day])) == micros(pa.array([day], pa.date64()))
    assert micros(pa.array([day])) == micros(pa.array(["2026-11-21"]))
    stamps = [pa.array([noon, None], pa.timestamp(unit, "UTC")) for unit in ("s", "ms", "us", "ns")]
    texts = ["2026-11-21T12:00:00Z", "2026-11-21 12:00", "2026-11-21T13:00+01:00"]
    expected = micros(stamps[0])
    assert expected[1] is None
    assert all(micros(stamp) == expected for stamp in stamps)
    assert [micros(pa.array([text]))[0] for text in texts] == [expected[0]] * 3


def test_what_is_finer_than_a_microsecond_is_cut_off_downwards() -> None:
    assert micros(pa.array([-1, 1999], pa.timestamp("ns"))) == [-1, 1]
    assert micros(pa.array(["1970-01-01T00:00:00.000001999"])) == [1]


@pytest.mark.parametrize("cell", ["2026-02-31", "21.11.2026", "2026-1-1", "soon", "12:00", ""])
def test_what_is_no_time_is_named(cell: str) -> None:
    table = pa.table({"t": ["2026-11-21", None, cell]})
    with pytest.raises(SchemaMismatchError) as caught:
        conform(table, {"t": "time"}, first_row=7, where="w")
    message = str(caught.value)
    assert [each for each in ("row_id 9", repr(cell), "2026-11-21T") if each not in message] == []


def test_a_stamp_beyond_the_range_is_named() -> None:
    with pytest.raises(SchemaMismatchError, match="row_id 1"):
        micros(pa.array([0, 2**62], pa.timestamp("s")))
