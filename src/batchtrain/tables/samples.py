"""The built-in tables: generated from counter-based random words, or bundled with scikit-learn."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from batchtrain.errors import DataError
from batchtrain.tables.names import similar_name

__all__ = [
    "GENERATOR_VERSION",
    "SAMPLES",
    "canonical_sample_name",
    "drug200",
    "line",
    "linear",
    "popularity",
    "write_sample",
]

GENERATOR_VERSION = 1
"""Goes up when any sample changes by a single bit: it stands for the content in fingerprints."""

Floats = npt.NDArray[np.float64]

NA_TO_K_QUANTILES = (
    (0.0, 6.269),
    (0.25, 10.446),
    (0.5, 13.937),
    (0.545, 14.642),
    (0.545, 15.015),
    (0.75, 19.38),
    (0.9, 26.0),
    (1.0, 38.247),
)
"""Of the public table, which has no value between 14.642 and 15.015, on the two sides of 14.8."""
DRUG_Y_ABOVE = 14.8


def drug200(rows: int = 200, seed: int = 0, missing: float = 0.0) -> pa.Table:
    """A table of patients like the public drug200: its rule exactly, its shares nearly.

    Each column is drawn evenly over its distribution, so that 200 rows already have about the 91,
    54, 23, 16 and 16 rows of each class that the public table has.

    Args:
        rows: How many.
        seed: Of the generator.
        missing: The share of cells of Age and of Na_to_K that are null; the class was decided
            before they were taken away.

    Returns:
        Age int64, Sex, BP, Cholesterol, Na_to_K float64 (three decimals), Drug.
    """
    draw = partial(_spread, rows, "drug200", seed)
    age = 15 + np.floor(draw("Age") * 60).astype(np.int64)
    sex = np.where(draw("Sex") < 0.48, "F", "M")
    bp = np.array(["HIGH", "LOW", "NORMAL"])[np.searchsorted([0.37, 0.69], draw("BP"), "right")]
    cholesterol = np.where(draw("Cholesterol") < 0.515, "HIGH", "NORMAL")
    shares, values = zip(*NA_TO_K_QUANTILES, strict=True)
    na_to_k = np.round(np.interp(draw("Na_to_K"), shares, values), 3)
    drug = np.select(
        [
            na_to_k > DRUG_Y_ABOVE,
            (bp == "HIGH") & (age <= 50),
            bp == "HIGH",
            (bp == "LOW") & (cholesterol == "HIGH"),
        ],
        ["DrugY", "drugA", "drugB", "drugC"],
        default="drugX",
    )
    return pa.table(
        {
            "Age": pa.array(age, mask=_holes(rows, missing, seed, "Age")),
            "Sex": pa.array(sex.tolist()),
            "BP": pa.array(bp.tolist()),
            "Cholesterol": pa.array(cholesterol.tolist()),
            "Na_to_K": pa.array(na_to_k, mask=_holes(rows, missing, seed, "Na_to_K")),
            "Drug": pa.array(drug.tolist()),
        }
    )


def popularity(rows: int = 1000, seed: int = 0) -> pa.Table:
    """Products that are popular where price + rating > 10.

    Returns:
        price U(1, 10), rating U(1, 5), popular ("popular" or "not popular").
    """
    price = 1 + 9 * _uniform(rows, "popularity", seed, "price")
    rating = 1 + 4 * _uniform(rows, "popularity", seed, "rating")
    popular = np.where(price + rating > 10, "popular", "not popular")
    return pa.table({"price": price, "rating": rating, "popular": popular.tolist()})


def line() -> pa.Table:
    """The line y = 0.7x + 0.3 at x = 0, 0.02, ... 0.98: 50 rows, in float32 arithmetic."""
    x = (np.arange(50) * 0.02).astype(np.float32)
    y = np.float32(0.7) * x + np.float32(0.3)
    return pa.table({"x": x.astype(np.float64), "y": y.astype(np.float64)})


def linear(rows: int = 100, seed: int = 13) -> pa.Table:
    """The line y = 2x + 1 with noise of standard deviation 0.1, x in U(0, 1)."""
    x = _uniform(rows, "linear", seed, "x")
    # The sum of twelve uniforms is near enough to normal, and sums are the same on every machine.
    noise = sum(_uniform(rows, "linear", seed, f"noise {term}") for term in range(12)) - 6.0
    return pa.table({"x": x, "y": 1 + 2 * x + 0.1 * noise})


def canonical_sample_name(name: str) -> str:
    """The name as `SAMPLES` has it; an underscore may stand for a hyphen.

    Raises:
        DataError: If there is no such sample.
    """
    canonical = name.replace("_", "-")
    if canonical in SAMPLES:
        return canonical
    similar = similar_name(canonical, SAMPLES)
    advice = f"Did you mean {similar!r}?" if similar else "Choose one of them"
    raise DataError(
        f"source 'sample:{name}': expected one of {', '.join(SAMPLES)}, found {name!r}. {advice}"
    )


def write_sample(name: str, path: Path) -> None:
    """Write a sample to a new .csv or .parquet file; a file that exists is never replaced.

    Raises:
        DataError: If there is no such sample, the file exists, or cannot be written there.
    """
    table = SAMPLES[canonical_sample_name(name)]()
    sink = io.BytesIO()
    if path.suffix == ".csv":
        pa_csv.write_csv(table, sink, pa_csv.WriteOptions(quoting_style="needed"))
    elif path.suffix == ".parquet":
        pq.write_table(table, sink)
    else:
        raise DataError(
            f"{path}: expected a name that ends in .csv or .parquet, found {path.name!r}. "
            "Choose one of these formats"
        )
    try:
        with path.open("xb") as file:
            file.write(sink.getvalue())
    except FileExistsError as error:
        raise DataError(
            f"{path}: expected a new file, found one that exists. Choose another name, or remove it"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: expected a place that can be written, found: {error.strerror}. "
            "Make the folder first, or choose another"
        ) from error


def _words(rows: int, *key: int | str) -> npt.NDArray[np.uint64]:
    """Raw words of Philox for a key of names and numbers; numpy never changes them."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=words).random_raw(rows)


