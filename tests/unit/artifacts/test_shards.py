"""The bytes of tables: they depend on the values alone, and every width comes back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchtrain.artifacts.parquet_bytes import ROW_GROUP_ROWS, parquet_bytes, table_from_bytes
from batchtrain.artifacts.prepared import SplitRows
from batchtrain.errors import UnsafeInputError
from tests.support.builders import mixed_table, slices


def rows_of(num_rows: int, numeric: int, codes: int, *, regression: bool = False) -> SplitRows:
    random = np.random.default_rng(num_rows)
    target = random.normal(size=num_rows) if regression else random.integers(0, 5, num_rows)
    return SplitRows(
        numeric=random.normal(size=(num_rows, numeric)).astype(np.float32),
        codes=random.integers(0, 9, (num_rows, codes)),
        target=target,
        row_id=np.arange(num_rows, dtype=np.int64) * 3,
    )


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    start=st.integers(0, 20),
    num_rows=st.integers(0, 100),
)
def test_however_a_table_was_put_together_its_bytes_are_the_same(
    sizes: list[int], start: int, num_rows: int
) -> None:
    whole = mixed_table(150)
    wanted = whole.slice(start, num_rows)
    copied = pa.table(
        {
            name: pa.array(wanted[name].to_pylist(), wanted[name].type)
            for name in wanted.column_names
        }
    )
    pieces = list(slices(wanted, sizes)) or [wanted]
    expected = parquet_bytes(copied)
    assert parquet_bytes(wanted) == expected
    assert parquet_bytes(pa.concat_tables(pieces)) == expected
    assert table_from_bytes(expected, where="here").equals(wanted)


def test_metadata_of_schema_and_fields_leaves_no_trace() -> None:
    table = pa.table({"x": [1, 2], "y": ["a", None]})
    fields = [
        field.with_metadata({"PARQUET:field_id": "7", "made": "today"}) for field in table.schema
    ]
    marked = table.cast(pa.schema(fields, metadata={"pandas": "{}", "host": "me"}))
    assert parquet_bytes(marked) == parquet_bytes(table)


def test_no_row_group_is_larger_than_the_constant() -> None:
    table = pa.table({"x": np.arange(ROW_GROUP_ROWS + 10)})
    chunked = pa.concat_tables([table.slice(0, 100), table.slice(100)])
    assert parquet_bytes(chunked) == parquet_bytes(table)
    assert table_from_bytes(parquet_bytes(table), where="here")["x"].to_pylist() == list(
        range(ROW_GROUP_ROWS + 10)
    )


def test_x11_a_file_with_an_extension_type_is_refused() -> None:
    storage = pa.array([b"x"], pa.large_binary())
    field = pa.field(
        "x",
        pa.large_binary(),
        metadata={
            "ARROW:extension:name": "ray.data.arrow_pickled_object",
            "ARROW:extension:metadata": "",
        },
    )
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table([storage], schema=pa.schema([field])), sink)
    with pytest.raises(UnsafeInputError, match=r"shard\.parquet"):
        table_from_bytes(sink.getvalue().to_pybytes(), where="shard.parquet")


@pytest.mark.parametrize("num_rows", [0, 1, 7, 300])
@pytest.mark.parametrize("numeric", [0, 1, 3])
@pytest.mark.parametrize("codes", [0, 1, 4])
@pytest.mark.parametrize("regression", [False, True])
def test_rows_come_back_from_a_shard_as_they_were(
    num_rows: int, numeric: int, codes: int, regression: bool
) -> None:
    rows = rows_of(num_rows, numeric, codes, regression=regression)
    back = SplitRows.from_bytes(rows.to_bytes(), where="here")
    for name in ("numeric", "codes", "target", "row_id"):
        expected, found = getattr(rows, name), getattr(back, name)
        assert found.shape == expected.shape, name
        assert found.dtype == expected.dtype, name
        assert np.array_equal(found, expected), name
    assert len(back) == num_rows


def test_a_shard_of_several_row_groups_comes_back() -> None:
    rows = rows_of(ROW_GROUP_ROWS + 5, 2, 1)
    back = SplitRows.from_bytes(rows.to_bytes(), where="here")
    assert np.array_equal(back.numeric, rows.numeric)
    assert np.array_equal(back.codes, rows.codes)


def test_a_shard_keeps_the_bits_of_its_numbers() -> None:
    numbers = np.array([[0.0, -0.0], [1e-45, 3.4e38], [np.float32(0.1), -1.0]], dtype=np.float32)
    rows = SplitRows(
        numbers, np.empty((3, 0), np.int64), np.array([0.1, -0.0, 1e300]), np.arange(3)
    )
    back = SplitRows.from_bytes(rows.to_bytes(), where="here")
    assert back.numeric.tobytes() == numbers.tobytes()
    assert back.target.tobytes() == rows.target.tobytes()


def test_parts_of_rows_join_to_the_whole_and_their_bytes_do_not_show_it() -> None:
    rows = rows_of(50, 3, 2)
    cut = [rows[slice(0, 11)], rows[slice(11, 11)], rows[slice(11, 50)]]
    joined = SplitRows.concatenate(cut)
    assert joined.to_bytes() == rows.to_bytes()
    assert rows[slice(10, 20)].to_bytes() == rows[np.arange(10, 20)].to_bytes()
