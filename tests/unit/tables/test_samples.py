"""The built-in tables are what the notes describe, and the same every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchtrain.errors import DataError
from batchtrain.tables import SAMPLES, content_hashes, open_source, read_blocks, scan, write_sample
from batchtrain.tables.samples import drug200, line, linear, popularity


def rule(age: int, bp: str, cholesterol: str, na_to_k: float) -> str:
    if na_to_k > 14.8:
        return "DrugY"
    if bp == "HIGH":
        return "drugA" if age <= 50 else "drugB"
    return "drugC" if (bp, cholesterol) == ("LOW", "HIGH") else "drugX"


@pytest.mark.parametrize("seed", range(3))
def test_drug200_follows_the_rule(seed: int) -> None:
    rows = drug200(2000, seed=seed).to_pylist()
    for row in rows:
        expected = rule(row["Age"], row["BP"], row["Cholesterol"], row["Na_to_K"])
        assert row["Drug"] == expected
        assert round(row["Na_to_K"], 3) == row["Na_to_K"]
    assert {row["Sex"] for row in rows} == {"F", "M"}
    assert {row["BP"] for row in rows} == {"HIGH", "NORMAL", "LOW"}
    ages = [row["Age"] for row in rows]
    assert (min(ages), max(ages)) == (15, 74)
    ratios = [row["Na_to_K"] for row in rows]
    assert 6 < min(ratios) < 7
    assert 36 < max(ratios) < 38.3


@pytest.mark.parametrize("seed", range(5))
def test_drug200_has_about_the_classes_of_the_public_table(seed: int) -> None:
    drugs = drug200(seed=seed)["Drug"].to_pylist()
    public = {"DrugY": 91, "drugX": 54, "drugA": 23, "drugB": 16, "drugC": 16}
    assert all(abs(drugs.count(drug) - count) <= 10 for drug, count in public.items())


def test_the_missing_variant_only_takes_cells_away() -> None:
    whole, holes = SAMPLES["drug200"](), SAMPLES["drug200-missing"]()
    assert [holes[name].null_count for name in holes.column_names] == [20, 0, 0, 0, 20, 0]
    for before, after in zip(whole.to_pylist(), holes.to_pylist(), strict=True):
        assert all(value in (None, before[name]) for name, value in after.items())


def test_popularity_is_price_plus_rating_above_ten() -> None:
    rows = popularity().to_pylist()
    assert len(rows) == 1000
    for row in rows:
        assert row["popular"] == ("popular" if row["price"] + row["rating"] > 10 else "not popular")
    assert 1 <= min(row["price"] for row in rows) < 1.1
    assert 9.9 < max(row["price"] for row in rows) <= 10
    assert 1 <= min(row["rating"] for row in rows) < 1.1
    assert 4.9 < max(row["rating"] for row in rows) <= 5


def test_line_is_exact_in_float32() -> None:
    x, y = (column.to_numpy() for column in line().columns)
    assert len(x) == 50
    np.testing.assert_array_equal(x, x.astype(np.float32))
    np.testing.assert_allclose(x, np.arange(50) / 50, atol=1e-7)
    np.testing.assert_array_equal(y, np.float32(0.7) * x.astype(np.float32) + np.float32(0.3))


def test_linear_is_a_line_with_a_little_noise() -> None:
    x, y = (column.to_numpy() for column in linear().columns)
    noise = y - 1 - 2 * x
    assert len(x) == 100
    assert 0 <= x.min() < 0.1
    assert 0.9 < x.max() < 1
    assert abs(noise.mean()) < 0.03
    assert 0.08 < noise.std() < 0.12


def test_generated_samples_are_the_same_bytes_everywhere() -> None:
    """If this fails, GENERATOR_VERSION must go up: fingerprints stand for the content."""
    digest = hashlib.sha256()
    for name in ("drug200", "drug200-missing", "popularity", "line", "linear"):
        digest.update(repr(SAMPLES[name]().to_pydict()).encode())
    assert digest.hexdigest()[:16] == "7adfaeb037c70218"


@pytest.mark.parametrize(
    ("name", "rows", "columns", "target"),
    [
        ("breast-cancer", 569, 31, {"benign", "malignant"}),
        ("breast_cancer", 569, 31, {"benign", "malignant"}),
        ("wine", 178, 14, {"class_0", "class_1", "class_2"}),
        ("diabetes", 442, 11, None),
        ("digits", 1797, 65, set(range(10))),
    ],
)
def test_the_tables_of_scikit_learn_are_sources(
    tmp_path: Path, name: str, rows: int, columns: int, target: set[object] | None
) -> None:
    source = open_source(f"sample:{name}", base=tmp_path, null_values=())
    schema = scan(source)
    assert (schema.num_rows, len(schema.columns)) == (rows, columns)
    assert list(schema.columns)[-1] == "target"
    assert not any(" " in each for each in schema.columns)
    if target:
        wanted = {"target": str(schema.columns["target"])}
        blocks = list(read_blocks(source, wanted, block_rows=100))
        assert set(pa.concat_tables(blocks)["target"].to_pylist()) == target


def test_a_sample_has_a_hash_of_its_own(tmp_path: Path) -> None:
    hashes = {
        content_hashes(open_source(f"sample:{name}", base=tmp_path, null_values=()))
        for name in SAMPLES
    }
    assert len(hashes) == len(SAMPLES)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_written_sample_reads_back_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drug.{suffix}"
    write_sample("drug200-missing", path)
    written = open_source(path.name, base=tmp_path, null_values=("",))
    built_in = open_source("sample:drug200-missing", base=tmp_path, null_values=())
    schema = scan(written)
    assert schema == scan(built_in)
    types = {name: str(found) for name, found in schema.columns.items()}
    assert next(read_blocks(written, types)).equals(next(read_blocks(built_in, types)))


def test_a_sample_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("precious")
    with pytest.raises(DataError, match="exists"):
        write_sample("line", path)
    assert path.read_text() == "precious"
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        write_sample("line", tmp_path / "line.xlsx")
    with pytest.raises(DataError, match="folder"):
        write_sample("line", tmp_path / "gone" / "line.csv")
