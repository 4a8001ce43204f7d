"""Applying a fitted preprocessor: each row from that row alone, each policy as it says."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchtrain.artifacts.manifest import canonical_json
from batchtrain.errors import ArtifactError, DataError
from batchtrain.preprocessing import (
    Features,
    FittedColumn,
    FittedPreprocessor,
    FittedTarget,
    encode_target,
    transform,
)

CLASSES = FittedTarget("label", "classification", ("a", "b", "c"))
VALUES = FittedTarget("y", "regression")

AGE = FittedColumn("age", "numeric", "mean", fill=40.0, offset=30.0, divisor=10.0)
DOSE = FittedColumn("dose", "numeric", "median", fill=2.0, indicator=True, offset=1.0, divisor=0.5)
LEVEL = FittedColumn("level", "categorical", "unknown", categories=("high", "low", "mid"))
SMOKER = FittedColumn("smoker", "boolean", "most_frequent", fill=True)
ALL = FittedPreprocessor((AGE, LEVEL, DOSE, SMOKER), CLASSES)

TABLE = pa.table(
    {
        "smoker": pa.array([True, None, False, True]),
        "age": pa.array([30.0, None, math.nan, 55.0]),
        "level": pa.array(["low", "strange", None, "high"]),
        "dose": pa.array([None, 1.0, 2.0, 0.75]),
        "unused": pa.array([1, 2, 3, 4]),
    }
)


def apply(fitted: FittedColumn | FittedPreprocessor, table: pa.Table, first: int = 0) -> Features:
    if isinstance(fitted, FittedColumn):
        fitted = FittedPreprocessor((fitted,), CLASSES)
    return transform(fitted, table, row_id=np.arange(first, first + table.num_rows))


def test_every_kind_becomes_the_features_that_its_names_say() -> None:
    found = apply(ALL, TABLE)
    assert ALL.feature_names == ("age", "dose", "dose is missing", "smoker", "level")
    assert found.numeric.tolist() == [
        [0.0, 2.0, 1.0, 1.0],
        [1.0, 0.0, 0.0, 1.0],
        [1.0, 2.0, 0.0, 0.0],
        [2.5, -0.5, 0.0, 1.0],
    ]
    assert found.codes.tolist() == [[2], [0], [0], [1]]
    assert (found.numeric.dtype, found.codes.dtype) == (np.float32, np.int64)
    assert found.usable.all()
    assert found.filled == {"age": 2, "level": 1, "dose": 1, "smoker": 1}
    assert found.unseen == {"level": 1}
    assert ALL.num_numeric == found.numeric.shape[1]
    assert ALL.cardinalities == (4,)


@settings(max_examples=40)
@given(
    order=st.permutations(range(12)),
    keep=st.integers(0, 12),
    seed=st.integers(0, 10**6),
    cut=st.integers(1, 12),
)
def test_a_rows_features_do_not_depend_on_its_neighbours(
    order: list[int], keep: int, seed: int, cut: int
) -> None:
    random = np.random.default_rng(seed)
    table = pa.table(
        {
            "age": pa.array(random.normal(30, 20, 12), mask=random.random(12) < 0.2),
            "dose": pa.array(random.normal(1, 3, 12), mask=random.random(12) < 0.2),
            "level": pa.array(random.choice(["high", "low", "new", None], 12), pa.string()),
            "smoker": pa.array(random.random(12) < 0.5, mask=random.random(12) < 0.2),
        }
    )
    whole = apply(ALL, table)
    rows = np.array(order[:keep], dtype=np.int64)
    some = apply(ALL, pa.concat_tables([table.take(rows[:cut]), table.take(rows[cut:])]))
    assert some.numeric.tobytes() == whole.numeric[rows].tobytes()
    assert np.array_equal(some.codes, whole.codes[rows])


@pytest.mark.parametrize("kind", ["numeric", "categorical", "boolean"])
def test_d08_each_policy_for_a_missing_value_does_what_it_says(kind: str) -> None:
    values = {
        "numeric": pa.array([1.0, None]),
        "categorical": pa.array(["x", None]),
        "boolean": pa.array([True, None]),
    }[kind]
    table = pa.table({"c": values})
    known = {"categories": ("x", "y")} if kind == "categorical" else {}
    fill = {"numeric": 3.0, "categorical": "y", "boolean": False}[kind]

    def column(missing: str, fill: object = None) -> FittedColumn:
        return FittedColumn("c", kind, missing, fill=fill, **known)

    def feature(found: Features) -> list[float]:
        return (found.codes if kind == "categorical" else found.numeric)[:, 0].tolist()

    filled = apply(column("constant", fill), table)
    assert feature(filled)[1] == {"numeric": 3.0, "categorical": 2, "boolean": 0.0}[kind]
    assert filled.filled == {"c": 1}
    assert filled.usable.all()

    dropped = apply(column("drop"), table)
    assert dropped.usable.tolist() == [True, False]
    assert np.isfinite(dropped.numeric).all()
    assert dropped.filled == {}

    with pytest.raises(DataError, match=r"'c'.*row 8\. Fill it"):
        apply(column("error"), table, first=7)
    assert feature(apply(column("error"), table.slice(0, 1))) == feature(filled)[:1]


def test_d08_an_empty_string_and_a_space_are_values_and_not_missing() -> None:
    found = apply(replace(LEVEL, categories=("", " ")), pa.table({"level": ["", " ", None, "NA"]}))
    assert found.codes[:, 0].tolist() == [1, 2, 0, 0]
    assert found.filled == {"level": 1}
    assert found.unseen == {"level": 1}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, 3.5e38, -1e300, 1.7e308])
def test_d14_a_number_that_float32_cannot_hold_is_refused_with_its_row(bad: float) -> None:
    table = pa.table({"age": [1.0, None, bad, bad]})
    plain = replace(AGE, offset=0.0, divisor=1.0)
    with pytest.raises(DataError, match=r"'age'.*row 102 \(and in at least 1 more row\)"):
        apply(plain, table, first=100)


def test_the_row_in_a_message_is_that_of_the_input_also_after_dropped_rows() -> None:
    table = pa.table({"age": [1.0, math.inf]})
    fitted = FittedPreprocessor((AGE,), VALUES)
    with pytest.raises(DataError, match=r"row 55\b"):
        transform(fitted, table, row_id=np.array([3, 55]))
    with pytest.raises(DataError, match=r"row 55\b"):
        encode_target(VALUES, pa.chunked_array([[0.0, math.inf]]), row_id=np.array([3, 55]))
    with pytest.raises(DataError, match=r"'z' in row 55\b"):
        encode_target(CLASSES, pa.chunked_array([["a", "z"]]), row_id=np.array([3, 55]))


def test_no_row_gives_no_features_of_the_right_widths() -> None:
    found = apply(ALL, TABLE.slice(0, 0))
    assert found.numeric.shape == (0, 4)
    assert found.codes.shape == (0, 1)
    assert found.filled == found.unseen == {}


@pytest.mark.parametrize(
    ("column", "codes"),
    [
        (pa.array(["c", "a", "b"]), [2, 0, 1]),
        (pa.array([], pa.string()), []),
    ],
)
def test_a_class_becomes_its_place(column: pa.Array, codes: list[int]) -> None:
    found = encode_target(CLASSES, pa.chunked_array([column]), row_id=np.arange(len(column)))
    assert found.tolist() == codes
    assert found.dtype == np.int64


def test_classes_of_whole_numbers_and_flags_are_their_text() -> None:
    whole = FittedTarget("n", "classification", ("-1", "10", "9"))
    column = pa.chunked_array([pa.array([9, -1, 10])])
    assert encode_target(whole, column, row_id=np.arange(3)).tolist() == [2, 0, 1]
    flags = FittedTarget("f", "classification", ("false", "true"))
    column = pa.chunked_array([pa.array([True, False])])
    assert encode_target(flags, column, row_id=np.arange(2)).tolist() == [1, 0]


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    offset=FINITE, divisor=FINITE, fill=FINITE | st.none(), names=st.lists(st.text(), max_size=5)
)
def test_the_fitted_state_survives_json_bit_for_bit(
    offset: float, divisor: float, fill: float | None, names: list[str]
) -> None:
    usable = [name for name in names if name.isprintable()]
    fitted = FittedPreprocessor(
        (
            FittedColumn("x", "numeric", "mean", fill, True, offset, divisor),
            FittedColumn("c", "categorical", "unknown", categories=tuple(usable)),
            FittedColumn("b", "boolean", "constant", fill=True),
        ),
        FittedTarget("y", "classification", tuple(usable)),
    )
    data = canonical_json(fitted.to_json())
    back = FittedPreprocessor.from_json(json.loads(data), where="here")
    assert back == fitted
    assert canonical_json(back.to_json()) == data
    assert back.columns[0].offset.hex() == offset.hex()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"format": 2, "columns": [], "target": {}},
        {"format": 1, "columns": 7, "target": {}},
        {"format": 1, "columns": [{"name": "x"}], "target": {}},
        {"format": 1, "columns": [], "target": {"name": "y"}},
        {"format": 1, "columns": [], "target": "text"},
        {"format": 1, "columns": [], "target": {**asdict(VALUES), "more": 1}},
    ],
)
def test_another_document_is_refused_with_its_place(document: object) -> None:
    with pytest.raises(ArtifactError, match="here"):
        FittedPreprocessor.from_json(document, where="here")