def _uniform(rows: int, *key: int | str) -> Floats:
    """U(0, 1), float64 `[rows]`: the upper 53 bits of each word."""
    return (_words(rows, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _spread(rows: int, *key: int | str) -> Floats:
    """One U(0, 1) value in each of `rows` equal parts of [0, 1), in random order."""
    order = np.argsort(_words(rows, *key, "order"), kind="stable")
    return (order + _uniform(rows, *key)) / max(rows, 1)


def _holes(rows: int, share: float, seed: int, column: str) -> npt.NDArray[np.bool_]:
    order = np.argsort(_words(rows, "drug200", seed, column, "missing"), kind="stable")
    holes = np.zeros(rows, dtype=np.bool_)
    holes[order[: round(share * rows)]] = True
    return holes


def _bundled(loader: str) -> pa.Table:
    """A table of scikit-learn: its features under readable names, then `target`."""
    from sklearn import datasets  # importing it takes a second; only these samples need it

    bunch: Any = getattr(datasets, loader)()
    columns = {
        str(name).replace(" ", "_"): np.ascontiguousarray(bunch.data[:, place])
        for place, name in enumerate(bunch.feature_names)
    }
    if loader == "load_digits":
        columns = {name: values.astype(np.int64) for name, values in columns.items()}
    target: Any = bunch.target
    if loader in {"load_breast_cancer", "load_wine"}:
        target = [str(bunch.target_names[code]) for code in bunch.target]
    return pa.table({**columns, "target": pa.array(target)})


SAMPLES: Mapping[str, Callable[[], pa.Table]] = {
    "drug200": drug200,
    "drug200-missing": partial(drug200, missing=0.1),
    "popularity": popularity,
    "line": line,
    "linear": linear,
    "breast-cancer": partial(_bundled, "load_breast_cancer"),
    "wine": partial(_bundled, "load_wine"),
    "diabetes": partial(_bundled, "load_diabetes"),
    "digits": partial(_bundled, "load_digits"),
}
"""Name to generator; equal calls give equal tables on every machine."""
